"""Notices about what a run trains on: said when they begin and end, and summed up on the head of
its report.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_jax.records.jsonl import Line
from rlhf_jax.report import read
from rlhf_jax.report.units import value

MOST = 0.5
MOSTLY_FLAT = 0.75
"""Share of prompts whose samples all have one score, from which on a round is said to be flat. Two samples
of a reward of 0 or 1 have one score in half of the prompts at the least.
"""
QUIET_ROUNDS = 4
"""Rounds without a condition after which it has ended: one round's share is of few samples."""


@dataclass(frozen=True)
class Limits:
    """Values of the config that a notice names; `missing_eos_score` is None where a cut completion
    keeps its score.
    """

    max_completion_tokens: int | None
    missing_eos_score: float | None


def limits_of(config: Mapping[str, Any]) -> Limits:
    """The limits of a resolved config; None for keys that an older one lacks."""
    replaced = value(config, "rlhf.scoring.replace_missing_eos")
    score = value(config, "rlhf.scoring.missing_eos_score") if replaced else None
    return Limits(value(config, "lengths.max_completion_tokens"), score)


def _cut(figures: Mapping[str, float], limits: Limits) -> str:
    instead = (
        ""
        if limits.missing_eos_score is None
        else f" and get the score {limits.missing_eos_score:g} instead"
    )
    flat = figures.get("flat_group_share", 0.0)
    ties = (
        f"; {100 * flat:.0f} % of prompts have one score for all their samples, and train on no "
        "reward"
        if flat
        else ""
    )
    return (
        f"{100 * (1 - figures['finished']):.0f} % of completions have no EOS within "
        "lengths.max_completion_tokens = "
        f"{limits.max_completion_tokens}{instead}{ties}. Raise lengths.max_completion_tokens, or "
        "train SFT for longer"
    )


def _flat(figures: Mapping[str, float], limits: Limits) -> str:
    del limits
    flat = figures["flat_group_share"]
    if flat < 1.0:
        return (
            f"{100 * flat:.0f} % of prompts have one score for all their samples, and train on no "
            "reward. rlhf.oversample samples more prompts and keeps those whose scores differ; more "
            "rlhf.samples_per_prompt make equal scores rarer"
        )
    return (
        "every prompt has one score for all its samples, so that no reward is trained on. Raise "
        "rlhf.samples_per_prompt, or "
        "choose a reward that tells samples of one prompt apart"
    )


def _idle(figures: Mapping[str, float], limits: Limits) -> str:
    del figures, limits
    return "the algorithm gives every row an advantage or a weight of zero, so that no reward is trained on"


@dataclass(frozen=True)
class Condition:
    """A condition of a round: its name, where it holds, and the sentence that says so."""

    name: str
    holds: Callable[[Mapping[str, float]], bool]
    sentence: Callable[[Mapping[str, float], Limits], str]


def is_cut(figures: Mapping[str, float]) -> bool:
    """True where most completions of a round have no EOS."""
    return "finished" in figures and figures["finished"] < MOST


def is_flat(figures: Mapping[str, float]) -> bool:
    """True where few prompts of a round have samples of different scores, and cut completions do not
    explain it.
    """
    return figures.get("flat_group_share", 0.0) >= MOSTLY_FLAT and not is_cut(figures)


def is_idle(figures: Mapping[str, float]) -> bool:
    """True where no row of a round has an advantage or a weight, and nothing above explains it."""
    idle = "idle_row_share" in figures and figures["idle_row_share"] == 1.0
    return idle and not is_flat(figures) and not is_cut(figures)


CONDITIONS = (
    Condition("cut completions", is_cut, _cut),
    Condition("flat groups", is_flat, _flat),
    Condition("zero advantages", is_idle, _idle),
)


@dataclass
class Notices:
    """Says a condition once when it begins, and once when it has ended."""

    say: Callable[[str], None]
    limits: Limits
    quiet: dict[str, int] = field(
        default_factory=dict
    )  # of conditions that hold: rounds since one had it

    def take(self, round_index: int, figures: Mapping[str, float]) -> None:
        """Reads the figures of a round; rounds come in order."""
        for condition in CONDITIONS:
            if condition.holds(figures):
                if condition.name not in self.quiet:
                    self.say(
                        f"notice: in round {round_index}, "
                        f"{condition.sentence(figures, self.limits)}"
                    )
                self.quiet[condition.name] = 0
            elif condition.name in self.quiet:
                self.quiet[condition.name] += 1
                if self.quiet[condition.name] == QUIET_ROUNDS:
                    del self.quiet[condition.name]
                    self.say(
                        f"notice: no more {condition.name} since round "
                        f"{round_index - QUIET_ROUNDS + 1}"
                    )


def find(lines: Sequence[Line], config: Mapping[str, Any] | None) -> list[str]:
    """Sentences about the updates of the RLHF stage that trained under a condition, with means over
    those updates.
    """
    trained = read.updates(lines, read.TRAINED)
    sentences = []
    for condition in CONDITIONS:
        under = [line for line in trained if condition.holds(line)]
        if not under or config is None:
            continue
        names = [name for name in ("finished", "flat_group_share") if name in under[0]]
        means = {name: sum(float(line[name]) for line in under) / len(under) for name in names}
        sentence = condition.sentence(means, limits_of(config))
        sentences.append(f"In {len(under)} of {len(trained)} updates, {sentence}.")
    return sentences
