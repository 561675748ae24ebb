"""A user's own prompts, references and comparisons, from local files of one JSON object a line.

Prompts: `{"prompt": "...", "references": ["...", ...]}`, or with `"answer": "..."` to be judged by exact match; then
the references may be left out, and are the answer.
Comparisons: `{"prompt": "...", "chosen": "...", "rejected": "..."}`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_jax.refusal import Refusal
from rlhf_jax.tasks.api import Split, is_heldout

SPLITS: tuple[Split, ...] = ("train", "heldout")
PROMPT_KEYS = ("prompt", "references", "answer")
COMPARISON_KEYS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Config:
    """Where the files are; a prompt is held out by the hash of its text, in both files alike."""

    prompts: str = ""
    comparisons: str = ""  # none where empty
    heldout_percent: int = 10


class Jsonl:
    """The prompts of a file, in its order; without answers there is no gold, and `judge` raises."""

    vocabulary = None

    def __init__(self, config: Config):
        self.config = config
        if not 0 <= config.heldout_percent < 100:
            raise Refusal(f"task.heldout_percent is {config.heldout_percent}; accepted: 0 to 99")
        self._prompts: dict[Split, list[str]] = {"train": [], "heldout": []}
        self._references: dict[str, tuple[str, ...]] = {}
        self._answers: dict[str, str] = {}
        self._read_prompts()
        self.has_gold = self.verifiable = bool(self._answers)
        self._comparisons: dict[Split, list[tuple[str, str, str]]] = {"train": [], "heldout": []}
        if config.comparisons:
            self._read_comparisons()

    def num_prompts(self, split: Split) -> int:
        return len(self._prompts[split])

    def prompt(self, split: Split, index: int) -> str:
        return self._prompts[split][index]

    def references(self, split: Split, index: int) -> tuple[str, ...]:
        return self._references[self._prompts[split][index]]

    def comparisons(self, split: Split) -> list[tuple[str, str, str]]:
        """(prompt, chosen, rejected) of a split, in the file's order; empty where no file was given."""
        return list(self._comparisons[split])

    def judge(self, prompt: str, completion: str, finished: bool) -> float:
        """1.0 when the completion ended and is the answer, white space around it aside; else 0.0.

        Raises Refusal where the file gives no answers, or does not have this prompt.
        """
        if not self.has_gold:
            raise Refusal(f'{self.config.prompts} gives no "answer": only a learned reward can judge its completions')
        if prompt not in self._answers:
            raise Refusal(f"{prompt!r} is not a prompt of {self.config.prompts}")
        return float(finished and completion.strip() == self._answers[prompt].strip())

    def _split(self, prompt: str) -> Split:
        return "heldout" if is_heldout(prompt, self.config.heldout_percent) else "train"

    def _read_prompts(self) -> None:
        first_seen: dict[str, str] = {}
        for where, entry in _lines(self.config.prompts, "task.prompts", PROMPT_KEYS):
            prompt = _text(where, entry, "prompt")
            if prompt in first_seen:
                raise Refusal(f"{where}: the prompt {_short(prompt)} was given before, at {first_seen[prompt]}")
            first_seen[prompt] = where
            if "answer" in entry:
                self._answers[prompt] = _text(where, entry, "answer")
            if len(self._answers) not in (0, len(first_seen)):
                raise Refusal(f'{where}: either every line has an "answer" or none; this one differs from those before')
            self._references[prompt] = _references(where, entry)
            self._prompts[self._split(prompt)].append(prompt)
        for split in SPLITS:
            if not self._prompts[split] and (split == "train" or self.config.heldout_percent):
                raise Refusal(
                    f"none of the {len(first_seen)} prompts of {self.config.prompts} falls on the {split} side with"
                    f" task.heldout_percent={self.config.heldout_percent}; give more prompts or another percentage"
                )

    def _read_comparisons(self) -> None:
        for where, entry in _lines(self.config.comparisons, "task.comparisons", COMPARISON_KEYS):
            prompt, chosen, rejected = (_text(where, entry, key) for key in COMPARISON_KEYS)
            if chosen == rejected:
                raise Refusal(f"{where}: chosen and rejected are the same text, {_short(chosen)}")
            self._comparisons[self._split(prompt)].append((prompt, chosen, rejected))


def make(config: Config) -> Jsonl:
    """The task of a config; Refusal names file and line, what was found there and what is accepted."""
    return Jsonl(config)


def _lines(path: str, option: str, keys: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of each line. Split at newlines alone: JSON texts may hold other line separators."""
    if not path or not Path(path).is_file():
        raise Refusal(f"{option} {path!r} is not there; it should name a file of one JSON object a line")
    lines = _decoded(path).split("\n")
    lines = lines[:-1] if not lines[-1] else lines
    if not lines:
        raise Refusal(f"{path} is empty; it should hold one JSON object a line, with {_listed(keys)}")
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise Refusal(
                f"{where}: {_short(line)} is not JSON ({error}); a line is an object with {_listed(keys)}"
            ) from None
        if not isinstance(entry, dict):
            raise Refusal(f"{where}: found {_short(entry)}; a line is an object with {_listed(keys)}")
        unknown = [key for key in entry if key not in keys]
        if unknown:
            raise Refusal(f"{where}: found {_listed(unknown)}; accepted: {_listed(keys)}")
        yield where, entry


def _decoded(path: str) -> str:
    """The file's text; its bytes are decoded here because reading as text would turn \\r and \\r\\n into newlines."""
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Refusal(f"{path}:{line}: found a byte 0x{data[error.start]:02x} that is not UTF-8") from None


def _text(where: str, entry: dict[str, Any], key: str) -> str:
    if key not in entry:
        raise Refusal(f"{where}: {_listed([key])} is missing; found {_listed(entry)}")
    if not isinstance(entry[key], str) or not entry[key]:
        raise Refusal(f"{where}: {_listed([key])} is {_short(entry[key])}; accepted: a text that is not empty")
    return entry[key]


def _references(where: str, entry: dict[str, Any]) -> tuple[str, ...]:
    if "references" not in entry and "answer" in entry:
        return (entry["answer"],)
    if "references" not in entry:
        raise Refusal(f'{where}: "references" is missing; found {_listed(entry)}')
    found = entry["references"]
    if not isinstance(found, list) or not found or not all(isinstance(text, str) and text for text in found):
        raise Refusal(f'{where}: "references" is {_short(found)}; accepted: a list of one or more texts, none empty')
    return tuple(found)


def _listed(keys: Any) -> str:
    return ", ".join(json.dumps(key, ensure_ascii=False) for key in keys)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
