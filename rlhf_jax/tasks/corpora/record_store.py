"""Stores a task's records on disk for random access, in a directory named by a digest of the files
that they come from.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, overload

from rlhf_jax.refusal import Refusal
from rlhf_jax.tasks.api import Split
from rlhf_jax.tasks.corpora import conversations, published_files, row_files
from rlhf_jax.tasks.corpora.published_files import LeftOut, Record
from rlhf_jax.text import chat, json_texts

CHUNK_BYTES = 1 << 20
RECORDS_PER_BATCH = 1024
TASKS = Path(__file__).resolve().parents[1]
CODE = tuple(
    Path(str(module.__file__))
    for module in (published_files, row_files, conversations, chat, json_texts)
)
COUNTS = "counts.json"
MESSAGES = "messages"  # the field with what a conversation's prompt was rendered from, as JSON
Rows = Iterable[tuple[str, Record | LeftOut | None]]


@dataclass(frozen=True)
class Source:
    """The source of a store: files by split, the published numbers of rows, and the function that
    makes records of rows.

    `recipe` has the settings of a config that the records depend on. Two stores are different if
    their files, recipes or code are. A held-out record is left out if a training record has its
    prompt. A store of `prompts` keeps the first record of each prompt of a split.
    """

    task: str
    kind: Literal["prompts", "comparisons"]
    published: Mapping[Split, tuple[int, ...]]
    files: Mapping[Split, Sequence[Path]]
    rows: Callable[[Split], Rows]
    fields: tuple[str, ...]
    recipe: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name for tensorflow-datasets."""
        return f"{self.task}_{self.kind}"


class Records(Sequence[Record]):
    """Records by index, read from disk at each access. Reading many at once takes a third of the
    time of reading them one by one.
    """

    def read(self, indices: Sequence[int]) -> list[Record]:
        """The records at indices from 0 to len(self) - 1."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return self.read(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self.read([index % len(self)])[0]

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), RECORDS_PER_BATCH):
            yield from self[start : start + RECORDS_PER_BATCH]


class DataSource(Protocol):
    """Records of bytes that tensorflow-datasets reads by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, bytes]: ...

    def __getitems__(self, indices: Sequence[int], /) -> Sequence[Mapping[str, bytes]]: ...


class Stored(Records):
    """The records of a split of a store."""

    def __init__(self, source: DataSource, rendered: bool):
        """Wraps a data source.

        Args:
          source: of the split.
          rendered: prompts are conversations in a chat template, and records hold their messages.
        """
        self._source, self._rendered = source, rendered

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Sequence[int]) -> list[Record]:
        # One record through __getitems__ would start a pool of threads.
        raw = (
            [self._source[indices[0]]]
            if len(indices) == 1
            else self._source.__getitems__(list(indices))
        )
        records = [{field: value.decode() for field, value in record.items()} for record in raw]
        return [_rendered(record) for record in records] if self._rendered else records


def _rendered(record: Record) -> Record:
    return record | {"prompt": chat.Rendered(record["prompt"], json.loads(record[MESSAGES]))}


@dataclass(frozen=True)
class Store:
    """Records of both splits, with the counts of rows that they were made from."""

    splits: Mapping[Split, Records]
    counts: Mapping[
        Split, Mapping[str, Any]
    ]  # per split: rows read, records kept, and rows left out, with the first reason
    published: Mapping[Split, tuple[int, ...]]
    digest: str = ""  # of the files' content and the recipe

    @property
    def description(self) -> str:
        """Numbers of rows kept and read, those published where they differ, and rows left out with
        the first reason.
        """
        return "; ".join(
            f"{split}: {count['kept']} of {self._rows(split)}"
            for split, count in self.counts.items()
        )

    def _rows(self, split: Split) -> str:
        rows, published = self.counts[split]["rows"], self.published[split]
        told = (
            f"{rows} rows"
            if rows in published
            else f"{rows} rows ({' or '.join(map(str, published))} are published)"
        )
        left_out = self.counts[split].get("left_out", 0)
        return f"{told}, {left_out} left out: {self.counts[split]['because']}" if left_out else told


