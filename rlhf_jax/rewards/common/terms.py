"""Reads the reward of a config: one name, or a sum of names with weights."""

import math
import re

from rlhf_jax import registry
from rlhf_jax.refusal import Refusal
from rlhf_jax.rewards.api import Term

PLUS = re.compile(r"(?<![0-9.][eE])\+")  # not that of 1e+3
FACTOR = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*\s*(.*\S)\s*")
ACCEPTED = 'a name, or names with weights such as "learned + 0.1 * my_lab.rewards:brevity"'


def parse(text: str) -> tuple[Term, ...]:
    """The terms of a reward's text, in its order. Raises Refusal for a text that is no sum, or a
    name given twice.

    >>> [(term.label, term.weight) for term in parse("learned + 0.1 * my_lab.rewards:brevity")]
    [('learned', 1.0), ('brevity', 0.1)]
    """
    terms: list[Term] = []
    for term_text in PLUS.split(text):
        factor = FACTOR.fullmatch(term_text)
        name, weight = (factor[2], float(factor[1])) if factor else (term_text.strip(), 1.0)
        if (
            not name
            or "*" in name
            or any(space in name for space in "\t\n")
            or not math.isfinite(weight)
        ):
            raise Refusal(
                f"reward is {text!r}; its term {term_text.strip()!r} is neither; accepted: {ACCEPTED}"
            )
        if name in [term.name for term in terms]:
            raise Refusal(
                f"reward is {text!r}, which names {name!r} twice; accepted: one weight for each"
            )
        terms.append(
            Term(name, _free(registry.label(name), [term.label for term in terms]), weight)
        )
    return tuple(terms)


def is_plain(terms: tuple[Term, ...]) -> bool:
    """True for one reward of weight 1, whose scores are used as they are."""
    return len(terms) == 1 and terms[0].weight == 1.0


def _free(label: str, taken: list[str]) -> str:
    """The label, numbered where an earlier term has it."""
    number = 2
    free = label
    while free in taken:
        free, number = f"{label}_{number}", number + 1
    return free
