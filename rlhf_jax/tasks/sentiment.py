"""Controlled sentiment: openings of opinion sentences, to be continued positively.

The task of the DPO paper (Rafailov et al., 2023, arXiv 2305.18290, section 6), with openings of our
own in the place of IMDb's reviews and VADER (Hutto and Gilbert, 2014) in the place of its
classifier. The prompts are plain text, for a model that was trained on text. There are no
references: completions are compared with those of the policy that training begins with
(`evaluate.compare_with=sft_policy`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

from rlhf_jax.extras import needed
from rlhf_jax.refusal import Refusal
from rlhf_jax.tasks.api import HeldoutPercent, Split, is_heldout

FILE = "corpora/opinion_openings.txt"
"""400 openings, a line each, of 8 tokens under the tokenizer of SmolLM2; none has a word that VADER
rates.
"""


@dataclass(frozen=True)
class Config:
    """The split: 300 openings to train on and 100 held out for 25 percent."""

    heldout_percent: HeldoutPercent = 25  # share of the openings that are held out


class Sentiment:
    """400 openings. Gold is VADER's compound score of opening and completion as one text, -1 to 1."""

    verifiable = False
    has_gold = True
    vocabulary = None

    def __init__(self, config: Config):
        with needed("sentiment", "the task sentiment"):
            from vaderSentiment import vaderSentiment
        analyzer = vaderSentiment.SentimentIntensityAnalyzer()
        self._rate: Callable[[str], Mapping[str, float]] = analyzer.polarity_scores
        self._openings: dict[Split, list[str]] = {"train": [], "heldout": []}
        for text in openings():
            heldout = is_heldout(text, config.heldout_percent)
            self._openings["heldout" if heldout else "train"].append(text)
        for split, texts in self._openings.items():
            if not texts and (split == "train" or config.heldout_percent):
                raise Refusal(
                    f"sentiment has no {split} opening with task.heldout_percent="
                    f"{config.heldout_percent}; accepted: a percentage of 1 to 98, or 0"
                )
        self._known = frozenset(openings())

    def num_prompts(self, split: Split) -> int:
        return len(self._openings[split])

    def prompt(self, split: Split, index: int) -> str:
        return self._openings[split][index]

    def references(self, split: Split, index: int) -> tuple[str, ...]:
        """Returns none: see the module."""
        del split, index
        return ()

    def digest(self) -> str:
        """Returns a constant: the texts depend on the config and the package alone."""
        return "generated"

    def judge(self, prompt: str, completion: str, finished: bool) -> float:
        """Returns the compound score of the whole text; an EOS is not asked for.

        Raises Refusal for a prompt of another task.
        """
        del finished
        if prompt not in self._known:
            raise Refusal(
                f"{prompt!r} is not a prompt of sentiment: they read like {openings()[0]!r}"
            )
        return float(self._rate(prompt + completion)["compound"])


@cache
def openings() -> tuple[str, ...]:
    """The openings, in the order of the file."""
    file: Traversable = resources.files("rlhf_jax.tasks").joinpath(FILE)
    return tuple(file.read_text(encoding="utf-8").splitlines())


def make(config: Config) -> Sentiment:
    """The task of a config; Refusal where a side would hold no opening, or without its extra."""
    return Sentiment(config)
