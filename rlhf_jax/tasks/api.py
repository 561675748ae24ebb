"""The interface of a task: prompts by index, references, and the judge of a completion."""

import hashlib
from typing import Annotated, Literal, Protocol

import numpy as np

from rlhf_jax.config import Bounds

Split = Literal["train", "heldout"]
HeldoutPercent = Annotated[int, Bounds(least=0, most=99)]
"""Percent of a task's prompts that are held out; 0 is for a task that is only trained on."""


class Task(Protocol):
    """Host code on text. Deterministic: the same index gives the same text in every process.

    A module in `tasks/`, or a user's own (see `registry.py`), has a frozen dataclass `Config` and a
    factory `make(config: Config) -> Task`.

    A task of conversations gives prompts, in comparisons too, that are `chat.Rendered`: no BOS is
    put before them. It has the `template` that they are in, or None where it was given rendered
    ones. A task may have five methods more.

    `record(split, index) -> Mapping[str, Any]`: the fields of the prompt's row that a reward may
    ask for; without it they are {"references": references(split, index)}.

    `reference(split, index, number) -> str | None`: `references(split, index)[number % count]`,
    where one reference is much cheaper than all of them; None where there are none.

    `comparisons(split) -> Sequence[tuple[str, str, str]]`: (prompt, chosen, rejected), empty where
    there are none.

    `fitted(count_tokens: Callable[[Sequence[str]], Sequence[int]], max_prompt_tokens: int) ->
    Task`: the task with prompts of at most so many tokens, longer ones shortened or left out (and
    comparisons with them), as its corpus has it; `count_tokens` is called on many texts at once.
    Raises Refusal where a prompt can neither be shortened nor left out, or a split is left without
    prompts.

    `digest() -> str`: a digest of what the texts depend on besides the config and the code, such as
    the content of files. A run records it and goes on only with equal data. Without it every prompt
    and reference is read for the digest.
    """

    @property
    def verifiable(self) -> bool:
        """True where `judge` is the reward itself (exact match): it is then never standardised."""
        ...

    @property
    def has_gold(self) -> bool:
        """False where `judge` raises, because only a learned reward can tell: prompts of a user
        without answers.
        """
        ...

    @property
    def vocabulary(self) -> tuple[str, ...] | None:
        """The closed list of words for the `words` tokenizer, or None where text is open."""
        ...

    def num_prompts(self, split: Split) -> int:
        """Distinct prompts of a split; no text is on both sides (see `is_heldout`)."""
        ...

    def prompt(self, split: Split, index: int) -> str:
        """The prompt's text, 0 <= index < num_prompts(split)."""
        ...

    def references(self, split: Split, index: int) -> tuple[str, ...]:
        """Completions from the corpus, all equally good as demonstrations; SFT trains on those of
        `train`.
        """
        ...

    def judge(self, prompt: str, completion: str, finished: bool) -> float:
        """The gold score of a completion (text before the EOS); `finished` says whether an EOS was
        sampled.
        """
        ...


def is_heldout(text: str, percent: int) -> bool:
    """True where a prompt is held out: by the hash of its text, so that no text is ever on both
    sides.

    Args:
      text: of the prompt.
      percent: of all prompts that are held out, 0 to 99.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100 < percent


def stream_indices(num_prompts: int, seed: int, start: int, count: int) -> np.ndarray:
    """Indices of prompts at places start ... start+count-1 of an endless stream, reshuffled every
    epoch.

    Seekable: place n is entry n % num_prompts of epoch n // num_prompts's permutation: a resumed
    run needs no state.

    Args:
      num_prompts: of the split.
      seed: of the order.
      start: the first position of the stream.
      count: of positions.
    """
    positions = np.arange(start, start + count)
    indices = np.empty(count, dtype=np.int64)
    for epoch in np.unique(positions // num_prompts):
        order = np.random.default_rng([seed, int(epoch)]).permutation(num_prompts)
        chosen = positions // num_prompts == epoch
        indices[chosen] = order[positions[chosen] % num_prompts]
    return indices
