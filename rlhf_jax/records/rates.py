"""Live speed of a run: seconds by part, tokens and samples per second, beside the figures of updates.

Of RLHF, on the line of every update, and all of the round before the update's: that round has ended,
so that its parts are known.

    round_seconds                      from its scoring to that of the next round, without pauses
    generate_seconds, sampler_wait_seconds, publish_seconds, trainer_wait_seconds, train_seconds
                                       as `timeline.py` has them; train_seconds without pauses
    samples_per_second                 samples of the round / round_seconds
    sampled_tokens_per_second          completion tokens / generate_seconds
    trained_tokens_per_second          completion tokens of its updates, of each epoch / train_seconds
    generate_mfu, train_mfu, generate_bandwidth_share
                                       on devices with figures alone: see `planner/costs/utilization`

Pauses are evaluations and checkpoints. Parts of the two sides overlap in the asynchronous loop. Of
supervised stages: `step_seconds`, `rows_per_second` and `trained_tokens_per_second` of the update.

Names of timings end in one of `ENDINGS`. They are no part of a run's numbers: no comparison of runs,
golden or bitwise, has them.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from rlhf_jax.devices import distributed
from rlhf_jax.records.timeline import Side, Timeline, What
from rlhf_jax.types import Array, Mean, Metric, Samples

ENDINGS = ("seconds", "_per_second", "_mfu", "_bandwidth_share")
PARTS: dict[tuple[Side, What], str] = {
    ("sampler", "generate"): "generate_seconds",
    ("sampler", "wait"): "sampler_wait_seconds",
    ("trainer", "publish"): "publish_seconds",
    ("trainer", "wait"): "trainer_wait_seconds",
    ("trainer", "train"): "train_seconds",
}


SHOWN = {"samples/s": "samples_per_second", "mfu": "train_mfu"}
"""Figures on the progress line, by their names there."""


def is_timing(name: str) -> bool:
    """True for a figure that is of time or speed, and not of the run's numbers."""
    return name.endswith(ENDINGS)


def shown(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures of the progress line, those that are known."""
    return {short: figures[name] for short, name in SHOWN.items() if name in figures}


@dataclass
class Work:
    """The work of a round, as it is counted."""

    sampled_tokens: float = 0.0
    trained_tokens: float = 0.0
    prompt_lengths_B: np.ndarray | None = None
    completion_lengths_B: np.ndarray | None = None
    scored_at: float = 0.0
    paused_seconds: float = 0.0


class Utilization(Protocol):
    """Shares of what the devices can do at most."""

    def figures(
        self, work: Work, generate_seconds: float | None, train_seconds: float | None
    ) -> dict[str, float]: ...


@dataclass
class RoundRates:
    """The speed of the rounds of RLHF; told of each as it goes on.

    A round that is `composed` is trained on samples of several rounds, or on some of its own. Its tokens are not those that
    were sampled in its seconds of sampling, and no speed of sampling is made of the two.
    """

    timeline: Timeline
    num_samples: int  # of a round
    utilization: Utilization | None = None
    composed: bool = False
    _rounds: dict[int, Work] = field(default_factory=dict)

    def scored(self, round_index: int) -> None:
        """A round has been scored."""
        self._rounds[round_index] = Work(scored_at=self.timeline.now())
        self._rounds.pop(round_index - 3, None)
        self.timeline.forget_before(round_index - 2)

    def paused(self, round_index: int, seconds: float) -> None:
        """An evaluation or a checkpoint has held a round up.

        Args:
          round_index: of the round.
          seconds: that it took.
        """
        if round_index in self._rounds:
            self._rounds[round_index].paused_seconds += seconds

    def count(
        self,
        round_index: int,
        sampled_tokens: float,
        trained_tokens: float,
        lengths_B: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        """Counts the tokens of an update.

        Args:
          round_index: of the update's round.
          sampled_tokens: of the round's completions.
          trained_tokens: of the update's completions.
          lengths_B: tokens of the round's prompts and completions, a number per sample; None where
            nobody asks for them.
        """
        if (work := self._rounds.get(round_index)) is None:
            return
        work.sampled_tokens = sampled_tokens
        work.trained_tokens += trained_tokens
        if lengths_B is not None:
            work.prompt_lengths_B, work.completion_lengths_B = lengths_B

    def lengths(self, samples: Samples) -> tuple[Array, Array] | None:
        """Tokens of each sample's prompt and completion, on the device; None where nobody asks for
        them.
        """
        if self.utilization is None:
            return None
        return distributed.settled((samples.prompt_mask_BQ.sum(-1), samples.mask_BC.sum(-1)))

    def update(
        self,
        round_index: int,
        sampled_length: float,
        metrics: Mapping[str, Metric],
        lengths_B: tuple[np.ndarray, np.ndarray] | None,
    ) -> dict[str, float]:
        """Counts an update. Returns the speed of the round before its round.

        Args:
          round_index: of the update's round.
          sampled_length: mean tokens of the round's completions.
          metrics: of the update; that of `entropy` counts its tokens.
          lengths_B: as `lengths` gives them, on the host.
        """
        entropy = metrics.get("entropy")
        trained = float(entropy.count) if isinstance(entropy, Mean) else 0.0
        self.count(round_index, sampled_length * self.num_samples, trained, lengths_B)
        return self.of(round_index - 1)

    def of(self, round_index: int) -> dict[str, float]:
        """Figures of a round that has ended; {} for one of an earlier process."""
        work, after = self._rounds.get(round_index), self._rounds.get(round_index + 1)
        if work is None or after is None:
            return {}
        spans = self.timeline.seconds_of(round_index)
        figures = {name: spans[part] for part, name in PARTS.items() if part in spans}
        if "train_seconds" in figures:
            figures["train_seconds"] = max(figures["train_seconds"] - work.paused_seconds, 0.0)
        seconds = {
            "round_seconds": after.scored_at - work.scored_at - work.paused_seconds
        } | figures
        per_second = {
            "samples_per_second": (self.num_samples, "round_seconds"),
            "sampled_tokens_per_second": (work.sampled_tokens, "generate_seconds"),
            "trained_tokens_per_second": (work.trained_tokens, "train_seconds"),
        }
        generate_seconds = figures.get("generate_seconds")
        if self.composed:
            del per_second["sampled_tokens_per_second"]
            generate_seconds = None
        rates = {
            name: count / seconds[part]
            for name, (count, part) in per_second.items()
            if seconds.get(part, 0.0) > 0 and count
        }
        if self.utilization is None:
            return seconds | rates
        used = self.utilization.figures(work, generate_seconds, figures.get("train_seconds"))
        return seconds | rates | used


class StepRates:
    """The speed of the updates of a supervised stage, from one report to the next."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last: float | None = None

    def step(self, num_rows: int, num_tokens: float | None) -> dict[str, float]:
        """Figures of an update that has just ended; {} for the first one, which compiles, and for
        one after `pause`.

        Args:
          num_rows: of the update.
          num_tokens: that it was trained on; None where it is not known.
        """
        now, last = self._clock(), self._last
        self._last = now
        if last is None or now <= last:
            return {}
        seconds = now - last
        figures = {"step_seconds": seconds, "rows_per_second": num_rows / seconds}
        if num_tokens is not None:
            figures["trained_tokens_per_second"] = num_tokens / seconds
        return figures

    def pause(self) -> None:
        """Leaves the next update without figures: an evaluation or a checkpoint comes before it."""
        self._last = None
