"""A user's own prompts, references and comparisons, from local files of one JSON object a line.

Prompts: `{"prompt": "...", "references": ["...", ...]}`, or with `"answer": "..."` to be judged by
exact match; then the references may be left out, and are the answer. Other columns of a row are
kept for rewards that ask for them (`record`). Comparisons: `{"prompt": "...", "chosen": "...",
"rejected": "..."}`; other columns are not read.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_jax.refusal import Refusal
from rlhf_jax.tasks.api import HeldoutPercent, Split, is_heldout
from rlhf_jax.text import chat, json_texts
from rlhf_jax.text.json_texts import short

SPLITS: tuple[Split, ...] = ("train", "heldout")
PROMPT_KEYS = ("prompt", "references", "answer")
COMPARISON_KEYS = ("prompt", "chosen", "rejected")
REQUIRED = COMPARISON_KEYS  # of those that a file may have


@dataclass(frozen=True)
class Config:
    """Settings: the files. A prompt is held out by the hash of its text, in both files alike."""

    prompts: str = ""  # the file of prompts and references
    comparisons: str = ""  # none where empty
    # share of prompts that are held out, chosen by the hash of their text
    heldout_percent: HeldoutPercent = 10
    rendered: bool = (
        False  # prompts are in a chat template already: a tokenizer's BOS is not put before them
    )


class Jsonl:
    """The prompts of a file, in its order; without answers there is no gold, and `judge` raises."""

    vocabulary = None

    def __init__(self, config: Config):
        self.config = config
        self._prompts: dict[Split, list[str]] = {"train": [], "heldout": []}
        self._references: dict[str, tuple[str, ...]] = {}
        self._answers: dict[str, str] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        self._read_prompts()
        self.has_gold = self.verifiable = bool(self._answers)
        self._comparisons: dict[Split, list[tuple[str, str, str]]] = {"train": [], "heldout": []}
        if config.comparisons:
            self._read_comparisons()
        self.description = (
            f"jsonl, {config.prompts}: {sum(map(len, self._prompts.values())):,} rows"
        )
        if config.comparisons:
            self.description += (
                f"; {config.comparisons}: {sum(map(len, self._comparisons.values())):,} rows"
            )

    def num_prompts(self, split: Split) -> int:
        return len(self._prompts[split])

    def prompt(self, split: Split, index: int) -> str:
        return self._told(self._prompts[split][index])

    def references(self, split: Split, index: int) -> tuple[str, ...]:
        return self._references[self._prompts[split][index]]

    def record(self, split: Split, index: int) -> dict[str, Any]:
        """The columns of a prompt's row, with its references as a tuple."""
        prompt = self._prompts[split][index]
        return self._rows[prompt] | {"references": self._references[prompt]}

    def comparisons(self, split: Split) -> list[tuple[str, str, str]]:
        """(prompt, chosen, rejected) of a split, in the file's order; empty where no file was
        given.
        """
        return [
            (self._told(prompt), chosen, rejected)
            for prompt, chosen, rejected in self._comparisons[split]
        ]

    def digest(self) -> str:
        """SHA-256 of the files' bytes."""
        files = filter(None, (self.config.prompts, self.config.comparisons))
        return " ".join(hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] for file in files)

    def judge(self, prompt: str, completion: str, finished: bool) -> float:
        """Returns 1.0 if the completion ended and is the answer, else 0.0. White space around
        either is ignored.

        Raises Refusal if the file has no answers, or not this prompt.
        """
        if not self.has_gold:
            raise Refusal(
                f'{self.config.prompts} gives no "answer": only a learned reward can judge its '
                "completions"
            )
        if prompt not in self._answers:
            raise Refusal(f"{prompt!r} is not a prompt of {self.config.prompts}")
        return float(finished and completion.strip() == self._answers[prompt].strip())

    def _told(self, prompt: str) -> str:
        return chat.Rendered(prompt) if self.config.rendered else prompt

    def _split(self, prompt: str) -> Split:
        return "heldout" if is_heldout(prompt, self.config.heldout_percent) else "train"

    def _read_prompts(self) -> None:
        first_seen: dict[str, str] = {}
        for location, entry in _lines(self.config.prompts, "task.prompts", PROMPT_KEYS):
            prompt = json_texts.text(location, entry, "prompt")
            if prompt in first_seen:
                raise Refusal(
                    f"{location}: the prompt {short(prompt)} was given before, at {first_seen[prompt]}"
                )
            first_seen[prompt] = location
            if "answer" in entry:
                self._answers[prompt] = json_texts.text(location, entry, "answer")
            if len(self._answers) not in (0, len(first_seen)):
                raise Refusal(
                    f'{location}: either every line has an "answer" or none; this one differs from '
                    "those before"
                )
            self._references[prompt], self._rows[prompt] = _references(location, entry), entry
            self._prompts[self._split(prompt)].append(prompt)
        for split in SPLITS:
            if not self._prompts[split] and (split == "train" or self.config.heldout_percent):
                raise Refusal(
                    f"none of the {len(first_seen)} prompts of {self.config.prompts} falls on the "
                    f"{split} side with"
                    f" task.heldout_percent={self.config.heldout_percent}; give more prompts or "
                    "another percentage"
                )

    def _read_comparisons(self) -> None:
        for location, entry in _lines(self.config.comparisons, "task.comparisons", COMPARISON_KEYS):
            prompt, chosen, rejected = (
                json_texts.text(location, entry, key) for key in COMPARISON_KEYS
            )
            if chosen == rejected:
                raise Refusal(f"{location}: chosen and rejected are the same text, {short(chosen)}")
            self._comparisons[self._split(prompt)].append((prompt, chosen, rejected))


def make(config: Config) -> Jsonl:
    """The task of a config; Refusal names file and line, what was found there and what is accepted."""
    return Jsonl(config)


def _lines(path: str, option: str, keys: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of each line."""
    if not path or not Path(path).is_file():
        raise Refusal(
            f"{option} {path!r} is not there; it should name a file of one JSON object a line"
        )
    empty = True
    for location, entry in json_texts.lines(Path(path)):
        empty = False
        missing = [key for key in REQUIRED if key in keys and key not in entry]
        if missing:
            raise Refusal(
                f"{location}: {_listed(missing)} is missing; found {_listed(entry)}; accepted: "
                f"{_listed(keys)}, and columns of "
                "other names"
            )
        yield location, entry
    if empty:
        raise Refusal(
            f"{path} is empty; it should hold one JSON object a line, with {_listed(keys)}"
        )


def _references(location: str, entry: dict[str, Any]) -> tuple[str, ...]:
    if "references" not in entry and "answer" in entry:
        return (entry["answer"],)
    texts = entry.get("references")
    if not isinstance(texts, list) or not texts:
        fault = (
            f"'references' is {short(texts)}"
            if "references" in entry
            else f"'references' is missing; found {_listed(entry)}"
        )
        raise Refusal(f"{location}: {fault}; accepted: a list of one or more texts, none empty")
    named = {f"references[{index}]": text for index, text in enumerate(texts)}
    return tuple(json_texts.text(location, named, name) for name in named)


def _listed(keys: Iterable[object]) -> str:
    return ", ".join(map(repr, keys))
