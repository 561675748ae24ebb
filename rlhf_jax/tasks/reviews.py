"""Openings of reviews to be continued, with a hidden graded judge: stands for TL;DR, needs no file.

A prompt says which place is reviewed, may say which of its aspects the writer cares about, and
opens with another one; a continuation judges them. What the judge rewards and forbids is in
`gold.py`, what the corpus is made of in `grammar.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Annotated

import numpy as np

from rlhf_jax.config import Bounds, NonNegative, Seed
from rlhf_jax.tasks.api import HeldoutPercent, Split, is_heldout
from rlhf_jax.tasks.synthetic_reviews import gold as gold
from rlhf_jax.tasks.synthetic_reviews import grammar as grammar
from rlhf_jax.tasks.synthetic_reviews import words as lexicon

MAX_PROMPT_WORDS = 18
REVIEWS_KEPT = 16_384
"""Reviews that a process keeps: more than the checks of two configs read."""


@dataclass(frozen=True)
class Config:
    """The corpus. Another seed draws other references from the same distribution, for the same
    prompts.
    """

    heldout_percent: HeldoutPercent = 10  # share of prompts that are held out
    references_per_prompt: Annotated[int, Bounds(least=1, most=64)] = 4  # different ones
    max_words: Annotated[int, Bounds(least=8, most=64)] = 26  # of a reference, full stops included
    mood_spread: Annotated[float, Bounds(least=0, most=0.5)] = (
        0.35  # a writer praises with probability 0.5 - spread, 0.5 or 0.5 + spread
    )
    calm: NonNegative = (
        2.0  # loudness that the judge forgives; lower, and a reward is over-optimised sooner
    )
    seed: Seed = 0  # of the corpus


@cache
def openings_of(heldout_percent: int) -> Mapping[Split, np.ndarray]:
    """Indices of the openings of each split; a text is made at each call.

    They depend on the percentage alone: a process that makes the task again hashes no text again.
    """
    heldout_O = np.array(
        [
            is_heldout(grammar.opening(opening_index).text(), heldout_percent)
            for opening_index in range(grammar.NUM_OPENINGS)
        ]
    )
    found: dict[Split, np.ndarray] = {
        "train": np.flatnonzero(~heldout_O),
        "heldout": np.flatnonzero(heldout_O),
    }
    for openings in found.values():
        openings.flags.writeable = False
    return found


@cache
def _opening_text(opening_index: int) -> str:
    """The text of an opening. Every check of a config reads them all, about 3 MB."""
    return grammar.opening(opening_index).text()


@lru_cache(REVIEWS_KEPT)
def _review_text(opening_index: int, writer: int, max_words: int, mood_spread: float) -> str:
    """The review that a writer makes of an opening: a function of its arguments alone.

    Args:
      opening_index: of `grammar.opening`.
      writer: seed of its choices.
      max_words: of the review, full stops included.
      mood_spread: as in `Config`.
    """
    return grammar.Writer(grammar.opening(opening_index), writer, max_words, mood_spread).review()


class Reviews:
    """About 31,000 prompts of at most `MAX_PROMPT_WORDS` words; references of at most `max_words`
    words.
    """

    verifiable = False
    has_gold = True
    vocabulary = lexicon.vocabulary()

    def __init__(self, config: Config):
        self.config = config
        self._openings = openings_of(config.heldout_percent)

    def num_prompts(self, split: Split) -> int:
        return len(self._openings[split])

    def prompt(self, split: Split, index: int) -> str:
        return _opening_text(int(self._openings[split][index]))

    def references(self, split: Split, index: int) -> tuple[str, ...]:
        numbers = range(self.config.references_per_prompt)
        return tuple(self.reference(split, index, number) for number in numbers)

    def reference(self, split: Split, index: int, number: int) -> str:
        """Writes one reference, without the others: see `tasks.api.Task`."""
        opening_index, count = int(self._openings[split][index]), self.config.references_per_prompt
        writer = (self.config.seed * grammar.NUM_OPENINGS + opening_index) * count + number % count
        return _review_text(opening_index, writer, self.config.max_words, self.config.mood_spread)

    def digest(self) -> str:
        """Returns a constant: the texts depend on the config and the code alone."""
        return "generated"

    def judge(self, prompt: str, completion: str, finished: bool) -> float:
        """The gold score: the sum of `gold.terms`."""
        return float(sum(gold.terms(prompt, completion, finished, self.config.calm).values()))


def make(config: Config) -> Reviews:
    """The task of a config."""
    return Reviews(config)
