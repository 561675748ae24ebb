"""Small files in the format of the published datasets, a dozen rows a split, written into folders of a test's."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
NUM_TRAIN, NUM_HELDOUT = 13, 11
THINGS = ("apples", "pencils", "eggs", "coins", "books")
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Fay", "Gus")


def write_jsonl(file: Path, rows: Iterable[Row]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return file


def write_parquet(file: Path, rows: Iterable[Row]) -> Path:
    import pyarrow
    from pyarrow import parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), file)
    return file


def gsm8k_rows(count: int, first: int = 0) -> list[Row]:
    rows = []
    for n in range(first, first + count):
        name, thing, total = NAMES[n % 7], THINGS[n % 5], 990 + 3 * n
        rows.append(
            {
                "question": f"{name} has {987 + n} {thing} and buys {2 * n + 3} more.\u2028How many {thing} are there?",
                "answer": f"There are {987 + n}+{2 * n + 3} = <<{987 + n}+{2 * n + 3}={total}>>{total}\n#### {total:,}",
            }
        )
    return rows


def write_gsm8k(folder: Path) -> Path:
    """OpenAI's two jsonl files. Returns the folder."""
    write_jsonl(folder / "train.jsonl", gsm8k_rows(NUM_TRAIN))
    write_jsonl(folder / "test.jsonl", gsm8k_rows(NUM_HELDOUT, first=100))
    return folder
