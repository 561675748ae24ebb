"""The ledger: `ledger.jsonl` of a run directory, one row for every sample that was trained on, in
order.

    round, ordinal, prompt_hash, sample      which sample: round, index of its prompt in the stream, CRC-32 of the prompt's
                                             text, index in its group
    version, ages                            the version that sampled its oldest token; how many updates old that token was at
                                             each use ([]: the algorithm did not choose it)
    versions, age_mean                       of a row whose tokens have more than one version alone: [[version, tokens], ...]
                                             in the order of its tokens; the mean age of its tokens at each use
    length, finished                         tokens, the EOS among them; whether there was one
    raw, standardized, score                 the reward; in SFT standard deviations; with a missing EOS replaced,
                                             or the penalty on length added
    behavior_logprob, proximal_logprob, reference_logprob      sums over the completion, null where not computed
    advantage, place                         mean over the completion; 1 chosen and -1 rejected of a pair, 0 neither;
                                             null where the algorithm has no such thing
    left_out                                 of the first row of a round with rlhf.oversample alone: the ordinals that the
                                             round sampled and did not keep, {"flat": [...], "surplus": [...]}: groups whose
                                             raw scores are all equal, and live ones that were not needed
    terms                                    of a reward that is a sum alone: {label: score} of its terms before their weights
    gold, text                               the task's judgement (null where it was not asked for); the completion

Where the clock chooses groups from several rounds (stages, a buffer), "round" is the round that was
trained on them, with a row for each time that it took a sample; "ordinal" still tells the round that
sampled it, ordinal // prompts that a round samples.

"stage" and "update" (the round's first) are those of `metrics.jsonl`, so that the file is cut back
as that one is. `pandas.read_json(path, lines=True)` reads it.
"""

import functools
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from rlhf_jax.clock import Clock
from rlhf_jax.devices import distributed
from rlhf_jax.ops import versions
from rlhf_jax.records import jsonl, lines, notes
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.types import Algorithm, Batch, Samples, Scores

FILE = "ledger.jsonl"
STAGE = "rlhf"
MIXED = b'"versions": [['
DIGITS = 7  # of a float32


