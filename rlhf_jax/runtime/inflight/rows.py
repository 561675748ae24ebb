"""Rows of the stream on the host: drawn tokens with their versions, collected into whole rounds. Of
several slices each has a share of a round: prompt p belongs to slice p mod H, for ever.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import jax
import numpy as np

from rlhf_jax.runtime.inflight.api import Drawn
from rlhf_jax.runtime.inflight.programs import Config
from rlhf_jax.types import Prompts, Samples


@dataclass(frozen=True)
class RoundRows:
    """Tokens of a round's rows, filled from the left as they are drawn.

    Past a row's count, tokens are the pad id and the rest is 0.
    """

    tokens_BC: np.ndarray  # int32
    logprob_BC: np.ndarray  # float32
    version_BC: np.ndarray  # int32, of the params that drew the token
    count_B: np.ndarray  # int32, tokens drawn
    # int64, of the decode steps that drew a token of the round: tokens that all slots drew in them,
    # and slots times these steps; (-1, -1): not known, of a snapshot that is older than this count
    slots_2: np.ndarray


def prompts_of_slice(
    prompts: Callable[[int], Prompts], slice_index: int, num_slices: int
) -> Callable[[int], Prompts]:
    """The prompts of a round that belong to a slice: p with p mod H = `slice_index`.

    Args:
      prompts: gives a round's P prompts; H divides P.
      slice_index: of the slice.
      num_slices: H.
    """
    if num_slices == 1:
        return prompts
    return lambda round_index: jax.tree.map(
        lambda array: np.asarray(array)[slice_index::num_slices], prompts(round_index)
    )


def interleaved(samples: Sequence[Samples]) -> Samples:
    """The samples of a round in the order of its prompts.

    Args:
      samples: by slice, arrays on the host.
    """
    if len(samples) == 1:
        return samples[0]
    group = samples[0].samples_per_prompt

    def merged(*arrays: np.ndarray) -> np.ndarray:
        if not arrays[0].ndim:
            return arrays[0]
        by_prompt = [array.reshape(-1, group, *array.shape[1:]) for array in arrays]
        return np.stack(by_prompt, axis=1).reshape(-1, *arrays[0].shape[1:])

    return jax.tree.map(merged, *samples)


def busy_figures(slots_2: np.ndarray) -> dict[str, float]:
    """Metrics of how a round was drawn: `slots_busy`, the share of slots that drew a token, over the
    decode steps that drew one of the round. {} where there was no such step.

    Args:
      slots_2: of the round, `Rows.slot_counts`, or the sum of them over slices.
    """
    busy, total = slots_2.tolist()
    return {"slots_busy": busy / total} if total > 0 else {}


@dataclass
class Rows:
    """Rows of the rounds that are not trained on yet.

    Attributes:
      prompts: gives a round's P prompts.
      rows_per_round: B.
      max_completion_tokens: C.
      samples_per_prompt: G.
      temperature: of the sampling distribution.
      eos_ids: tokens that end a row.
      pad_id: fills what is not drawn.
    """

    prompts: Callable[[int], Prompts]
    rows_per_round: int
    max_completion_tokens: int
    samples_per_prompt: int
    temperature: float
    eos_ids: Sequence[int]
    pad_id: int

    def __post_init__(self) -> None:
        self._rounds: dict[int, RoundRows] = {}

    @classmethod
    def of(cls, config: Config, prompts: Callable[[int], Prompts]) -> "Rows":
        """No rows yet, of a pool of slots.

        Args:
          config: of the pool.
          prompts: gives a round's P prompts.
        """
        law, eos_id = config.sampling, config.eos_id
        return cls(
            prompts,
            config.prompts_per_round * law.samples_per_prompt,
            law.max_completion_tokens,
            law.samples_per_prompt,
            law.temperature,
            eos_id if isinstance(eos_id, tuple) else (eos_id,),
            config.pad_id,
        )

    def add(self, drawn: Drawn, row_of_slot: Sequence[int], version: int | Sequence[int]) -> None:
        """Appends the tokens of a segment to their rows.

        Args:
          drawn: by the segment.
          row_of_slot: the stream row in each slot; -1: none.
          version: of the params that drew all of them, or that drew each slot's.

        Raises RuntimeError for a slot that draws without a row, or whose row ends without an EOS
        and with less than C tokens: the pool would have lost tokens.
        """
        version_S = np.broadcast_to(version, len(row_of_slot))
        for slot, row in enumerate(row_of_slot):
            live_T = drawn.live_TS[:, slot]
            if row < 0:
                if live_T.any():
                    raise RuntimeError(f"slot {slot} has no row, but drew {live_T.sum()} tokens")
                continue
            round_index, index = divmod(row, self.rows_per_round)
            rows = self._of(round_index)
            begin = int(rows.count_B[index])
            end = begin + int(live_T.sum())
            rows.tokens_BC[index, begin:end] = drawn.tokens_TS[live_T, slot]
            rows.logprob_BC[index, begin:end] = drawn.logprob_TS[live_T, slot]
            rows.version_BC[index, begin:end] = version_S[slot]
            rows.count_B[index] = end
            has_eos = end > 0 and int(rows.tokens_BC[index, end - 1]) in self.eos_ids
            if drawn.ended_S[slot] != (has_eos or end == self.max_completion_tokens):
                state = "ended" if drawn.ended_S[slot] else "goes on"
                raise RuntimeError(
                    f"row {row} in slot {slot} {state} with {end} of {self.max_completion_tokens} "
                    f"tokens and {'an' if has_eos else 'no'} EOS"
                )
        self._count_slots(drawn.live_TS[1:], np.asarray(row_of_slot))

    def _count_slots(self, live_DS: np.ndarray, row_S: np.ndarray) -> None:
        """Adds the decode steps of a segment to the rounds that drew a token in them."""
        round_S = np.where(row_S < 0, -1, row_S // self.rows_per_round)
        for round_index in set(round_S[round_S >= 0].tolist()):
            counted_2 = self._of(round_index).slots_2
            if counted_2[1] >= 0:
                is_mine_D = live_DS[:, round_S == round_index].any(axis=1)
                counted_2 += live_DS[is_mine_D].sum(), is_mine_D.sum() * row_S.size

    def holds(self, round_index: int) -> bool:
        """True for a round with a row that has begun, and that is not forgotten."""
        return round_index in self._rounds

    def slot_counts(self, round_index: int) -> np.ndarray:
        """Tokens that all slots drew in the decode steps that drew one of a complete round, and slots
        times these steps: int64 `[2]`; (-1, -1): not known.
        """
        return self._rounds[round_index].slots_2

    def _of(self, round_index: int) -> RoundRows:
        if round_index not in self._rounds:
            shape = self.rows_per_round, self.max_completion_tokens
            self._rounds[round_index] = RoundRows(
                np.full(shape, self.pad_id, np.int32),
                np.zeros(shape, np.float32),
                np.zeros(shape, np.int32),
                np.zeros(self.rows_per_round, np.int32),
                np.zeros(2, np.int64),
            )
        return self._rounds[round_index]

    def samples(self, round_index: int) -> Samples:
        """Samples of a complete round, arrays on the host."""
        rows, prompts = self._rounds[round_index], self.prompts(round_index)
        repeats, last_B = self.samples_per_prompt, rows.count_B - 1
        ordinal_P = np.asarray(prompts.ordinal_P)
        mask_BC = np.arange(self.max_completion_tokens) < rows.count_B[:, None]
        last_token_B = np.take_along_axis(rows.tokens_BC, last_B[:, None], 1)[:, 0]
        arrays = {
            "prompt_tokens_BQ": np.repeat(np.asarray(prompts.tokens_PQ), repeats, axis=0),
            "prompt_mask_BQ": np.repeat(np.asarray(prompts.mask_PQ), repeats, axis=0),
            "tokens_BC": rows.tokens_BC.copy(),
            "mask_BC": mask_BC,
            "behavior_logprob_BC": rows.logprob_BC.copy(),
            "finished_B": np.isin(last_token_B, list(self.eos_ids)),
            "ordinal_B": np.repeat(ordinal_P, repeats),
            "sample_index_B": np.tile(np.arange(repeats, dtype=np.int32), len(ordinal_P)),
            "version_BC": rows.version_BC.copy(),
            "temperature": np.float32(self.temperature),
        }
        return Samples(samples_per_prompt=repeats, **arrays)

    def forget_before(self, round_index: int) -> None:
        """Drops the rounds that are trained."""
        for trained in [r for r in self._rounds if r < round_index]:
            del self._rounds[trained]

    def saved(self, round_index: int) -> dict[str, np.ndarray]:
        """Copies of the rows of the rounds from `round_index` on, by round and name."""
        return {
            f"{index}.{field.name}": getattr(rows, field.name).copy()
            for index, rows in self._rounds.items()
            if index >= round_index
            for field in fields(RoundRows)
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from `saved`."""
        names = [field.name for field in fields(RoundRows)]
        rounds: Iterable[int] = {int(key.partition(".")[0]) for key in arrays}
        unknown = {f"{index}.slots_2": np.full(2, -1, np.int64) for index in rounds}
        arrays = unknown | dict(arrays)
        self._rounds = {
            index: RoundRows(*(np.array(arrays[f"{index}.{name}"]) for name in names))
            for index in sorted(rounds)
        }

    def complete(self, open_rounds: Iterable[int]) -> list[int]:
        """Rounds that are here and have no row left to harvest.

        Args:
          open_rounds: those that have.
        """
        return sorted(self._rounds.keys() - set(open_rounds))
