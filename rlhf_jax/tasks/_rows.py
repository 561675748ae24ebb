"""Rows of parquet and jsonl files as dicts, streamed, and what a row's fields may be."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.refusal import Refusal

Row = dict[str, Any]
ROWS_PER_BATCH = 1024


def columns(file: Path) -> list[str]:
    """Names of a file's columns; of a jsonl file, those of its first row.

    Raises Refusal where the file is empty or is not what its name says.
    """
    if file.suffix == ".parquet":
        return _open_parquet(file).schema_arrow.names
    for _, row in _lines(file):
        return list(row)
    raise Refusal(f"{file} is empty; it should hold one JSON object a line: download it again")


def read(file: Path, needed: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """(where, row) of each row, with the needed columns of a parquet file, or all of a jsonl row.

    Raises Refusal that names the file and the row where one is malformed or lacks a needed column.
    """
    if file.suffix == ".parquet":
        yield from _parquet(file, needed)
        return
    for where, row in _lines(file):
        missing = [column for column in needed if column not in row]
        if missing:
            raise Refusal(f"{where}: {_listed(missing)} is missing; found {_listed(row)}")
        yield where, row


def text(where: str, row: Row, key: str, empty: bool = False) -> str:
    """A field that must be text, and not empty unless so said. Raises Refusal that names row and field."""
    value = row.get(key)
    if not isinstance(value, str) or not (value or empty):
        raise Refusal(f"{where}: {key!r} is {short(value)}; accepted: a text{'' if empty else ' that is not empty'}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Refusal(f"{where}: {key!r} holds {value[error.start]!r}, half of a character; remove it") from None
    return value


def short(value: Any) -> str:
    """A value as a message shows it: 60 characters at most, on one line."""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _open_parquet(file: Path) -> Any:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(file)
    except (ArrowException, OSError) as error:
        raise Refusal(_damaged(file, error)) from None


def _parquet(file: Path, needed: Sequence[str]) -> Iterator[tuple[str, Row]]:
    from pyarrow import ArrowException

    number = 0
    with _open_parquet(file) as parquet:
        try:
            for batch in parquet.iter_batches(ROWS_PER_BATCH, columns=list(needed)):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}, row {number}", row
        except (ArrowException, OSError) as error:
            raise Refusal(_damaged(file, error)) from None


def _damaged(file: Path, error: Exception) -> str:
    return f"{file} is not a whole parquet file ({' '.join(str(error).split())}); download it again"


def _lines(file: Path) -> Iterator[tuple[str, Row]]:
    """(file:line, object) of each line. A file of bytes is cut at `\\n` alone: JSON texts may hold other separators."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file}:{number}"
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise Refusal(f"{where}: found a byte 0x{line[error.start]:02x} that is not UTF-8") from None
            except json.JSONDecodeError as error:
                shown = short(line.decode().rstrip("\n"))
                raise Refusal(f"{where}: {shown} is not JSON ({error}); a line is an object") from None
            if not isinstance(row, dict):
                raise Refusal(f"{where}: found {short(row)}; a line is an object")
            yield where, row


def _listed(keys: Any) -> str:
    return ", ".join(map(repr, keys)) or "none"
