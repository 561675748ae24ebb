"""Finds the files of a published dataset in a folder that the user gives, and reads them as records
of a task.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rlhf_jax.refusal import Refusal
from rlhf_jax.tasks.api import Split
from rlhf_jax.tasks.corpora import row_files
from rlhf_jax.tasks.corpora.row_files import Row

Record = dict[str, str]
SHARD = re.compile(
    r"-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?\.parquet$"
)  # older uploads carry a hash after the count
NUMBERED = re.compile(r"^(\d{4})\.parquet$")


class LeftOut(Exception):
    """The reason why a task cannot use a well-formed row.

    Such rows are counted, and the first reason is reported.
    """


@dataclass(frozen=True)
class Layout:
    """One format in which a dataset is published: the columns that identify it, and its reader.

    `read(location, row)` returns a record, or None for a row of another task. It raises LeftOut for
    a row that the task cannot use, and Refusal for a malformed one.
    """

    columns: tuple[str, ...]
    read: Callable[[str, Row], Record | None]


@dataclass(frozen=True)
class Dataset:
    """A published dataset: its title, the way to get it, and the names of its splits and folders.

    `splits` maps each of our splits to its published names, newest first. `patterns` are globs in
    addition to the usual ones, with `{split}` in them. `folders` are the names of its
    configurations. `rows` are the published numbers of rows; others are accepted and reported.
    """

    title: str
    option: str  # the config key that names the folder
    remedy: str  # how to get it, in words
    splits: Mapping[Split, tuple[str, ...]]
    rows: Mapping[Split, tuple[int, ...]]
    folders: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()


def find(directory: str, dataset: Dataset) -> dict[Split, tuple[Path, ...]]:
    """Finds the files of each split, in order.

    Args:
      directory: the folder that the user gives; "" is refused.
      dataset: that it should hold.

    Raises:
      Refusal: if the folder, a split, or a shard of a split is missing.
    """
    folder = Path(directory)
    if not directory or not folder.is_dir():
        raise Refusal(
            f"{dataset.option} {directory!r} is not a folder; it should hold {_wanted(dataset)}"
        )
    return {split: _split_files(folder, dataset, names) for split, names in dataset.splits.items()}


def records(
    files: Sequence[Path], layouts: Sequence[Layout]
) -> Iterator[tuple[str, Record | LeftOut | None]]:
    """Reads rows as records, in the files' order.

    Args:
      files: of a split.
      layouts: accepted ones; the first whose columns a file has is used for it.

    Yields:
      (location, record) of each row. The record is None for a row of another task, and LeftOut for
      one that this task cannot use.

    Raises:
      Refusal: for a file whose columns are of no layout, or that cannot be read to its end.
    """
    for file in files:
        layout = _layout(file, layouts)
        for location, row in row_files.read(file, layout.columns):
            try:
                record = layout.read(location, row)
            except LeftOut as reason:
                record = reason
            yield location, record


def _patterns(dataset: Dataset, split: str) -> list[str]:
    """Globs in the order of preference.

    The `-` keeps `validation` from taking `validation_cnndm-...`.
    """
    folders = ("data", "", *dataset.folders)
    shards = [f"{folder}/{split}-*.parquet".removeprefix("/") for folder in folders]
    converted = [
        f"{folder}/{split}/*.parquet".removeprefix("/")
        for folder in ("default", "", *dataset.folders)
    ]
    lines = [f"{split}.jsonl", f"data/{split}.jsonl"]
    endings = (
        ".parquet",
        ".jsonl",
        ".jsonl.gz",
        ".json",
    )  # as to_parquet of datasets and pandas writes a split
    single = [
        f"{folder}/{split}{ending}".removeprefix("/") for folder in folders for ending in endings
    ]
    return [
        *shards,
        *converted,
        *lines,
        *(pattern.format(split=split) for pattern in dataset.patterns),
        *single,
    ]


def _split_files(folder: Path, dataset: Dataset, names: Sequence[str]) -> tuple[Path, ...]:
    patterns = list(
        dict.fromkeys(pattern for name in names for pattern in _patterns(dataset, name))
    )
    for pattern in patterns:
        files = sorted(path for path in folder.glob(pattern) if path.is_file())
        if files:
            _check_shards(files)
            return tuple(files)
    some = (path.relative_to(folder) for path in islice(folder.rglob("*"), 1000) if path.is_file())
    paths = sorted(
        str(path) for path in some if path.parts[0] != "array_record"
    )  # which we wrote ourselves
    listed = ", ".join(paths[:9]) + (" ..." if len(paths) > 9 else "")
    raise Refusal(
        f"{dataset.option} {str(folder)!r} has no files of the split "
        f"{' or '.join(map(repr, names))}: looked for"
        f" {', '.join(patterns)}; found {listed or 'none'}; it should hold {_wanted(dataset)}"
    )


def _wanted(dataset: Dataset) -> str:
    return f"{dataset.title}: {dataset.remedy}"


def _check_shards(files: Sequence[Path]) -> None:
    """Raises Refusal if a shard that the names count is missing or occurs twice."""
    named = [SHARD.search(file.name) for file in files]
    if not any(named):
        _check_numbers(files)
        return
    totals = {int(match[2]) for match in named if match}
    numbers = [int(match[1]) for match in named if match]
    location = files[0].parent / files[0].name[: files[0].name.find("-")]
    if not all(named) or len(totals) > 1 or len(set(numbers)) < len(numbers):
        names = ", ".join(file.name for file in files[:6])
        raise Refusal(
            f"{location}-*: found shards of different revisions, {names}; keep those of one"
        )
    missing = sorted(set(range(totals.pop())) - set(numbers))
    if missing:
        raise Refusal(
            f"{location}-*: shard {missing[0]} of {len(missing) + len(numbers)} is missing"
            f" ({len(missing)} in all); download the split again"
        )


def _check_numbers(files: Sequence[Path]) -> None:
    """Raises Refusal for a gap in converted files 0000.parquet, 0001.parquet, ..., which state no
    count.
    """
    numbers = {int(match[1]) for file in files if (match := NUMBERED.match(file.name))}
    missing = sorted(set(range(max(numbers, default=-1) + 1)) - numbers)
    if missing:
        raise Refusal(
            f"{files[0].parent}: {missing[0]:04d}.parquet is missing, beside "
            f"{max(numbers):04d}.parquet;"
            " download the split again"
        )


def _layout(file: Path, layouts: Sequence[Layout]) -> Layout:
    columns = row_files.columns(file)
    for layout in layouts:
        if set(layout.columns) <= set(columns):
            return layout
    accepted = "; or ".join(", ".join(layout.columns) for layout in layouts)
    raise Refusal(f"{file} has the columns {', '.join(columns) or 'none'}; accepted: {accepted}")
