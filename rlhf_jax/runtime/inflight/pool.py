"""The pool of slots on one mesh: the state on the device, and what the host knows of the rows."""

import dataclasses
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.devices import sharding
from rlhf_jax.models.api import Model
from rlhf_jax.models.common.adapters import Base, Rest, Versions, join
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime.inflight.api import Drawn, PoolState
from rlhf_jax.runtime.inflight.arrays import bits, named, of_bits
from rlhf_jax.runtime.inflight.held import SideBySide, of_one_mesh
from rlhf_jax.runtime.inflight.programs import Config, Programs
from rlhf_jax.runtime.spec import Published
from rlhf_jax.slots import insert
from rlhf_jax.slots.state import Slots
from rlhf_jax.types import Array, Params, Prompts

T = TypeVar("T")


class SlotPool:
    """`api.Pool` on the devices of one mesh. It keeps the tokens of running rows for rebuilds.

    Rows of a prompt are consecutive in the stream, so that at most one prompt is partly admitted.
    That prompt stays prefilled until its last row is admitted. Other params drop it: a prompt's
    keys are always of the version that draws its first token.
    """

    def __init__(
        self,
        model: Model,
        config: Config,
        prompts: Callable[[int], Prompts],
        key: Array,
        mesh: Mesh,
        rest: Rest = None,
        some_round: int = 0,
        programs: Programs | None = None,
        slots: Slots | None = None,
    ):
        """Makes empty slots; compiles nothing else yet.

        Args:
          model: the policy.
          config: of the pool.
          prompts: gives a round's P prompts, host arrays.
          key: random key of the samples.
          mesh: of the slots, which are sharded by row; kv heads are sharded over `tensor`.
          rest: the base of an adapter on that mesh. It is not published.
          some_round: a round whose prompts are at hand; all have the same width.
          programs: of this model, config and mesh; None: they are made.
          slots: the state on the device; None: empty slots.

        Raises Refusal for slots that the shards of rows do not divide.
        """
        self.config, self._model, self._mesh, self._rest = config, model, mesh, rest
        self.prompts, self._rounds = prompts, {}
        self._key = jax.device_put(key, sharding.replicated(mesh))
        prompt_columns = self.prompts_of(some_round).tokens_PQ.shape[1]
        self._programs = programs or Programs(model, config, prompt_columns, mesh)
        self._slots = self._programs.empty() if slots is None else slots
        # Leaves of the params of the last call, which are not kept alive: a version that nobody else
        # holds gives its memory back.
        self._seen: list[weakref.ref[Array]] = []
        self._carry: tuple[int, insert.Prefilled] | None = None  # prompt of the stream, prefilled
        self._is_stale = False  # restored without keys and values
        shape = config.num_slots, config.sampling.max_completion_tokens
        self._row_S = np.full(config.num_slots, -1, np.int64)  # stream row
        self._tokens_SC = np.full(shape, config.pad_id, np.int32)
        self._count_S = np.zeros(config.num_slots, np.int32)
        self._live_S = np.zeros(config.num_slots, bool)

    @property
    def slots(self) -> Slots:
        """The state on the device; the next call donates it."""
        return self._slots

    def admit(
        self,
        params: Published | SideBySide,
        rows: Sequence[int],
        slots: Sequence[int],
        places: Sequence[int] = (),
    ) -> None:
        """Prefills the prompts of stream rows and puts the rows into free slots; each draws its
        first token.

        Args:
          params: which draw the first tokens.
          rows: consecutive stream rows.
          slots: free ones, as many.
          places: of params side by side that of each row, which it keeps; (): params are of one
            version.

        Raises RuntimeError for a slot that is live, or for more rows than slots.
        """
        place_of = dict(zip(slots, places, strict=True)) if places else {}
        whole = self._whole(params)
        taken = [slot for slot in slots if self._live_S[slot]]
        if taken or len(set(slots)) != len(rows):
            raise RuntimeError(f"rows {list(rows)} for slots {list(slots)}: {taken} are not free")
        group = self.config.sampling.samples_per_prompt
        members: dict[int, list[tuple[int, int]]] = {}  # prompt of the stream -> (row, slot)
        for row, slot in zip(rows, slots, strict=True):
            members.setdefault(row // group, []).append((row, slot))
        if self._carry and (first := members.pop(self._carry[0], None)):
            self._slots = self._programs.insert(
                self._slots,
                self._carry[1],
                self._admission(first, {self._carry[0]: 0}, place_of),
                self._key,
            )
        for batch in self._programs.batches(list(members)):
            size = next(size for size in self._programs.prefill_sizes if size >= len(batch))
            inserted = [member for prompt in batch for member in members[prompt]]
            index = {prompt: place for place, prompt in enumerate(batch)}
            self._slots, last = self._programs.admit(
                whole,
                self._slots,
                self._prompts(batch, size),
                np.int32(len(batch) - 1),
                self._admission(inserted, index, place_of),
                self._key,
            )
            self._carry = batch[-1], last
        if rows and (rows[-1] + 1) % group == 0:
            self._carry = None
        for row, slot in zip(rows, slots, strict=True):
            self._row_S[slot], self._count_S[slot], self._live_S[slot] = row, 0, True
            self._tokens_SC[slot] = self.config.pad_id

    def segment(self, params: Published | SideBySide) -> Drawn:
        """At most `segment_steps` decode steps of all live slots.

        Args:
          params: which draw the tokens; side by side each row is drawn by those of its place.
        """
        self._slots, emitted = self._programs.segment(self._whole(params), self._slots)
        drawn = Drawn(
            *jax.device_get(
                (emitted.tokens_TS, emitted.logprob_TS, emitted.live_TS, emitted.ended_S)
            )
        )
        for tokens_S, live_S in zip(drawn.tokens_TS, drawn.live_TS, strict=True):
            self._tokens_SC[live_S, self._count_S[live_S]] = tokens_S[live_S]
            self._count_S += live_S
        self._live_S = ~drawn.ended_S
        return drawn

    def quarter(self) -> tuple["SlotPool", np.ndarray] | None:
        """Moves the live rows to a pool of a quarter of the slots, where it holds them all.

        A slot whose row has ended costs a step as much as another, so that the last rows of a round
        are drawn sooner there. All slots of this pool are free afterwards.

        Returns the smaller pool and the slots of this one that its slots were, `[S / 4]`. None:
        there are more live rows, or rows are sharded, or S is below 4.
        """
        programs = self._programs.quarter
        if programs is None or self._live_S.sum() > programs.config.num_slots:
            return None
        slot_k = np.argsort(~self._live_S, kind="stable")[: programs.config.num_slots]
        slot_k = slot_k.astype(np.int32)
        smaller = SlotPool(
            self._model,
            programs.config,
            self.prompts_of,
            self._key,
            self._mesh,
            self._rest,
            next(iter(self._rounds)),
            programs,
            programs.compact(self._slots, slot_k),
        )
        for name in ("_row_S", "_tokens_SC", "_count_S", "_live_S"):
            setattr(smaller, name, getattr(self, name)[slot_k])
        self._live_S = np.zeros_like(self._live_S)
        # Of arrays that are not written to: on a CPU the device may share their memory.
        none_S, all_S = self._by_rows((np.zeros_like(self._live_S), ~self._live_S))
        self._slots = dataclasses.replace(self._slots, done_S=all_S, fresh_S=none_S)
        return smaller, slot_k

    def rebuild(self, params: Published) -> None:
        """Computes the keys and values of all live rows again.

        Args:
          params: which the keys and values are of.
        """
        self._is_stale = False
        whole = self._whole(params)
        assert not isinstance(whole, Versions), "keys of pinned rows never get old"
        if not self._live_S.any():
            return
        most = int(self._fed()[self._live_S].max())
        self._run_rebuild(whole, next(width for width in self._programs.widths if width >= most))

    def _fed(self) -> np.ndarray:
        """Tokens of each slot that were fed: all but the last."""
        return np.maximum(self._count_S - 1, 0)

    def _run_rebuild(self, whole: Params, width: int) -> None:
        fed_S = self._fed()
        tokens_SW = np.full((len(fed_S), width), self.config.pad_id, np.int32)
        prompts = self._prompts([], len(fed_S))
        prompt_SQ, mask_SQ = prompts.tokens_PQ, prompts.mask_PQ
        for slot in np.flatnonzero(self._live_S):
            fed = fed_S[slot]
            tokens_SW[slot, width - fed :] = self._tokens_SC[slot, :fed]
            round_index, prompt, _ = self.config.place_of(int(self._row_S[slot]))
            source = self.prompts_of(round_index)
            prompt_SQ[slot], mask_SQ[slot] = source.tokens_PQ[prompt], source.mask_PQ[prompt]
        arrays = self._by_rows((prompt_SQ, mask_SQ, tokens_SW))
        self._slots = self._programs.rebuild(whole, self._slots, *arrays)

    def saved(self, keeps_cache: bool) -> PoolState:
        """The state for a checkpoint, between a segment and the next admission.

        The prompt that is partly admitted is prefilled again: checkpoints fall on boundaries where
        the version changes, which drops it in any case.

        Args:
          keeps_cache: False leaves out keys, values and positions, which `rebuild` makes anew.
        """
        left_out = () if keeps_cache else ("keys", "values", "position_SM")
        arrays = {
            "row_S": self._row_S,
            "tokens_SC": self._tokens_SC,
            "drawn_S": self._count_S,
            "live_S": self._live_S,
        }
        for path, leaf in named(self._slots):
            if path.split(".")[0] not in left_out:
                arrays[f"slots.{path}"] = bits(np.asarray(jax.device_get(leaf)))
        return {name: array.copy() for name, array in arrays.items()}

    def restore(self, state: PoolState) -> None:
        """Goes on from a saved state; one without a cache is rebuilt before the next segment.

        Args:
          state: as `saved` of a pool of the same config returns it.

        Raises Refusal for a state of other shapes.
        """
        leaves = []
        for path, leaf in named(self._slots):
            name = f"slots.{path}"
            array = of_bits(state[name], leaf.dtype) if name in state else None
            if array is not None and array.shape != leaf.shape:
                raise Refusal(
                    f"the saved slots have {path} {list(array.shape)}, and this run's "
                    f"{list(leaf.shape)}; resume with the num_slots and lengths of the run"
                )
            leaves.append(leaf if array is None else jax.device_put(array.copy(), leaf.sharding))
        self._slots = jax.tree.unflatten(jax.tree.structure(self._slots), leaves)
        self._row_S, self._tokens_SC = (np.array(state[name]) for name in ("row_S", "tokens_SC"))
        self._count_S, self._live_S = (np.array(state[name]) for name in ("drawn_S", "live_S"))
        self._carry, self._is_stale = None, "slots.position_SM" not in state

    def _whole(self, params: Published | SideBySide) -> Params | Versions:
        """Params as the programs take them. Those of another version drop the prefilled prompt, and
        a cache that was not restored is made.
        """
        several = params.params if isinstance(params, SideBySide) else (params,)
        if isinstance(params, SideBySide) != bool(self.config.num_versions):
            raise RuntimeError(
                f"{len(several)} version(s) for a pool of {self.config.num_versions} side by side"
            )
        adapters = tuple(map(of_one_mesh, several))
        params = adapters if self.config.num_versions else adapters[0]
        leaves = jax.tree.leaves(params)
        is_same = len(leaves) == len(self._seen) and all(
            new is seen() for new, seen in zip(leaves, self._seen, strict=True)
        )
        if not is_same:
            self._seen, self._carry = [weakref.ref(leaf) for leaf in leaves], None
        if self.config.num_versions:
            assert isinstance(self._rest, Base), "versions side by side are of adapters"
            assert not self._is_stale, "the checkpoint of pinned rows has keys and values"
            return Versions(self._rest.params, adapters, self._rest.scale)
        if self._is_stale:
            self.rebuild(params)
        return join(adapters[0], self._rest)

    def prompts_of(self, round_index: int) -> Prompts:
        """A round's prompts as host arrays; those of rounds without a row are dropped."""
        if round_index not in self._rounds:
            rows = self._row_S[self._live_S] if self._rounds else []
            kept = {self.config.place_of(int(row))[0] for row in rows}
            self._rounds = {r: prompts for r, prompts in self._rounds.items() if r in kept}
            self._rounds[round_index] = jax.tree.map(np.asarray, self.prompts(round_index))
        return self._rounds[round_index]

    def _prompts(self, batch: Sequence[int], size: int) -> Prompts:
        """Prompts of the stream as one array, filled up with empty ones."""
        like = next(iter(self._rounds.values()))
        num_columns = like.tokens_PQ.shape[1]
        tokens_PQ = np.full((size, num_columns), self.config.pad_id, np.int32)
        mask_PQ, ordinal_P = np.zeros((size, num_columns), bool), np.zeros(size, np.int32)
        for place, prompt in enumerate(batch):
            round_index, index = divmod(prompt, self.config.prompts_per_round)
            source = self.prompts_of(round_index)
            if source.tokens_PQ.shape[1] != num_columns:
                raise Refusal(
                    f"round {round_index} has prompts of {source.tokens_PQ.shape[1]} columns, and "
                    f"the slots {num_columns}; accepted: one width for all rounds"
                )
            tokens_PQ[place], mask_PQ[place] = source.tokens_PQ[index], source.mask_PQ[index]
            ordinal_P[place] = source.ordinal_P[index]
        return Prompts(tokens_PQ, mask_PQ, ordinal_P)  # type: ignore[arg-type]

    def _admission(
        self,
        members: Sequence[tuple[int, int]],
        index: dict[int, int],
        place_of: Mapping[int, int],
    ) -> insert.Admission:
        """The arrays of (row, slot) pairs, whose prompts of the stream have an index each, and the
        slots the place of their params.
        """
        num_slots = self.config.num_slots
        prompt_S = np.full(num_slots, -1, np.int32)
        ordinal_S, sample_index_S = np.zeros((2, num_slots), np.int32)
        for row, slot in members:
            round_index, prompt, sample_index_S[slot] = self.config.place_of(row)
            prompt_S[slot] = index[row // self.config.sampling.samples_per_prompt]
            ordinal_S[slot] = self.prompts_of(round_index).ordinal_P[prompt]
        version_S = None
        if self.config.num_versions:
            version_S = np.zeros(num_slots, np.int32)
            version_S[list(place_of)] = list(place_of.values())
        return self._by_rows(insert.Admission(prompt_S, ordinal_S, sample_index_S, version_S))  # type: ignore[arg-type]

    def _by_rows(self, tree: T) -> T:
        return jax.device_put(tree, sharding.row_shardings(tree, self._mesh))
