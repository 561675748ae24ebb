"""Sums of several terms with the running totals written out: a verifiable task whose completions have
lengths that the prompts decide.

    prompt      a3b5c8=        the terms 3, 5 and 8, each after a letter
    completion  b08c16         the total up to each term but the first, after the term's letter

The answer is the last total. A completion of n terms has n - 1 totals, so that lengths stay spread
while a policy learns. The letters let a small decoder find a term by what stands before it.

With `reversed_percent` some training prompts have a reference whose totals are written backwards,
b80c61, which is not the answer. A policy that has learned both ways to write from the references has
one to choose, and no completion is longer for it.
"""

import hashlib
import re
import string
from dataclasses import dataclass
from typing import Annotated

from rlhf_jax.config import Bounds
from rlhf_jax.refusal import Refusal
from rlhf_jax.tasks.api import HeldoutPercent, Split, is_heldout

LETTERS = string.ascii_lowercase


@dataclass(frozen=True)
class Config:
    """Terms of 1 to `max_term`, `least_terms` to `most_terms` of them. The totals are padded to the
    digits of the largest one, so that each has as many tokens.
    """

    least_terms: Annotated[int, Bounds(least=2, most=26)] = 2  # of a sum
    most_terms: Annotated[int, Bounds(least=2, most=26)] = 12  # of a sum
    max_term: Annotated[int, Bounds(least=1, most=9)] = 8  # the terms have one digit
    # sums that are drawn of each number of terms; short ones repeat, and are taken once
    draws: Annotated[int, Bounds(least=1, most=100_000)] = 1200
    heldout_percent: HeldoutPercent = 10  # share of prompts that are held out
    # share of training prompts whose reference has the digits of each total in reverse order
    reversed_percent: Annotated[int, Bounds(least=0, most=100)] = 0

    def __post_init__(self) -> None:
        if self.least_terms > self.most_terms:
            raise Refusal(
                f"task.least_terms is {self.least_terms}; accepted: at most task.most_terms = "
                f"{self.most_terms}"
            )


class RunningSums:
    """The sums. The running totals are the one reference; `judge` reads the last total."""

    verifiable = True
    has_gold = True

    def __init__(self, config: Config):
        self.config = config
        self.vocabulary = tuple(string.digits + LETTERS[: config.most_terms] + "=")
        self._width = len(str(config.most_terms * config.max_term))
        self._sums: dict[Split, list[tuple[int, ...]]] = {"train": [], "heldout": []}
        for num_terms in range(config.least_terms, config.most_terms + 1):
            # a dict keeps the order of the draws, and each sum once
            for terms in dict.fromkeys(self._draw(num_terms, n) for n in range(config.draws)):
                heldout = is_heldout(_question(terms), config.heldout_percent)
                self._sums["heldout" if heldout else "train"].append(terms)
        for split, sums in self._sums.items():
            if not sums and (split == "train" or config.heldout_percent):
                raise Refusal(
                    f"running_sums has no {split} prompt with task.draws={config.draws} and "
                    f"task.heldout_percent={config.heldout_percent}; accepted: more draws, a "
                    "percentage of 0 to 99"
                )

    def num_prompts(self, split: Split) -> int:
        return len(self._sums[split])

    def prompt(self, split: Split, index: int) -> str:
        return _question(self._sums[split][index])

    def references(self, split: Split, index: int) -> tuple[str, ...]:
        terms = self._sums[split][index]
        entries = [
            self._entry(LETTERS[place], sum(terms[: place + 1])) for place in range(1, len(terms))
        ]
        # another text than the one that decides the split: the two choices are independent
        backwards = is_heldout(f"backwards {_question(terms)}", self.config.reversed_percent)
        if split == "train" and backwards:
            entries = [entry[0] + entry[:0:-1] for entry in entries]
        return ("".join(entries),)

    def digest(self) -> str:
        """Returns a constant: the texts depend on the config and the code alone."""
        return "generated"

    def judge(self, prompt: str, completion: str, finished: bool) -> float:
        """Returns 1.0 if the completion ended with the sum after the last term's letter, else 0.0.

        The totals before it are not judged.

        Raises Refusal for a prompt of another task.
        """
        terms = re.findall(r"([a-z])(\d)", prompt)
        letters = "".join(letter for letter, _ in terms)
        if _question([int(term) for _, term in terms]) != prompt or not 2 <= len(letters) <= 26:
            raise Refusal(f"{prompt!r} is not a prompt of running_sums: they read like a3b5c8=")
        total = sum(int(term) for _, term in terms)
        return float(finished and completion.endswith(self._entry(letters[-1], total)))

    def _draw(self, num_terms: int, number: int) -> tuple[int, ...]:
        """The terms of a draw, from a hash: equal on every platform."""
        digest = hashlib.sha256(f"{num_terms} {number}".encode()).digest()
        value, terms = int.from_bytes(digest, "big"), []
        for _ in range(num_terms):
            value, term = divmod(value, self.config.max_term)
            terms.append(term + 1)
        return tuple(terms)

    def _entry(self, letter: str, total: int) -> str:
        return f"{letter}{str(total).zfill(self._width)}"


def _question(terms: tuple[int, ...] | list[int]) -> str:
    """The prompt of some terms."""
    return "".join(map("{}{}".format, LETTERS, terms)) + "="


def make(config: Config) -> RunningSums:
    """The task of a config; Refusal where a side would hold no prompt."""
    return RunningSums(config)
