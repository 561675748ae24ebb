"""Writes completions of a policy: `samples.jsonl`, and a table of a few for the console.

A line of `samples.jsonl` is

    {"stage": str, "update": version that wrote it, "kind": "before"|"during"|"after", "ordinal": of the prompt,
     "prompt": str, "completion": text before the EOS, "finished": bool, "gold": number|null, "reward": number|null}

"gold" is the task's own score, "reward" that of the learned (or verifiable) reward; null where it
is not known. Where the reward is a sum, "terms" has {label: number} of its terms before
their weights. A report puts the completions "before" and "after" of one ordinal side by side.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO, get_args

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_jax.records import jsonl
from rlhf_jax.records.jsonl import Line, cut_back, read
from rlhf_jax.records.progress import format_number
from rlhf_jax.refusal import Refusal

__all__ = ["Sample", "SamplesWriter", "cut_back", "printable", "read", "show"]

FILE = "samples.jsonl"
Kind = Literal["before", "during", "after"]


@dataclass(frozen=True)
class Sample:
    """One completion of the prompt with this ordinal; scores are None where they are not known."""

    ordinal: int
    prompt: str
    completion: str
    finished: bool
    gold: float | None = None
    reward: float | None = None
    terms: Mapping[str, float] | None = None


class SamplesWriter:
    """Appends to `directory/samples.jsonl`, with the guarantees of `jsonl.append`."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Makes the directory where it is missing; a torn last line of an earlier process is
        removed.
        """
        self.path = Path(directory) / FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        jsonl.drop_torn_line(self.path)

    def write(self, stage: str, update: int, kind: Kind, samples: Iterable[Sample]) -> None:
        """One line a sample. Raises Refusal for another kind; OSError that names the file."""
        if kind not in get_args(Kind):
            raise Refusal(f"samples of kind {kind!r}; accepted: {', '.join(get_args(Kind))}")
        for sample in samples:
            jsonl.append(
                self.path, {"stage": stage, "update": int(update), "kind": kind} | _fields(sample)
            )

    def resume(self, stage: str, update: int, aside: Path | None = None) -> None:
        """Cuts the file back to what the version `update` had been preceded by (see
        `jsonl.cut_back`).
        """
        jsonl.cut_back(self.path, stage, update, aside=aside)


def _fields(sample: Sample) -> Line:
    return {
        "ordinal": int(sample.ordinal),
        "prompt": sample.prompt,
        "completion": sample.completion,
        "finished": bool(sample.finished),
        "gold": None if sample.gold is None else jsonl.number(sample.gold),
        "reward": None if sample.reward is None else jsonl.number(sample.reward),
    } | ({} if sample.terms is None else {"terms": dict(sample.terms)})


def show(
    title: str, samples: Sequence[Sample], stream: TextIO | None = None, limit: int = 4
) -> None:
    """Prints a table of the first `limit` samples: prompt, completion, gold and reward."""
    console = Console(file=stream, highlight=False)
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("prompt", ratio=2)
    table.add_column("completion", ratio=3)
    table.add_column("gold", justify="right", no_wrap=True)
    table.add_column("reward", justify="right", no_wrap=True)
    for sample in samples[:limit]:
        ending = "" if sample.finished else " …"
        cells = (printable(sample.prompt), printable(sample.completion) + ending)
        table.add_row(
            *(Text(cell) for cell in cells),
            *(_score(score) for score in (sample.gold, sample.reward)),
        )
    console.print(table)


def _score(score: float | None) -> str:
    return "–" if score is None else format_number(score)


def printable(text: str) -> str:
    """Text that cannot move a cursor: line breaks as ⏎, other control characters and lone
    surrogates escaped.
    """
    visible = text.replace("\n", "⏎")
    return "".join(
        char if char.isprintable() or char == " " else char.encode("unicode_escape").decode()
        for char in visible
    )
