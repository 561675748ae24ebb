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

    In a task of conversations the prompts, also those of comparisons, are `chat.Rendered`: no BOS
    is put before them. Its attribute `template` is their chat template; None if they came rendered.
    A task may have five more methods.

    `record(split, index) -> Mapping[str, Any]`: the fields of the prompt's row that a reward may
    use; without this method, {"references": references(split, index)}.

    `reference(split, index, number) -> str | None`: `references(split, index)[number % count]`, for
    a task in which one reference is much cheaper than all; None for a prompt without references.

    `comparisons(split) -> Sequence[tuple[str, str, str]]`: (prompt, chosen, rejected), any
    number of them.

    `fitted(count_tokens: Callable[[Sequence[str]], Sequence[int]], max_prompt_tokens: int) ->
    Task`: the task with prompts of at most `max_prompt_tokens` tokens. Longer ones, and their
    comparisons, are shortened or left out, as is usual for the corpus. `count_tokens` is called on
    many texts at once. Raises Refusal if a prompt can neither be shortened nor left out, or if no
    prompt of a split is left.

    `digest() -> str`: a digest of the data that the texts depend on, such as the content of files;
    the config and the code are digested elsewhere. A run records it and resumes only with equal
    data. Without this method every prompt and reference is read for the digest.
    """

    @property
    def verifiable(self) -> bool:
        """True if `judge` is the reward itself (exact match). It is then never standardised."""
        ...

    @property
    def has_gold(self) -> bool:
        """False if `judge` raises because prompts have no answers: a learned reward is needed."""
        ...

    @property
    def vocabulary(self) -> tuple[str, ...] | None:
        """The closed list of words for the `words` tokenizer; None if any text may occur."""
        ...

    def num_prompts(self, split: Split) -> int:
        """Number of distinct prompts of a split; no text is in both splits (see `is_heldout`)."""
        ...

    def prompt(self, split: Split, index: int) -> str:
        """Returns a prompt.

        Args:
          split: of the prompt.
          index: 0 <= index < num_prompts(split).
        """
        ...

    def references(self, split: Split, index: int) -> tuple[str, ...]:
        """Returns a prompt's completions from the corpus, all equally good as demonstrations.

        SFT trains on those of `train`.

        Args:
          split: of the prompt.
          index: 0 <= index < num_prompts(split).
        """
        ...

    def judge(self, prompt: str, completion: str, finished: bool) -> float:
        """Returns the gold score of a completion.

        Args:
          prompt: one of the task's prompts.
          completion: the text before the EOS.
          finished: true if an EOS was sampled.

        Raises:
          Refusal: for a prompt of another task, and if `has_gold` is false.
        """
        ...


def is_heldout(text: str, percent: int) -> bool:
    """True if a prompt is held out. The hash of its text decides: no text is in both splits.

    Args:
      text: of the prompt.
      percent: of all prompts that are held out, 0 to 99.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100 < percent


def stream_indices(num_prompts: int, seed: int, start: int, count: int) -> np.ndarray:
    """Returns the prompts at consecutive positions of an endless stream, reshuffled every epoch.

    Position n holds entry n % num_prompts of the permutation of epoch n // num_prompts, so that a
    resumed run needs no state.

    Args:
      num_prompts: of the split.
      seed: of the permutations.
      start: the first position.
      count: the number of positions.

    Returns:
      Indices of prompts in the split, int64 `[count]`.
    """
    positions = np.arange(start, start + count)
    indices = np.empty(count, dtype=np.int64)
    for epoch in np.unique(positions // num_prompts):
        order = np.random.default_rng([seed, int(epoch)]).permutation(num_prompts)
        chosen = positions // num_prompts == epoch
        indices[chosen] = order[positions[chosen] % num_prompts]
    return indices
