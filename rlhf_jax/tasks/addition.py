"""Sums of two numbers, `017+058=` to `075`: a verifiable task that needs no file."""

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


class Addition:
    """Prompts of the pairs. The sum is the one reference, and `judge` compares with it."""

    verifiable = True
    has_gold = True
    vocabulary = tuple("0123456789+=")

    def __init__(self, config: Config):
        self._width = len(str(config.limit - 1)) if config.padded else 1
        self._pairs: dict[Split, list[tuple[int, int]]] = {"train": [], "heldout": []}
        for a in range(config.limit):
            for b in range(config.limit - a):
                # Both orders of a pair fall on one side: 58+17 in training would tell the model
                # 17+58.
                heldout = is_heldout(self._question(min(a, b), max(a, b)), config.heldout_percent)
                self._pairs["heldout" if heldout else "train"].append((a, b))
        for split, pairs in self._pairs.items():
            if not pairs and (split == "train" or config.heldout_percent):
                raise Refusal(
                    f"addition has no {split} pair with limit={config.limit}, "
                    f"heldout_percent={config.heldout_percent};"
                    " accepted: a limit of 10 or more, a percentage of 0 to 99"
                )

    def num_prompts(self, split: Split) -> int:
        return len(self._pairs[split])

    def prompt(self, split: Split, index: int) -> str:
        return self._question(*self._pairs[split][index])

    def references(self, split: Split, index: int) -> tuple[str, ...]:
        return (self._number(sum(self._pairs[split][index])),)

    def digest(self) -> str:
        """Returns a constant: the texts depend on the config and the code alone."""
        return "generated"

    def judge(self, prompt: str, completion: str, finished: bool) -> float:
        """Returns 1.0 if the completion ended and is the sum, digit by digit, else 0.0.

        Raises Refusal for a prompt of another task.
        """
        a, plus, b = prompt.removesuffix("=").partition("+")
        if not (plus and prompt.endswith("=") and a.isdecimal() and b.isdecimal()):
            raise Refusal(
                f"{prompt!r} is not a prompt of addition: they read like {self._question(17, 58)}"
            )
        return float(finished and completion == self._number(int(a) + int(b)))

    def _question(self, a: int, b: int) -> str:
        return f"{self._number(a)}+{self._number(b)}="

    def _number(self, value: int) -> str:
        return str(value).zfill(self._width)


def make(config: Config) -> Addition:
    """The task of a config; Refusal where a side would hold no prompt."""
    return Addition(config)
