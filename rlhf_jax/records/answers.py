"""Stored answers of rewards that are no functions of their inputs, such as a judge behind HTTP: they
are read in place of asking again.

One file for each reward in `answers/` of a run's directory, `<label>-<digest>.jsonl`; the digest is
that of the reward's name and settings, so that the answers of another reward are not read. A line
is

    {"stage": "reward", "key": digest of what was asked about, "answer": number}

Lines are appended before an answer is used, and never removed: not when a run goes on from an
earlier checkpoint, either. What is trained on can therefore be computed again from the file. Of
several processes that write to one file (cells of a study that share their reward) the first answer
to a question is taken by all.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.records import jsonl
from rlhf_jax.refusal import Refusal

FOLDER = "answers"
STAGE = "reward"
HEX_DIGITS = 32
NAME_HEX_DIGITS = 16

Ask = Callable[[Sequence[int]], np.ndarray]
"""(indices of questions) -> their answers, float64."""


def file_name(label: str, name: str, settings: Mapping[str, Any]) -> str:
    """The file of a reward's answers.

    Args:
      label: of the reward, for a person who reads the file's name.
      name: of the reward, normalised: two names of one reward have one file.
      settings: of the reward, as JSON has them.
    """
    text = json.dumps([name, settings], sort_keys=True)
    return f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:NAME_HEX_DIGITS]}.jsonl"


def key(prompt: str, completion: str, *more: object) -> str:
    """The digest of a question: a prompt, a completion, and what else the reward is given about
    them.

    Args:
      prompt: of the question.
      completion: of the question.
      more: values of JSON, or arrays. Only the type of any other object counts, because its text may
        hold an address.
    """
    text = json.dumps([prompt, completion, *more], sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:HEX_DIGITS]


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else type(value).__name__


class Answers:
    """The answers that one reward has given.

    Nothing is read or written before the first question.
    """

    def __init__(self, path: Path, earlier: Path | None = None):
        """The store of a file.

        Args:
          path: the file; it and its folder are made with the first answer.
          earlier: the file of a run that is replayed; answers that are used from there are copied.
        """
        self.path, self.earlier = path, earlier
        self._known: dict[str, float] = {}
        self._before: dict[str, float] | None = None
        self._read_bytes = 0
        self._lock = threading.Lock()

    def given(self, keys: Sequence[str], ask: Ask) -> np.ndarray:
        """The answers to questions, float64 `[B]`; only those without an answer are asked, each
        once.

        Args:
          keys: of the questions, as `key` makes them.
          ask: is called once, with the index of the first of each question that has no answer; not
            where all have one.

        Raises what `ask` raises; Refusal that names the file where it is damaged; OSError that
        names it when the disk is full.
        """
        with self._lock:
            self._refresh()
            wanted = {
                key: index
                for index, key in reversed(list(enumerate(keys)))
                if key not in self._known
            }
            old = self._replayed()
            new = {key: old[key] for key in wanted if key in old}
            asked = sorted(index for key, index in wanted.items() if key not in old)
            if asked:
                values = ask(asked).tolist()
                new |= {keys[index]: value for index, value in zip(asked, values, strict=True)}
            if new:
                self._write(new)
            return np.array([self._known[key] for key in keys], np.float64)

    def _write(self, new: Mapping[str, float]) -> None:
        """Appends answers, except to questions that another process has answered meanwhile: its
        answers are taken.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path):
            if not _ends_with_a_line(self.path):  # another process was killed while it wrote
                jsonl.drop_torn_line(self.path)
            self._refresh()
            remaining = {key: answer for key, answer in new.items() if key not in self._known}
            jsonl.append_all(
                self.path,
                (
                    {"stage": STAGE, "key": key, "answer": answer}
                    for key, answer in remaining.items()
                ),
            )
            self._known |= remaining
            self._read_bytes = self.path.stat().st_size if self.path.exists() else 0

    def _refresh(self) -> None:
        """Reads the lines that were added to the file since it was read last."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size in (0, self._read_bytes):
            return
        for question, answer in read(self.path).items():
            self._known.setdefault(question, answer)
        # The size from before: what another process appends during the read is read again next time.
        self._read_bytes = size

    def _replayed(self) -> Mapping[str, float]:
        if self._before is None:
            self._before = (
                read(self.earlier) if self.earlier is not None and self.earlier.exists() else {}
            )
        return self._before


def read(path: Path) -> dict[str, float]:
    """The first answer to each question of a file.

    Raises Refusal that names the file and the line that is none.
    """
    answers: dict[str, float] = {}
    for line_number, line in enumerate(jsonl.read(path), 1):
        question, answer = line.get("key"), line.get("answer")
        if (
            not isinstance(question, str)
            or isinstance(answer, bool)
            or not isinstance(answer, int | float)
        ):
            raise Refusal(
                f'{path}, line {line_number}: expected a "key" and a number as "answer", found {line}'
            )
        answers.setdefault(question, float(answer))
    return answers


def _ends_with_a_line(path: Path) -> bool:
    """True for a file whose last line is whole, or that is missing or empty."""
    if not path.exists() or not path.stat().st_size:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock beside a file for as long as it takes to append; on a disk without locks it
    holds none.
    """
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
