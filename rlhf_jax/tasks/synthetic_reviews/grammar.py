"""The corpus of the reviews: prompts by mixed-radix counting, continuations drawn from a
probabilistic grammar.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from rlhf_jax.tasks.synthetic_reviews import words as lexicon


@dataclass(frozen=True)
class Opening:
    """The opening of a review; its text is `text()`."""

    place: str
    adjective: str
    location: str
    cared: tuple[
        str, ...
    ]  # what the review opens with, and what the writer says to care about, if anything

    def text(self) -> str:
        subject = f"{self.adjective} {self.place}".strip()
        wish = "".join(f"i cared about the {aspect} . " for aspect in self.cared[1:])
        return f"review of the {subject} {self.location} . {wish}the {self.cared[0]} was"


def opening(index: int) -> Opening:
    """The opening at `index`, 0 <= index < NUM_OPENINGS."""
    rest, cared = divmod(index, NUM_CARED)
    rest, adjective = divmod(rest, len(lexicon.PLACE_ADJECTIVES))
    place, location = divmod(rest, len(lexicon.LOCATIONS))
    return Opening(
        PLACES[place],
        lexicon.PLACE_ADJECTIVES[adjective],
        lexicon.LOCATIONS[location],
        CARED[place][cared],
    )


def _cared(aspects: Sequence[str]) -> list[tuple[str, ...]]:
    return [(aspect,) for aspect in aspects] + list(itertools.permutations(aspects, 2))


PLACES = tuple(lexicon.PLACES)
CARED = [_cared(aspects) for aspects in lexicon.PLACES.values()]
"""What may be cared about, for each of `PLACES`."""
NUM_CARED = len(CARED[PLACES.index("hotel")])
NUM_OPENINGS = (
    len(lexicon.PLACES) * len(lexicon.LOCATIONS) * len(lexicon.PLACE_ADJECTIVES) * NUM_CARED
)


def rarity(word: str) -> float:
    """Weight of a word in the corpus. Loud words are rare, so that the corpus hardly shows how the
    judge scores many of them.
    """
    return 0.4 if word == "not" else 1.0 / (1.0 + lexicon.HEAT.get(word, 0.0))


@cache
def adjectives(aspect: str | None, praise: bool) -> Mapping[str, float]:
    """Weights of the adjectives of a sign: those of one aspect, or None: those of any."""
    table = lexicon.GENERIC if aspect is None else lexicon.SPECIFIC[aspect]
    return {word: rarity(word) for word, value in table.items() if (value > 0) == praise}


MODIFIERS = {word: rarity(word) for word in lexicon.MODIFIERS}


class Writer:
    """Writes one continuation, sentence by sentence, from one stream of random numbers."""

    def __init__(self, opening: Opening, seed: int, max_words: int, mood_spread: float):
        self.opening = opening
        self.random = Random(seed)
        self.max_words = max_words
        mood = self.pick({-1.0: 3.0, 0.0: 4.0, 1.0: 3.0})
        self.cheer = 0.5 + mood_spread * mood  # probability that an adjective praises
        self.sign = self.first_sign = 0  # of the last phrase, and of the first one of its sentence

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def pick(self, weights: Mapping):
        """Draws a key with probability proportional to its weight.

        Uses `random()` alone: Python promises its sequence for every version.
        """
        mark = self.random.random() * sum(weights.values())
        possible = [key for key, weight in weights.items() if weight > 0]
        for key in possible[:-1]:
            mark -= weights[key]
            if mark < 0:
                return key
        return possible[-1]

    def review(self) -> str:
        sentences = [self.phrases(self.opening.cared[0])]
        for optional in (self.another, self.detail, self.filler, self.closing):
            sentence = optional()
            if (
                sentence
                and sum(map(len, sentences)) + len(sentences) + len(sentence) + 1 <= self.max_words
            ):
                sentences.append(sentence)
        return " ".join(word for sentence in sentences for word in [*sentence, "."])

    def another(self) -> list[str]:
        others = [
            aspect
            for aspect in lexicon.PLACES[self.opening.place]
            if aspect not in self.opening.cared
        ]
        second = self.opening.cared[1:]
        what = self.pick(
            {"second": 0.65 if second else 0.0, "other": 0.15 if second else 0.45, "none": 0.2}
        )
        if what == "none":
            return []
        aspect = second[0] if what == "second" else self.pick(dict.fromkeys(others, 1.0))
        before, phrases = self.sign, self.phrases(aspect)
        fitting, other = ("also", "but") if before == self.first_sign else ("but", "also")
        link = self.pick({"": 0.5, fitting: 0.35, other: 0.15})
        return [*link.split(), "the", aspect, "was", *phrases]

    def phrases(self, aspect: str) -> list[str]:
        first, sign = self.phrase(aspect)
        self.first_sign = self.sign = sign
        if not self.chance(0.45):
            return first
        second, self.sign = self.phrase(aspect)
        fitting, other = ("and", "but") if self.sign == sign else ("but", "and")
        return [*first, self.pick({fitting: 0.75, other: 0.25}), *second]

    def phrase(self, aspect: str) -> tuple[list[str], int]:
        """A modifier or none, an adjective, and the sign of both together."""
        praise = self.chance(self.cheer)
        adjective = self.pick(adjectives(aspect if self.chance(0.5) else None, praise))
        modifier = self.pick(MODIFIERS) if self.chance(0.45) else ""
        negated = modifier == "not"
        return [*modifier.split(), adjective], 1 if praise != negated else -1

    def detail(self) -> list[str]:
        if not self.chance(0.4):
            return []
        landmark = self.opening.location.split()[-1]
        if self.chance(0.25):
            landmark = self.pick(dict.fromkeys(lexicon.LANDMARKS, 1.0))
        return self.pick(dict.fromkeys(lexicon.DETAILS, 1.0)).format(landmark).split()

    def filler(self) -> list[str]:
        return self.pick(dict.fromkeys(lexicon.FILLERS, 1.0)).split() if self.chance(0.12) else []

    def closing(self) -> list[str]:
        if not self.chance(0.4):
            return []
        sign = 1 if self.chance(self.cheer) else -1
        return self.pick(
            {text: 1.0 for text, direction in lexicon.CLOSINGS.items() if direction == sign}
        ).split()
