"""Sums of two numbers, `017+058=` to `075`: a verifiable task that needs no file.

For a model that was trained on text, `spaced` writes `17 + 58 =` and `worked_examples` puts solved
sums before it, a line each.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated

from rlhf_jax.config import Bounds
from rlhf_jax.refusal import Refusal
from rlhf_jax.tasks.api import HeldoutPercent, Split, is_heldout


@dataclass(frozen=True)
class Config:
    """All pairs a, b >= 0 with a + b < limit, in both orders: 20,100 prompts for 200.

    Padded numbers all have the digits of limit - 1, so that a digit of the sum stands at a fixed
    distance from its two; without padding a small decoder learns sums late and abruptly.
    """

    limit: Annotated[int, Bounds(least=2, most=2_000)] = 200  # sums are below it
    heldout_percent: HeldoutPercent = 10  # share of pairs that are held out
    padded: bool = True  # numbers have leading zeros
    # numbers of digits of the two terms, in either order: (1, 2) has 7+58 and 58+7; (): any
    digits: tuple[Annotated[int, Bounds(least=1, most=4)], ...] = ()
    spaced: bool = False  # "17 + 58 ="; white space around an answer is then ignored
    # solved sums before each prompt, of training pairs; they need spaced=True
    worked_examples: Annotated[int, Bounds(least=0, most=16)] = 0

    def __post_init__(self) -> None:
        if len(self.digits) not in (0, 2):
            raise Refusal(
                f"task.digits is {self.digits}; accepted: (), or two numbers such as (1, 2)"
            )
        if self.worked_examples and not self.spaced:
            raise Refusal(
                f"task.worked_examples is {self.worked_examples} and task.spaced is False; "
                "accepted: task.spaced=True, or no worked example"
            )


class Addition:
    """Prompts of the pairs. The sum is the one reference, and `judge` compares with it."""

    verifiable = True
    has_gold = True

    def __init__(self, config: Config):
        self.config = config
        self.vocabulary = tuple("0123456789+=" + " \n" * config.spaced)
        self._width = len(str(config.limit - 1)) if config.padded else 1
        self._pairs: dict[Split, list[tuple[int, int]]] = {"train": [], "heldout": []}
        for a in range(config.limit):
            for b in range(config.limit - a):
                if config.digits and sorted(map(_num_digits, (a, b))) != sorted(config.digits):
                    continue
                # Both orders of a pair fall on one side: 58+17 in training would tell the model
                # 17+58.
                heldout = is_heldout(self._question(min(a, b), max(a, b)), config.heldout_percent)
                self._pairs["heldout" if heldout else "train"].append((a, b))
        for split, pairs in self._pairs.items():
            if not pairs and (split == "train" or config.heldout_percent):
                raise Refusal(
                    f"addition has no {split} pair with limit={config.limit}, "
                    f"heldout_percent={config.heldout_percent}{self._with_digits()};"
                    " accepted: a limit of 10 or more, a percentage of 0 to 99"
                )
        if len({frozenset(pair) for pair in self._pairs["train"]}) <= config.worked_examples:
            raise Refusal(
                f"task.worked_examples is {config.worked_examples}; accepted: fewer than the "
                f"training pairs that limit={config.limit}{self._with_digits()} has"
            )

    def num_prompts(self, split: Split) -> int:
        return len(self._pairs[split])

    def prompt(self, split: Split, index: int) -> str:
        pair = self._pairs[split][index]
        solved = [
            f"{self._question(*other)}{self._answer(*other)}\n" for other in self._others(pair)
        ]
        return "".join(solved) + self._question(*pair)

    def references(self, split: Split, index: int) -> tuple[str, ...]:
        return (self._answer(*self._pairs[split][index]),)

    def digest(self) -> str:
        """Returns a constant: the texts depend on the config and the code alone."""
        return "generated"

    def judge(self, prompt: str, completion: str, finished: bool) -> float:
        """Returns 1.0 if the completion ended and is the sum, digit by digit, else 0.0.

        Raises Refusal for a prompt of another task.
        """
        space = " " * self.config.spaced
        question = prompt.rpartition("\n")[2] if self.config.spaced else prompt
        a, plus, b = question.removesuffix(f"{space}=").partition(f"{space}+{space}")
        if not (plus and question.endswith(f"{space}=") and a.isdecimal() and b.isdecimal()):
            raise Refusal(
                f"{prompt!r} is not a prompt of addition: they read like {self._question(17, 58)}"
            )
        answer = completion.strip() if self.config.spaced else completion
        return float(finished and answer == self._number(int(a) + int(b)))

    def _others(self, pair: tuple[int, int]) -> list[tuple[int, int]]:
        """The pairs of a prompt's worked examples: training pairs, none twice in either order.

        The hash of the prompt's pair chooses them, so that a prompt is always the same text.
        """
        train, taken, found = self._pairs["train"], {frozenset(pair)}, []
        place = 0
        while len(found) < self.config.worked_examples:
            digest = hashlib.sha256(f"{pair[0]} {pair[1]} {place}".encode()).digest()
            other = train[int.from_bytes(digest[:8], "big") % len(train)]
            if frozenset(other) not in taken:
                taken.add(frozenset(other))
                found.append(other)
            place += 1
        return found

    def _with_digits(self) -> str:
        return f", digits={self.config.digits}" if self.config.digits else ""

    def _question(self, a: int, b: int) -> str:
        space = " " * self.config.spaced
        return f"{self._number(a)}{space}+{space}{self._number(b)}{space}="

    def _answer(self, a: int, b: int) -> str:
        return f"{' ' * self.config.spaced}{self._number(a + b)}"

    def _number(self, value: int) -> str:
        return str(value).zfill(self._width)


def _num_digits(value: int) -> int:
    return len(str(value))


def make(config: Config) -> Addition:
    """The task of a config; Refusal where a side would hold no prompt."""
    return Addition(config)
