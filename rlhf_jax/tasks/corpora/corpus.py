"""Tasks whose prompts, references and comparisons are records on disk, and the cutting of their
prompts to a model's length.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Self, overload

import numpy as np

from rlhf_jax.refusal import Refusal
from rlhf_jax.tasks.api import Split
from rlhf_jax.tasks.corpora.published_files import Record
from rlhf_jax.tasks.corpora.record_store import RECORDS_PER_BATCH, Records, Store
from rlhf_jax.text import chat

CountTokens = Callable[[Sequence[str]], Sequence[int]]


class Comparisons(Sequence[tuple[str, str, str]]):
    """(prompt, chosen, rejected) of comparison records, read when they are asked for."""

    def __init__(self, records: Records):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> tuple[str, str, str]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, str, str]]: ...

    def __getitem__(self, index: int | slice) -> tuple[str, str, str] | list[tuple[str, str, str]]:
        if isinstance(index, slice):
            return [_pair(record) for record in self._records[index]]
        return _pair(self._records[index])

    def __iter__(self) -> Iterator[tuple[str, str, str]]:
        return map(_pair, self._records)


class Fitted(Records):
    """Chosen records of others, some of them with a shortened prompt."""

    def __init__(
        self, records: Records, indices: Sequence[int], cuts: Mapping[int, int], tail: str
    ):
        """Chooses records of others.

        Args:
          records: to choose from.
          indices: of the chosen records.
          cuts: characters of the prompt that are kept before `tail`, by index; others are whole.
          tail: the end of a cut prompt.
        """
        self._records, self._indices, self._cuts, self._tail = (
            records,
            np.asarray(indices, np.int64),
            cuts,
            tail,
        )

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, indices: Sequence[int]) -> list[Record]:
        chosen = self._indices[list(indices)].tolist()
        records = self._records.read(chosen)
        return [
            self._shortened(index, record) for index, record in zip(chosen, records, strict=True)
        ]

    def _shortened(self, index: int, record: Record) -> Record:
        if index not in self._cuts:
            return record
        return record | {"prompt": record["prompt"][: self._cuts[index]] + self._tail}


class Counted:
    """Caches the token count of each text. A prompt recurs in its comparisons, so that most counts
    are asked for several times.
    """

    def __init__(self, count_tokens: CountTokens):
        self._count_tokens = count_tokens
        self._counts: dict[bytes, int] = {}

    def __call__(self, texts: Sequence[str]) -> list[int]:
        keys = [_identity(text) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._counts}
        if new:
            self._counts.update(zip(new, self._count_tokens(list(new.values())), strict=True))
        return [self._counts[key] for key in keys]


class Corpus:
    """Prompts with one reference each, and comparisons if there are any. There is no gold unless a
    subclass overrides `has_gold` and `judge`.
    """

    verifiable = False
    has_gold = False
    vocabulary = None
    tail = ""  # what a shortened prompt ends in

    def __init__(
        self,
        name: str,
        prompts: Store,
        comparisons: Store | None = None,
        template: chat.Template | None = None,
    ):
        """Opens the records of the stores.

        Args:
          name: of the task, for messages.
          prompts: with the fields `prompt` and `reference`.
          comparisons: with the fields `prompt`, `chosen` and `rejected`.
          template: that conversations were rendered in.
        """
        self.name = name
        self.template = template
        self.description = "\n".join(
            f"{name}, {what}: {store.description}"
            for what, store in (("prompts", prompts), ("comparisons", comparisons))
            if store is not None
        )
        self._digest = " ".join(
            store.digest for store in (prompts, comparisons) if store is not None
        )
        self._prompts: Mapping[Split, Records] = prompts.splits
        self._comparisons: Mapping[Split, Records] = comparisons.splits if comparisons else {}

    def num_prompts(self, split: Split) -> int:
        return len(self._prompts[split])

    def prompt(self, split: Split, index: int) -> str:
        return self._prompts[split][index]["prompt"]

    def references(self, split: Split, index: int) -> tuple[str, ...]:
        return (self._prompts[split][index]["reference"],)

    def comparisons(self, split: Split) -> Sequence[tuple[str, str, str]]:
        """(prompt, chosen, rejected) of a split, in the files' order; empty where the task has
        none.
        """
        return Comparisons(self._comparisons[split]) if self._comparisons else ()

    def digest(self) -> str:
        """Digests of the files that the stores were made from."""
        return self._digest

    def judge(self, prompt: str, completion: str, finished: bool) -> float:
        """Raises Refusal: nothing but a learned reward can judge these completions."""
        raise Refusal(
            f"{self.name} has no answers: only a learned reward can judge its completions"
        )

    def fitted(self, count_tokens: CountTokens, max_prompt_tokens: int) -> Self:
        """Returns this task with prompts that fit: see `tasks.api.Task`.

        Args:
          count_tokens: counts the tokens of many texts.
          max_prompt_tokens: the most tokens of a prompt.

        Raises:
          Refusal: if no prompt of a split is left, or no comparison of a split that had some.
        """
        task, count_tokens = copy(self), Counted(count_tokens)
        seen: set[bytes] = set()
        task._prompts = {
            split: self._fit(split, records, count_tokens, max_prompt_tokens, seen)
            for split, records in self._prompts.items()
        }
        task._comparisons = {
            split: self._fit(split, records, count_tokens, max_prompt_tokens, None)
            for split, records in self._comparisons.items()
        }
        return task

    def kept_characters(
        self, records: Sequence[Record], count_tokens: CountTokens, limit: int
    ) -> list[int | None]:
        """Decides how much of each prompt is kept; a subclass may shorten prompts.

        Args:
          records: a batch.
          count_tokens: counts the tokens of many texts.
          limit: the most tokens of a prompt.

        Returns:
          The characters kept of each record's prompt: all; None for one that is left out.
        """
        prompts = [record["prompt"] for record in records]
        counts = count_tokens(prompts)
        return [
            len(text) if count <= limit else None
            for text, count in zip(prompts, counts, strict=True)
        ]

    def _fit(
        self,
        split: Split,
        records: Records,
        count_tokens: CountTokens,
        limit: int,
        seen: set[bytes] | None,
    ) -> Fitted:
        """The records that fit. With `seen`, a prompt in it is left out and others are added to it:
        cut prompts may have become equal.
        """
        indices: list[int] = []
        cuts: dict[int, int] = {}
        for start, batch in _batches(records):
            kept = self.kept_characters(batch, count_tokens, limit)
            for index, (record, length) in enumerate(zip(batch, kept, strict=True), start=start):
                if length is None:
                    continue
                prompt, whole = record["prompt"], length == len(record["prompt"])
                identity = _identity(prompt if whole else prompt[:length] + self.tail)
                if seen is not None and identity in seen:
                    continue
                if seen is not None:
                    seen.add(identity)
                indices.append(index)
                if not whole:
                    cuts[index] = length
        if not indices:
            raise Refusal(
                f"{self.name}: none of {len(records)} {split} prompts is left with "
                f"max_prompt_tokens = {limit}; raise it"
            )
        return Fitted(records, indices, cuts, self.tail)


def _identity(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _batches(records: Records) -> Iterator[tuple[int, Sequence[Record]]]:
    for start in range(0, len(records), RECORDS_PER_BATCH):
        yield start, records[start : start + RECORDS_PER_BATCH]


def _pair(record: Record) -> tuple[str, str, str]:
    return record["prompt"], record["chosen"], record["rejected"]
