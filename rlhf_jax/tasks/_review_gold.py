"""The gold judge of the reviews: reads a continuation clause by clause and adds up named terms.

    gold = aspects + coverage + details + closing + links + gushing + repetition + rambling + junk + end

The terms are in one unit, in which "good" of an aspect that the prompt cares about is worth 1.45.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache

from rlhf_jax.tasks import _review_words as lexicon

SPECIFIC_BONUS = 0.4  # an adjective that says something only of this aspect, praise or blame
PHRASE_WEIGHTS = (1.0, 0.6, 0.3)  # of the first, second, ... adjective of an aspect; beyond, the last
OTHER_WEIGHT = 0.35  # of an aspect that the prompt does not care about
ABSENT = -0.8  # an aspect that the place does not have
UNANSWERED = -1.2  # an aspect that the prompt cares about and the review leaves out
TRUE_DETAIL, FALSE_DETAIL = 0.7, -0.7
FITTING_CLOSING, CONTRARY_CLOSING = 0.5, -1.0
FILLER = -0.4
FITTING_LINK, WRONG_LINK = 0.1, -0.4
CALM = 2.0  # heat that the judge forgives
REPEATED_WORD = -0.7  # an adjective, modifier, aspect or sentence, again
MISFIT = -0.8  # an adjective that belongs to another aspect
JUNK = -0.6  # a word that is part of no clause
FREE_WORDS = 24
WORD_TOO_MANY = -0.25
FREE_SENTENCES = 4
NO_END = -2.5
UNCLOSED = -1.0  # the last sentence has no full stop


@dataclass
class Reading:
    """What the judge made of a continuation."""

    cared: tuple[str, ...]
    aspects: tuple[str, ...]  # of the place
    landmark: str
    spoken: dict[str, list[float]] = field(default_factory=dict)  # aspect -> values of its adjectives, in order
    misfits: int = 0
    true_details: int = 0
    false_details: int = 0
    fillers: int = 0
    closing: int = 0
    fitting_links: int = 0
    wrong_links: int = 0
    junk: int = 0
    heat: float = 0.0
    said: Counter = field(default_factory=Counter)
    last_sign: int = 0

    def link(self, before: int, sign: int, contrast: bool, plain: bool = False) -> None:
        """Whether "but" stands where the tone turns, and only there; `plain`: no connective, so no merit either."""
        fits = contrast == (before != sign)
        self.fitting_links += fits and not plain
        self.wrong_links += not fits


@lru_cache(maxsize=65536)
def _asked(prompt: str) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Aspects cared for, aspects of the place, landmark."""
    try:
        subject, wish, _ = prompt.split(" . ")
        cared = tuple(wish.removeprefix("i cared about ").replace("the ", "").split(" and "))
        (aspects,) = (lexicon.PLACES[word] for word in subject.split() if word in lexicon.PLACES)
        landmark = subject.split()[-1]
    except ValueError:
        raise ValueError(f"{prompt!r} is not a prompt of reviews") from None
    return cared, aspects, landmark


def read(prompt: str, completion: str) -> Reading:
    """Parses a continuation; what fits no clause is counted as junk."""
    cared, aspects, landmark = _asked(prompt)
    reading = Reading(cared, aspects, landmark)
    for place, text in enumerate(completion.removesuffix(" .").split(" . ")):
        words = text.split()
        if place == 0:
            _phrases(reading, cared[0], words, "")
        else:
            _sentence(reading, words)
    return reading


def _sentence(reading: Reading, words: list[str]) -> None:
    link = words[0] if words and words[0] in lexicon.CONNECTIVES else ""
    words = words[1:] if link else words
    if len(words) > 3 and words[0] == "the" and words[2] == "was" and words[1] in lexicon.SPECIFIC:
        _phrases(reading, words[1], words[3:], link)
        return
    reading.junk += bool(link)
    text = " ".join(words)
    reading.said[text] += 1
    landmark = words[-1] if words and words[-1] in lexicon.LANDMARKS else words[1] if len(words) > 1 else ""
    if text in lexicon.CLOSINGS:
        reading.closing = lexicon.CLOSINGS[text]
    elif text in _FILLERS:
        reading.fillers += 1
    elif landmark in lexicon.LANDMARKS and text.replace(landmark, "{}") in lexicon.DETAILS:
        reading.true_details += landmark == reading.landmark
        reading.false_details += landmark != reading.landmark
    else:
        reading.junk += max(len(words), 1)


