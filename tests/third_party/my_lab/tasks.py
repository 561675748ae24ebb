"""A task: words to be said in the other order."""

from dataclasses import dataclass
from itertools import permutations
from typing import Annotated, Any

from rlhf_jax.config import Bounds
from rlhf_jax.tasks.api import Split, is_heldout

WORDS = ("ape", "bee", "cat", "dog", "elk", "fox", "gnu")


@dataclass(frozen=True)
class Config:
    """The number of words of a prompt."""

    num_words: Annotated[int, Bounds(least=2, most=4)] = 3


class Reversal:
    """Prompts are distinct words, and the answer is the same words backwards."""

    verifiable = True
    has_gold = True
    vocabulary: tuple[str, ...] | None = (*WORDS, ">")

    def __init__(self, config: Config):
        prompts = [" ".join((*words, ">")) for words in permutations(WORDS, config.num_words)]
        self._prompts: dict[str, list[str]] = {"train": [], "heldout": []}
        for prompt in prompts:
            self._prompts["heldout" if is_heldout(prompt, 20) else "train"].append(prompt)

    def num_prompts(self, split: Split) -> int:
        return len(self._prompts[split])

    def prompt(self, split: Split, index: int) -> str:
        return self._prompts[split][index]

    def references(self, split: Split, index: int) -> tuple[str, ...]:
        return (answer(self.prompt(split, index)),)

    def record(self, split: Split, index: int) -> dict[str, Any]:
        """The row's references, and its first word."""
        prompt = self.prompt(split, index)
        return {"references": (answer(prompt),), "first": prompt.split()[0]}

    def judge(self, prompt: str, completion: str, finished: bool) -> float:
        if not prompt.endswith(" >"):
            raise ValueError(f"{prompt!r} is not a prompt of the reversal")
        return float(finished and completion == answer(prompt))


def answer(prompt: str) -> str:
    """The words of a prompt backwards."""
    return " ".join(reversed(prompt.split()[:-1]))


def make(config: Config) -> Reversal:
    """The task of a config."""
    return Reversal(config)
