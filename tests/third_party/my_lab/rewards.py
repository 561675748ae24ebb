"""Rewards on text: a plain function, a factory with settings, and one that gives another number
each time it is asked.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from my_lab import units

from rlhf_jax.config import NonNegative
from rlhf_jax.rewards.api import asked_once

ASKED: list[tuple[str, str]] = []
"""Every (prompt, completion) that `whim` was asked about in this process."""


@dataclass(frozen=True)
class Config:
    """Settings of `brevity`: the number of words that costs nothing, and the cost of a word more."""

    free_words: int = 2
    cost: NonNegative = 0.5


def brevity(completions: Sequence[str], config: Config) -> list[float]:
    """Scores by length."""
    return [-config.cost * max(0, units.words(text) - config.free_words) for text in completions]


def overlap(
    prompts: Sequence[str], completions: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> list[float]:
    """The share of a completion's words that one of the row's references has: a plain function
    without settings.
    """
    del prompts
    shares = []
    for text, row in zip(completions, records, strict=True):
        known = set(" ".join(row["references"]).split())
        written = text.split()
        shares.append(sum(word in known for word in written) / max(1, len(written)))
    return shares


@asked_once
def whim(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """A judge that is no function of what it reads, as one behind HTTP may be."""
    ASKED.extend(zip(prompts, completions, strict=True))
    return [random.SystemRandom().random() for _ in completions]


def make_mood(task: Any, config: Config) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
    """A second judge of that kind, made by a factory."""
    del task, config

    @asked_once
    def mood(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        return [random.SystemRandom().random() for _ in zip(prompts, completions, strict=True)]

    return mood