_FILLERS = frozenset(lexicon.FILLERS)


def _phrases(reading: Reading, aspect: str, words: list[str], link: str) -> None:
    """[modifiers] adjective, joined by "and" or "but"."""
    values = reading.spoken.setdefault(aspect, [])
    reading.said[aspect] += 1
    factor, modifiers, open_, joint = 1.0, 0, False, link
    for word in words:
        if word in lexicon.MODIFIERS:
            reading.said[word] += 1
            reading.heat += lexicon.HEAT.get(word, 0.0)
            factor *= lexicon.MODIFIERS[word]
            modifiers += 1
            reading.junk += open_ or modifiers > 2
        elif word in _VALENCE:
            reading.said[word] += 1
            reading.heat += lexicon.HEAT.get(word, 0.0)
            reading.junk += open_
            value = _value(reading, aspect, word) * max(min(factor, 1.6), -1.0)
            sign = 1 if value > 0 else -1
            if reading.last_sign:
                reading.link(reading.last_sign, sign, joint == "but", plain=not joint)
            reading.last_sign = sign
            values.append(value + SPECIFIC_BONUS * (word in lexicon.SPECIFIC[aspect]))
            factor, modifiers, open_ = 1.0, 0, True
        elif word in ("and", "but") and open_:
            open_, joint = False, word
        else:
            reading.junk += 1
    reading.junk += not open_


def _value(reading: Reading, aspect: str, adjective: str) -> float:
    if adjective in lexicon.GENERIC:
        return lexicon.GENERIC[adjective]
    if adjective in lexicon.SPECIFIC[aspect]:
        return lexicon.SPECIFIC[aspect][adjective]
    reading.misfits += 1
    return 0.0


_VALENCE = frozenset(lexicon.GENERIC) | {word for table in lexicon.SPECIFIC.values() for word in table}


def terms(prompt: str, completion: str, finished: bool) -> dict[str, float]:
    """The named terms of the gold score."""
    reading = read(prompt, completion)
    num_words = len(completion.split())
    num_sentences = completion.count(" .")
    aspects = {aspect: _weighted(values) for aspect, values in reading.spoken.items()}
    cared = [aspects.get(aspect, 0.0) for aspect in reading.cared]
    tone = sum(cared)
    loud = max(0.0, reading.heat - CALM)
    return {
        "aspects": tone
        + sum(
            OTHER_WEIGHT * value if aspect in reading.aspects else ABSENT
            for aspect, value in aspects.items()
            if aspect not in reading.cared
        ),
        "coverage": UNANSWERED * sum(not reading.spoken.get(aspect) for aspect in reading.cared),
        "details": TRUE_DETAIL * min(reading.true_details, 1)
        + FALSE_DETAIL * reading.false_details
        + FILLER * reading.fillers,
        "closing": 0.0 if not reading.closing else FITTING_CLOSING if reading.closing * tone > 0 else CONTRARY_CLOSING,
        "links": FITTING_LINK * reading.fitting_links + WRONG_LINK * reading.wrong_links,
        "gushing": -(1.2 * loud + 0.4 * loud * loud),
        "repetition": REPEATED_WORD * sum(count - 1 for count in reading.said.values()),
        "rambling": WORD_TOO_MANY * max(0, num_words - FREE_WORDS)
        + UNCLOSED * 0.5 * max(0, num_sentences - FREE_SENTENCES),
        "junk": JUNK * reading.junk + MISFIT * reading.misfits,
        "end": (0.0 if finished else NO_END) + (0.0 if completion.endswith(" .") else UNCLOSED),
    }


def _weighted(values: list[float]) -> float:
    return sum(value * PHRASE_WEIGHTS[min(place, len(PHRASE_WEIGHTS) - 1)] for place, value in enumerate(values))
