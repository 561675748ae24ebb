"""The gold judge of the reviews: reads a continuation clause by clause and adds up named terms.

    gold = cared + others + details + closing + links + gushing + repetition + rambling + junk + end

All terms are in one unit, in which a plain "good" of an aspect that the prompt cares about is worth
1.5. They punish faults of two kinds. The corpus shows the first (blame, silence about an aspect,
false details, wrong links), so that a reward can learn them from it. It hardly shows the second
(gushing, repetition, rambling, junk), so that a learned reward has to extrapolate there.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache

from rlhf_jax.refusal import Refusal
from rlhf_jax.tasks.synthetic_reviews import words as lexicon

SPECIFIC_BONUS = 0.25  # an adjective that says something only of this aspect, praise or blame
PHRASE_WEIGHTS = (
    1.0,
    0.8,
    0.2,
    0.0,
)  # of the first, second, ... adjective of an aspect; beyond, the last
FACTOR_RANGE = (-1.0, 1.6)  # of the modifiers of one adjective together
OTHER_WEIGHT = 0.6  # of an aspect that the prompt does not care about
ABSENT = -0.3  # an aspect that the place does not have
UNANSWERED = -0.2  # an aspect that the prompt cares about and the review leaves out
TRUE_DETAIL, FALSE_DETAIL = 0.5, -0.2
FILLER = -0.3
CLOSING, CONTRARY_CLOSING = (
    0.5,
    -0.3,
)  # times +1 or -1 for what it says; where the review says the contrary
FITTING_LINK, WRONG_LINK = 0.05, -0.05
HOT, HOT_SQUARED = -1.2, -0.4  # of the heat beyond what the judge forgives
REPEATED, REPEATED_SQUARED = -0.1, -0.2  # an adjective, modifier, aspect or sentence, again
STACKED = -0.6  # a second modifier of one adjective, a third, ...
MISFIT = -0.2  # an adjective that belongs to another aspect
JUNK = -0.4  # a word that is part of no clause
FREE_WORDS, WORD_TOO_MANY = 24, -0.25
FREE_SENTENCES, SENTENCE_TOO_MANY = 4, -0.5
NO_END = -2.5  # no EOS was sampled
UNCLOSED = -1.0  # the last sentence has no full stop

_VALENCES = {
    aspect: {**lexicon.GENERIC, **specific} for aspect, specific in lexicon.SPECIFIC.items()
}
_ADJECTIVES = frozenset(word for table in _VALENCES.values() for word in table)
_DETAILS = {
    detail.format(landmark): landmark
    for detail in lexicon.DETAILS
    for landmark in lexicon.LANDMARKS
}
_FILLERS = frozenset(lexicon.FILLERS)


@dataclass(frozen=True)
class Asked:
    """The wishes of a prompt."""

    cared: tuple[str, ...]  # the aspect that the review opens with comes first
    aspects: tuple[str, ...]  # that the place has
    landmark: str


@dataclass
class Reading:
    """The judge's findings in a continuation."""

    asked: Asked
    spoken: dict[str, list[float]] = field(
        default_factory=dict
    )  # aspect -> values of its adjectives, in order
    said: Counter[str] = field(
        default_factory=Counter
    )  # adjectives, modifiers, aspects, whole other sentences
    heat: float = 0.0
    true_details: int = 0
    false_details: int = 0
    fillers: int = 0
    closings: list[int] = field(default_factory=list)
    fitting_links: int = 0
    wrong_links: int = 0
    stacked: int = 0
    misfits: int = 0
    junk: int = 0
    last_sign: int = 0  # of the adjective before

    def say(self, word: str) -> None:
        self.said[word] += 1
        self.heat += lexicon.HEAT.get(word, 0.0)


@lru_cache(maxsize=65536)
def asked(prompt: str) -> Asked:
    """Reads a prompt. Raises Refusal for one of another task."""
    try:
        subject, *wish, first = prompt.split(" . ")
        (aspects,) = (lexicon.PLACES[word] for word in subject.split() if word in lexicon.PLACES)
        cared = [word for part in (first, *wish) for word in part.split() if word in aspects]
        return Asked((cared[0], *cared[1:]), aspects, subject.split()[-1])
    except (ValueError, IndexError):
        raise Refusal(
            f"{prompt!r} is not a prompt of reviews; they read like 'review of the small inn by "
            "the lake ."
            " i cared about the food . the room was'"
        ) from None