class Ledger:
    """Appends to `directory/ledger.jsonl`; a round's rows in one write."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Makes the directory where it is missing; a torn last line of an earlier process is
        removed.
        """
        self.path = Path(directory) / FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        jsonl.drop_torn_line(self.path)

    def write(self, update: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """The rows of the round whose first update is `update`.

        Raises OSError that names the file.
        """
        jsonl.append_all(self.path, [{"stage": STAGE, "update": update, **row} for row in rows])

    def resume(
        self, update: int, aside: Path | None = None, updates_per_round: int | None = None
    ) -> None:
        """Cuts the file back to what version `update` had been trained on.

        Args:
          update: the version.
          aside: as in `jsonl.cut_back`.
          updates_per_round: of a run that keeps the ledger: a note says where the rows of the last
            round before the version are missing.
        """
        last = jsonl.cut_back(self.path, STAGE, update, aside=aside)
        if updates_per_round:
            notes.say_cut(self.path, STAGE, last, update, updates_per_round)


def read(path: Path) -> list[dict[str, Any]]:
    """Every row. Raises as `jsonl.read`."""
    return jsonl.read(path)


def lengths(path: Path) -> tuple[int, ...]:
    """The tokens of every sample, in order. Raises as `lines.integers`."""
    return tuple(length for (length,) in lines.integers(path, ("length",)))


def version_schedule(path: Path, clock: Clock) -> tuple[int, ...]:
    """The version of every round, to be replayed.

    Raises MissingInput, and Refusal where the ledger lacks a round of `clock` or a round has two
    versions, also within a row.
    """
    if not path.exists():
        raise MissingInput(
            f"no ledger {path}: rlhf.replay_schedule_of names the directory of a run that has one"
        )
    stat = path.stat()
    return _version_schedule(path, clock, (stat.st_mtime_ns, stat.st_size))


@functools.lru_cache(maxsize=4)
def _version_schedule(path: Path, clock: Clock, stamp: tuple[int, int]) -> tuple[int, ...]:
    """`version_schedule` of a file as it was at `stamp`: a start asks for the schedule several
    times.
    """
    del stamp
    of_round: dict[int, set[int]] = {}
    for round_index, version in lines.integers(path, ("round", "version")):
        of_round.setdefault(round_index, set()).add(version)
    for row in mixed_rows(path):
        of_round[row["round"]] |= {version for version, _ in row["versions"]}
    wrong = [r for r in range(clock.num_rounds) if len(of_round.get(r, ())) != 1]
    if wrong:
        raise Refusal(
            f"{path} has versions {sorted(of_round.get(wrong[0], ()))} of round {wrong[0]}; a replay "
            f"of {clock.num_rounds} "
            "rounds needs one of each: give it the run's own total_prompts, prompts_per_update and "
            "num_minibatches (a run with rlhf.buffer_rounds is repeated by its config alone)"
        )
    return tuple(min(of_round[r]) for r in range(clock.num_rounds))


def mixed_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Each row whose tokens have more than one version; other lines are not parsed.

    Raises Refusal for such a line that is not JSON.
    """
    for line_number, text in enumerate(lines.texts(path), 1):
        if MIXED in text:  # a quote within a completion is escaped, so that no text matches
            yield lines.parsed(text, f"{path}, line {line_number}")


def tokens_by_version(path: Path) -> dict[int, dict[int, int]]:
    """The tokens of each round by version: first update of the round -> version -> tokens.

    Raises as `lines.integers` and `mixed_rows`.
    """
    found: dict[int, Counter[int]] = {}
    for update, version, length in lines.integers(path, ("update", "version", "length")):
        found.setdefault(update, Counter())[version] += length
    for row in mixed_rows(path):
        tokens = found[row["update"]]
        tokens[row["version"]] -= row["length"]
        for version, count in row["versions"]:
            tokens[version] += count
    return {
        update: {version: count for version, count in sorted(tokens.items()) if count}
        for update, tokens in found.items()
    }


def rows(
    round_index: int,
    samples: Samples,
    scores: Scores,
    uses: Mapping[int, np.ndarray],
    batch: Batch,
    algorithm: Algorithm,
    prompt_texts: Sequence[str],
    texts: Sequence[str],
    gold: np.ndarray | None,
    left_out: Mapping[str, list[int]] | None = None,
) -> list[dict[str, Any]]:
    """The rows of a round.

    Args:
      round_index: of the round.
      samples: of the round.
      scores: of the samples.
      uses: update -> the samples (rows of `samples`) that it trained on; an update is numbered by
        the version that it trains.
      batch: the result of credit, on the host or the device.
      algorithm: that was trained with.
      prompt_texts: of every prompt, in order.
      texts: of every sample, in order.
      gold: the task's scores `[B]`; None where they were not asked for.
      left_out: ordinals by the reason that the round did not keep them; None: it keeps all.
    """
    samples, scores = distributed.fetch((samples, scores))  # of the batch only what is read below
    count = len(texts)
    mask_BC, version_BC = np.asarray(samples.mask_BC), np.asarray(samples.version_BC)
    oldest_B = versions.oldest(version_BC, mask_BC)
    columns: dict[str, Any] = {
        "round": [round_index] * count,
        "ordinal": samples.ordinal_B.tolist(),
        "prompt_hash": [
            zlib.crc32(text.encode())
            for text in prompt_texts
            for _ in range(samples.samples_per_prompt)
        ],
        "sample": samples.sample_index_B.tolist(),
        "version": oldest_B.tolist(),
        "ages": ages_of(uses, oldest_B),
        "length": mask_BC.sum(axis=1).tolist(),
        "finished": samples.finished_B.tolist(),
        "raw": numbers(scores.raw_B),
        "standardized": numbers(scores.standardized_B),
        "score": numbers(scores.score_B),
        "behavior_logprob": sums(samples.behavior_logprob_BC, mask_BC),
        "proximal_logprob": sums(scores.proximal_logprob_BC, mask_BC),
        "reference_logprob": sums(scores.reference_logprob_BC, mask_BC),
        "advantage": advantages(batch, mask_BC),
        "place": pair_signs(batch, count) if algorithm.pair else [None] * count,
        "gold": [None] * count if gold is None else numbers(gold),
        "text": list(texts),
    }
    if scores.terms is not None:
        terms = {label: numbers(term_B) for label, term_B in scores.terms.items()}
        columns["terms"] = [
            {label: term_B[row] for label, term_B in terms.items()} for row in range(count)
        ]
    ledger_rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    if left_out is not None:
        ledger_rows[0]["left_out"] = dict(left_out)
    mixed = np.flatnonzero(versions.is_mixed(version_BC, mask_BC))
    runs_of_mixed = versions.runs(version_BC[mixed], mask_BC[mixed])
    mean_B = versions.TokenCounts.of(version_BC, mask_BC).mean_B()
    for row, runs in zip(mixed.tolist(), runs_of_mixed, strict=True):
        above = float(mean_B[row] - oldest_B[row])
        age_mean = numbers(np.array(ledger_rows[row]["ages"]) - above)
        ledger_rows[row] |= {"versions": runs, "age_mean": age_mean}
    return ledger_rows


def ages_of(uses: Mapping[int, np.ndarray], oldest_B: np.ndarray) -> list[list[int]]:
    """Ages of each sample's oldest token at its uses, ascending.

    Args:
      uses: update -> the samples that it trained on.
      oldest_B: int, the version of each sample's oldest token.
    """
    ages: list[list[int]] = [[] for _ in oldest_B]
    for update in sorted(uses):
        for row in uses[update].tolist():
            ages[row].append(update - int(oldest_B[row]))
    return ages


def numbers(values: ArrayLike) -> list[float | str]:
    """Numbers as JSON can hold them, rounded to the digits of a float32."""
    wide = np.asarray(values, np.float64)
    if not np.isfinite(wide).all():
        return [jsonl.number(float(f"{value:.{DIGITS}g}")) for value in wide.tolist()]
    exponent = np.floor(np.log10(np.abs(wide), where=wide != 0, out=np.zeros_like(wide)))
    scale = 10.0 ** np.clip(DIGITS - 1 - exponent, -300, 300)
    return (np.round(wide * scale) / scale).tolist()


def sums(values_BC: ArrayLike | None, mask_BC: np.ndarray) -> Sequence[float | str | None]:
    """Sums over the completions' tokens; None for each where there are no values."""
    if values_BC is None:
        return [None] * len(mask_BC)
    return numbers(np.where(mask_BC, np.asarray(values_BC, np.float64), 0.0).sum(axis=1))


def advantages(batch: Batch, mask_BC: np.ndarray) -> list[float | str | None]:
    """The mean advantage of each sample's tokens; None without advantages, and for samples that the
    algorithm did not choose.
    """
    means: list[float | str | None] = [None] * len(mask_BC)
    if batch.advantage_RC is None or batch.sample_R is None:
        return means
    mask_RC, advantage_RC, sample_R = distributed.fetch(
        (batch.mask_RC, batch.advantage_RC, batch.sample_R)
    )
    total_R = np.where(mask_RC, np.asarray(advantage_RC, np.float64), 0.0).sum(axis=1)
    for row, value in zip(sample_R.tolist(), numbers(total_R / mask_RC.sum(axis=1)), strict=True):
        means[row] = value
    return means


def pair_signs(batch: Batch, count: int) -> list[int]:
    """1 for the chosen and -1 for the rejected samples of pairs with an order, 0 for the others."""
    assert batch.sample_R is not None
    assert batch.weight_R is not None
    sign_B = np.zeros(count, np.int64)
    weight_R, sample_R = distributed.fetch((batch.weight_R, batch.sample_R))
    sign_R = np.where(weight_R > 0, np.tile([1, -1], len(weight_R) // 2), 0)
    np.add.at(sign_B, sample_R, sign_R)
    return sign_B.tolist()
