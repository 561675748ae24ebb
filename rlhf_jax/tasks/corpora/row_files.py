"""Streams the rows of parquet and jsonl files as dicts, and checks their fields."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax import extras
from rlhf_jax.refusal import Refusal
from rlhf_jax.text import json_texts
from rlhf_jax.text.json_texts import short as short
from rlhf_jax.text.json_texts import text as text

Row = dict[str, Any]
ROWS_PER_BATCH = 1024


def columns(file: Path) -> list[str]:
    """Names of a file's columns; of a jsonl file, those of its first row.

    Raises Refusal if the file is empty, or is not of the format that its name states.
    """
    if file.suffix == ".parquet":
        return _open_parquet(file).schema_arrow.names
    for _, row in json_texts.lines(file):
        return list(row)
    raise Refusal(f"{file} is empty; it should hold one JSON object a line: download it again")


def read(file: Path, needed: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Streams the rows of a file.

    Args:
      file: a parquet file, or one of JSON lines.
      needed: columns that every row must have.

    Yields:
      (location, row): of a parquet file the needed columns, of JSON lines all of them.

    Raises:
      Refusal: that names file and row, if one is malformed or lacks a needed column.
    """
    if file.suffix == ".parquet":
        yield from _parquet(file, needed)
        return
    for location, row in json_texts.lines(file):
        missing = [column for column in needed if column not in row]
        if missing:
            raise Refusal(f"{location}: {_listed(missing)} is missing; found {_listed(row)}")
        yield location, row


def number(location: str, row: Row, key: str) -> float:
    """Returns a field that must be a finite number.

    Args:
      location: the file and row, for messages.
      row: whose field is read.
      key: of the field.

    Raises:
      Refusal: that names row and field, for any other value.
    """
    value = row.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise Refusal(f"{location}: {key!r} is {short(value)}; accepted: a number")
    return float(value)


def _open_parquet(file: Path) -> Any:
    with extras.needed("hub", str(file)):
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(file)
    except (ArrowException, OSError) as error:
        raise Refusal(_damaged(file, error)) from None


def _parquet(file: Path, needed: Sequence[str]) -> Iterator[tuple[str, Row]]:
    with extras.needed("hub", str(file)):
        from pyarrow import ArrowException

    number = 0
    with _open_parquet(file) as parquet:
        try:
            for batch in parquet.iter_batches(ROWS_PER_BATCH, columns=list(needed)):
                for row in _batch_rows(batch, file, number):
                    number += 1
                    yield f"{file}, row {number}", row
        except (ArrowException, OSError) as error:
            raise Refusal(_damaged(file, error)) from None


def _batch_rows(batch: Any, file: Path, before: int) -> list[Row]:
    """The rows of a batch that follows `before` rows of the file.

    Raises Refusal that names the row for text that is not UTF-8.
    """
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            for name in batch.schema.names:
                try:
                    batch.column(name)[index].as_py()
                except UnicodeDecodeError as error:
                    raise Refusal(
                        f"{file}, row {before + index + 1}: {name!r} holds a byte "
                        f"0x{error.object[error.start]:02x} that is"
                        " not UTF-8; write the file as UTF-8"
                    ) from None
        raise


def _damaged(file: Path, error: Exception) -> str:
    return f"{file} is not a whole parquet file ({' '.join(str(error).split())}); download it again"


def _listed(keys: Iterable[object]) -> str:
    return ", ".join(map(repr, keys)) or "none"