def open_store(source: Source, root: Path) -> Store:
    """Opens the store of a source, and builds it first if it does not exist.

    Of several processes that build it, the first to finish wins; the others use its store.

    Args:
      source: of the records.
      root: the folder that holds stores, one directory per digest.

    Raises:
      Refusal: if the files are malformed or change while they are read, or `root` cannot be
        written.
    """
    builder = import_module(
        "rlhf_jax.tasks.corpora.tfds_builder"
    )  # tensorflow-datasets takes most of a second to import
    name, content = _digests(source)
    directory = root / name
    if not directory.is_dir():
        _build(source, directory, builder)
    counts = json.loads((directory / COUNTS).read_text())
    splits: dict[Split, Records] = {
        split: Stored(builder.data_source(directory, source.name, split), MESSAGES in source.fields)
        for split in source.files
    }
    return Store(splits, counts, source.published, content)


def _build(source: Source, directory: Path, builder: ModuleType) -> None:
    """Builds in a temporary directory and renames it at the end, so that no process reads a store
    that is incomplete.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        partial_directory = Path(
            tempfile.mkdtemp(prefix=f"{directory.name}.part-", dir=directory.parent)
        )
    except OSError as error:
        raise Refusal(
            f"{directory.parent} cannot be written ({error.strerror}); set task.cache_dir"
        ) from None
    try:
        counts: dict[Split, dict[str, Any]] = {}
        seen: dict[Split, set[bytes]] = {}
        splits = {split: partial(_kept, source, split, counts, seen) for split in source.files}
        builder.build(builder.RecordsBuilder(source.name, splits, source.fields, partial_directory))
        shutil.rmtree(partial_directory / "downloads", ignore_errors=True)  # empty
        (partial_directory / COUNTS).write_text(json.dumps(counts) + "\n")
        if _digests(source)[0] != directory.name:
            files = ", ".join(str(file) for files in source.files.values() for file in files)
            raise Refusal(f"one of {files} changed while it was read; run again")
        partial_directory.chmod(0o755)
        _move(partial_directory, directory)
    finally:
        shutil.rmtree(partial_directory, ignore_errors=True)


def _move(partial_directory: Path, directory: Path) -> None:
    """Renames a directory; keeps the store that another process has built in the meantime."""
    try:
        os.rename(partial_directory, directory)
    except OSError:
        if not directory.is_dir():
            raise


def _kept(
    source: Source, split: Split, counts: dict[Split, dict[str, Any]], seen: dict[Split, set[bytes]]
) -> Iterator[Record]:
    """Yields the records of a split that are kept, and counts them.

    `train` comes first: a held-out record is left out if `train` has its prompt.
    """
    rows = kept = left_out = 0
    because = ""
    prompts = seen.setdefault(split, set())
    if split == "heldout" and "train" not in counts:
        raise RuntimeError("held-out records were asked for before the training ones were written")
    for location, record in source.rows(split):
        rows += 1
        if isinstance(record, LeftOut):
            left_out += 1
            because = because or f"{location}: {record}"
            continue
        if record is None:
            continue
        prompt = hashlib.blake2b(record["prompt"].encode(), digest_size=16).digest()
        if (source.kind == "prompts" and prompt in prompts) or (
            split == "heldout" and prompt in seen["train"]
        ):
            continue
        prompts.add(prompt)
        kept += 1
        yield record
    if not kept:
        reason = f"; {left_out} left out: {because}" if left_out else ""
        raise Refusal(
            f"{source.files[split][0]}: none of {rows} rows is left for the split {split!r}{reason}"
        )
    counts[split] = {"rows": rows, "kept": kept} | (
        {"left_out": left_out, "because": because} if left_out else {}
    )


def _digests(source: Source) -> tuple[str, str]:
    """Two digests of 16 hex digits: the store's name, and that of the data alone.

    The name digests the names, sizes and content of the files, the recipe, and the code that makes
    the records. The other one digests content and recipe, so that newer code does not change it.
    """
    recipe = json.dumps([source.name, source.fields, source.recipe]).encode()
    named, alone = hashlib.sha256(recipe), hashlib.sha256(recipe)
    for file in (*CODE, TASKS / f"{source.task}.py"):
        named.update(file.read_bytes())
    for split, files in source.files.items():
        for file in files:
            named.update(json.dumps([split, file.name, file.stat().st_size]).encode())
            alone.update(json.dumps([split, file.stat().st_size]).encode())
            with file.open("rb") as content:
                while chunk := content.read(CHUNK_BYTES):
                    named.update(chunk)
                    alone.update(chunk)
    return named.hexdigest()[:16], alone.hexdigest()[:16]
