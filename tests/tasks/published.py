"""Small files in the format of the published datasets, a dozen rows a split, written into folders
of a test's.
"""

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
                "question": f"{name} has {987 + n} {thing} and buys {2 * n + 3} more.\u2028How "
                f"many {thing} are there?",
                "answer": f"There are {987 + n}+{2 * n + 3} = "
                f"<<{987 + n}+{2 * n + 3}={total}>>{total}\n#### {total:,}",
            }
        )
    return rows


def write_gsm8k(folder: Path) -> Path:
    """OpenAI's two jsonl files. Returns the folder."""
    write_jsonl(folder / "train.jsonl", gsm8k_rows(NUM_TRAIN))
    write_jsonl(folder / "test.jsonl", gsm8k_rows(NUM_HELDOUT, first=100))
    return folder


def tldr_rows(count: int, first: int = 0) -> list[Row]:
    rows = []
    for n in range(first, first + count):
        name, thing = NAMES[n % 7], THINGS[n % 5]
        post = "\n".join(
            f"{name} and I argue about {thing}, for the {k + 1}. time." for k in range(n % 3 + 1)
        )
        rows.append(
            {
                "id": f"t3_{n}",
                "subreddit": ("relationships", "AskReddit", "tifu")[n % 3],
                "title": f"[{20 + n}M] my friend {name} takes all {thing}",
                "post": f"{post}\n\nWhat would you do?{' Really.' * (n % 4)}",
                "summary": f"{name} takes my {thing}; {n} times so far.",
            }
        )
    return rows


def tldr_prompt(row: Row) -> str:
    return (
        f"SUBREDDIT: r/{row['subreddit']}\n\nTITLE: {row['title']}\n\nPOST: {row['post']}\n\nTL;DR:"
    )


def openai_comparison(row: Row, split: str, choice: int) -> Row:
    """A comparison of OpenAI's of the post of a row: its summary is preferred."""
    worse = {"text": f" {row['title']}.", "policy": "sup1", "note": None}
    better = {"text": f" {row['summary']}", "policy": "ref", "note": "ok"}
    info = {key: row[key] for key in ("id", "post", "title", "subreddit")}
    return {
        "info": info,
        "summaries": [worse, better] if choice else [better, worse],
        "choice": choice,
        "worker": "w",
        "batch": "batch3",
        "split": split,
        "extra": {"confidence": 7},
    }


def write_tldr(folder: Path) -> Path:
    """OpenAI's jsonl files, and their comparisons in `comparisons/`. Returns the folder."""
    train, heldout = tldr_rows(NUM_TRAIN), tldr_rows(NUM_HELDOUT, first=100)
    write_jsonl(folder / "train.jsonl", train)
    write_jsonl(folder / "valid.jsonl", heldout)
    pairs = [openai_comparison(row, "train", n % 2) for n, row in enumerate(train)]
    pairs += [openai_comparison(row, f"valid{n % 2 + 1}", n % 2) for n, row in enumerate(heldout)]
    write_jsonl(folder / "comparisons" / "batch3.json", pairs[::2])
    write_jsonl(folder / "comparisons" / "batch4.json", pairs[1::2])
    return folder


def chat(*contents: str, system: str = "") -> list[Row]:
    """Messages of a user and an assistant in turn."""
    messages: list[Row] = [
        {"content": text, "role": ("user", "assistant")[n % 2]} for n, text in enumerate(contents)
    ]
    return [{"content": system, "role": "system"}, *messages] if system else messages


def no_robots_rows(count: int, first: int = 0) -> list[Row]:
    rows = []
    for n in range(first, first + count):
        name, thing = NAMES[n % 7], THINGS[n % 5]
        ask = f"How many {thing} does {name} have? Hint {n}."
        said = [ask, f"{name} has {n} {thing}."]
        said += ["And tomorrow?\n", f"{n + 1}, I think 😀."] if n % 3 == 1 else []
        messages = chat(*said, system=f"{name} answers." if n % 5 == 2 else "")
        rows.append(
            {"prompt": ask, "prompt_id": f"{n:064x}", "messages": messages, "category": "Chat"}
        )
    return rows


def write_no_robots(folder: Path) -> Path:
    """A parquet file a split in `data/`. Returns the folder."""
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", no_robots_rows(NUM_TRAIN))
    write_parquet(
        folder / "data" / "test-00000-of-00001.parquet", no_robots_rows(NUM_HELDOUT, first=100)
    )
    return folder


def ultrafeedback_rows(count: int, first: int = 0) -> list[Row]:
    """Every fifth row is a tie."""
    rows = []
    for n in range(first, first + count):
        ask = f"Name {n} {THINGS[n % 5]}, please."
        chosen, rejected = chat(ask, f"Here are {n} of them, {NAMES[n % 7]}."), chat(ask, "No.")
        scores = {"score_chosen": 8.0, "score_rejected": 8.0 if n % 5 == 3 else 4.5}
        row = {
            "prompt": ask,
            "prompt_id": f"{n:064x}",
            "chosen": chosen,
            "rejected": rejected,
            "messages": chosen,
        }
        rows.append(row | scores)
    return rows


def write_ultrafeedback(folder: Path) -> Path:
    """A parquet file a split in `data/`. Returns the folder."""
    write_parquet(
        folder / "data" / "train_prefs-00000-of-00001.parquet", ultrafeedback_rows(NUM_TRAIN)
    )
    write_parquet(
        folder / "data" / "test_prefs-00000-of-00001.parquet",
        ultrafeedback_rows(NUM_HELDOUT, first=100),
    )
    return folder