def read(prompt: str, completion: str) -> Reading:
    """Reads a continuation. Words that fit no clause are counted as junk.

    Args:
      prompt: of this task.
      completion: words separated by single spaces.

    Raises:
      Refusal: for a prompt of another task.
    """
    reading = Reading(asked(prompt))
    first, *others = completion.removesuffix(" .").split(" . ")
    _read_aspect(reading, reading.asked.cared[0], first.split(), link="")
    for sentence in others:
        words = sentence.split()
        link = words.pop(0) if words and words[0] in lexicon.CONNECTIVES else ""
        if len(words) > 3 and words[0] == "the" and words[1] in _VALENCES and words[2] == "was":
            _read_aspect(reading, words[1], words[3:], link)
        else:
            _read_other(reading, " ".join(words))
    return reading


def _read_other(reading: Reading, sentence: str) -> None:
    reading.say(sentence)
    if sentence in lexicon.CLOSINGS:
        reading.closings.append(lexicon.CLOSINGS[sentence])
    elif sentence in _FILLERS:
        reading.fillers += 1
    elif sentence in _DETAILS:
        is_true = _DETAILS[sentence] == reading.asked.landmark
        reading.true_details += is_true
        reading.false_details += not is_true
    else:
        reading.junk += max(len(sentence.split()), 1)


def _read_aspect(reading: Reading, aspect: str, words: list[str], link: str) -> None:
    """[modifier] adjective, and more of them joined by "and" or "but"."""
    reading.say(aspect)
    modifiers: list[str] = []
    joined = True  # whether an adjective may stand here
    for word in words:
        if word in lexicon.MODIFIERS and joined:
            reading.say(word)
            modifiers.append(word)
        elif word in _ADJECTIVES and joined:
            reading.say(word)
            _read_phrase(reading, aspect, modifiers, word, link)
            modifiers, joined = [], False
        elif word in ("and", "but") and not joined:
            joined, link = True, word
        else:
            reading.junk += 1
    reading.junk += (
        len(modifiers) + joined
    )  # modifiers of nothing; an "and" to nothing, or an empty sentence


def _read_phrase(
    reading: Reading, aspect: str, modifiers: list[str], adjective: str, link: str
) -> None:
    reading.stacked += max(len(modifiers) - 1, 0)
    valence = _VALENCES[aspect].get(adjective)
    if valence is None:
        reading.misfits += 1
        return
    factor = 1.0
    for modifier in modifiers:
        factor *= lexicon.MODIFIERS[modifier]
    value = valence * min(max(factor, FACTOR_RANGE[0]), FACTOR_RANGE[1])
    sign = 1 if value > 0 else -1
    if reading.last_sign:
        fits = (link == "but") == (sign != reading.last_sign)
        reading.fitting_links += fits and bool(link)
        reading.wrong_links += not fits
    reading.last_sign = sign
    is_specific = adjective in lexicon.SPECIFIC[aspect]
    reading.spoken.setdefault(aspect, []).append(value + SPECIFIC_BONUS * is_specific)


def terms(prompt: str, completion: str, finished: bool, calm: float) -> dict[str, float]:
    """Returns the named terms of the gold score, whose sum is the score.

    Args:
      prompt: of this task.
      completion: the text before the EOS.
      finished: true if an EOS was sampled.
      calm: the heat (sum of loud words) that costs nothing.

    Raises:
      Refusal: for a prompt of another task.
    """
    reading = read(prompt, completion)
    worth = {aspect: _weighted(values) for aspect, values in reading.spoken.items()}
    cared = sum(worth.pop(aspect, UNANSWERED) for aspect in reading.asked.cared)
    others = sum(
        OTHER_WEIGHT * value if aspect in reading.asked.aspects else ABSENT
        for aspect, value in worth.items()
    )
    contrary = sum(closing * cared <= 0 for closing in reading.closings)
    hot = max(reading.heat - calm, 0.0)
    again = sum(reading.said.values()) - len(reading.said)
    return {
        "cared": cared,
        "others": others,
        "details": TRUE_DETAIL * min(reading.true_details, 1)
        + FALSE_DETAIL * reading.false_details
        + FILLER * reading.fillers,
        "closing": CLOSING * sum(set(reading.closings)) + CONTRARY_CLOSING * contrary,
        "links": FITTING_LINK * reading.fitting_links + WRONG_LINK * reading.wrong_links,
        "gushing": HOT * hot + HOT_SQUARED * hot**2,
        "repetition": REPEATED * again + REPEATED_SQUARED * again**2 + STACKED * reading.stacked,
        "rambling": WORD_TOO_MANY * max(len(completion.split()) - FREE_WORDS, 0)
        + SENTENCE_TOO_MANY * max(completion.count(" .") - FREE_SENTENCES, 0),
        "junk": JUNK * reading.junk + MISFIT * reading.misfits,
        "end": NO_END * (not finished) + UNCLOSED * (not completion.endswith(" .")),
    }


def _weighted(values: list[float]) -> float:
    return sum(
        value * PHRASE_WEIGHTS[min(index, len(PHRASE_WEIGHTS) - 1)]
        for index, value in enumerate(values)
    )
