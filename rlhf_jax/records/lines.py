"""Reads JSON-lines files of a run directory: forwards and from the end, without holding them whole.

A line is an object with at least "stage" (see `jsonl.py`). A last line without its newline was torn
by a kill and is left out. Files of long runs have gigabytes, and a start needs their last lines
alone. Their heads ("stage", "of", "update", which are written first) are therefore read without
parsing the rest.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_jax.refusal import Refusal

Line = dict[str, Any]
TEXT_KEYS = frozenset({"stage", "of", "kind", "prompt", "completion", "text"})
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
BLOCK_BYTES = 1 << 18
"""Bytes that are read at once."""
_BEGIN = b'{"stage": "'
_NON_FINITE = tuple(f'"{text}"'.encode() for text in NON_FINITE)
_HEAD = re.compile(rb'\{"stage": "(\w+)"(?:, "of": "(\w+)")?, "update": (\d+)[,}]')


@dataclass(frozen=True)
class Head:
    """The keys of a line that tell what it is about; None for a key that the line lacks."""

    stage: str
    of: str | None
    update: int | None


def read(path: Path) -> list[Line]:
    """Every whole line, in order. Raises as `iterate`."""
    return list(iterate(path))


def iterate(path: Path) -> Iterator[Line]:
    """Each whole line in turn.

    Raises Refusal that names file and line for anything that is not a JSON object;
    FileNotFoundError.
    """
    line_number = 1
    with path.open("rb") as file:
        while block := file.readlines(BLOCK_BYTES):
            if not block[-1].endswith(b"\n"):
                block.pop()
            yield from _block(block) or (
                parsed(text[:-1], f"{path}, line {line_number + place}")
                for place, text in enumerate(block)
            )
            line_number += len(block)


def _block(block: Sequence[bytes]) -> list[Line] | None:
    """The lines of a block, parsed in one call, which takes half as long as a call for each. None
    where they have to be read one by one: for an error to be named, for numbers that are not
    finite, and for lines that somebody else wrote.
    """
    data = b",".join(block)
    if any(text in data for text in _NON_FINITE) or not data.startswith(_BEGIN):
        return None
    try:
        found = json.loads(b"[%b]" % data)
    except ValueError:
        return None
    whole = data.count(b"\n," + _BEGIN) == len(block) - 1 == len(found) - 1
    return found if whole else None


def texts(path: Path) -> Iterator[bytes]:
    """The bytes of each whole line in turn, without its newline."""
    with path.open("rb") as file:
        for text in file:
            if text.endswith(b"\n"):
                yield text[:-1]


def integers(path: Path, names: Sequence[str]) -> Iterator[tuple[int, ...]]:
    """The values of some keys of each line, which are integers.

    Nothing else of a line is parsed where the keys are found as the writer sets them: a quote within
    a text is escaped, so that no text holds one.

    Args:
      path: of the file.
      names: of the keys. They are written before any key of the same name inside of another value.

    Raises as `iterate`, and Refusal for a line that lacks a key or has another value.
    """
    patterns = [re.compile(rb'"%b": (-?\d+)[,}]' % name.encode()) for name in names]
    for line_number, text in enumerate(texts(path), 1):
        matches = [pattern.search(text) for pattern in patterns]
        if text.endswith(b"}") and all(matches):
            yield tuple(int(match[1]) for match in matches if match)
        else:
            place = f"{path}, line {line_number}"
            line = parsed(text, place)
            yield tuple(_integer(line, name, place) for name in names)


def _integer(line: Line, name: str, place: str) -> int:
    value = line.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refusal(f"{place}: expected an integer as {name!r}, found {value!r}")
    return value


def from_end(path: Path) -> Iterator[tuple[int, bytes]]:
    """The whole lines from the last one to the first: the byte that each begins at, and its bytes
    without the newline.

    The file is read in blocks from its end, as far as lines are asked for.
    """
    with path.open("rb") as file:
        position, rest, is_torn = file.seek(0, 2), b"", True
        while position:
            size = min(BLOCK_BYTES, position)
            position -= size
            file.seek(position)
            # the first piece may begin in the block before
            rest, *pieces = (file.read(size) + rest).split(b"\n")
            begin = position + len(rest) + 1 + sum(len(piece) + 1 for piece in pieces)
            for piece in reversed(pieces):
                begin -= len(piece) + 1
                if not is_torn:
                    yield begin, piece
                is_torn = False
        if not is_torn:
            yield 0, rest


def heads_from_end(path: Path) -> Iterator[tuple[int, int, Head]]:
    """The heads of whole lines from the last one to the first, each with the bytes that its line
    begins and ends at, the newline included.

    Raises Refusal that names file and line for anything that is not a JSON object.
    """
    for begin, text in from_end(path):
        yield begin, begin + len(text) + 1, head_of(text, path, begin)


def head_of(text: bytes, path: Path, begin: int) -> Head:
    """The head of a line.

    Args:
      text: of the line, without its newline.
      path: of its file.
      begin: the byte that the line begins at; with `path` it gives the place that an error names.

    Raises Refusal where the line is not a JSON object with "stage".
    """
    match = _HEAD.match(text)
    # an evaluation's "of" may be written later by somebody else
    if match and text.endswith(b"}") and (match[2] or match[1] != b"evaluate"):
        of = None if match[2] is None else match[2].decode()
        return Head(match[1].decode(), of, int(match[3]))
    try:
        line = parsed(text, "")
    except Refusal:
        place = f"{path}, line {_line_number(path, begin)}"
        line = parsed(text, place)
    return Head(line["stage"], line.get("of"), line.get("update"))


def last_update(path: Path, stage: str) -> int | None:
    """The last update of a stage in a file, from its end; None where there is none.

    Args:
      path: of a file that may be missing.
      stage: of the update.
    """
    if not path.exists():
        return None
    updates = (
        head.update
        for _, _, head in heads_from_end(path)
        if head.stage == stage and head.update is not None
    )
    return next(updates, None)


def _line_number(path: Path, begin: int) -> int:
    count = 1
    with path.open("rb") as file:
        while begin:
            data = file.read(min(BLOCK_BYTES, begin))
            count, begin = count + data.count(b"\n"), begin - len(data)
    return count


def parsed(text: bytes, place: str) -> Line:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise Refusal(f"{place}: not JSON ({error})") from error
    if not isinstance(line, dict) or not isinstance(line.get("stage"), str):
        raise Refusal(f'{place}: expected an object with "stage", found {text[:80]!r}')
    return {key: _number_again(key, value) for key, value in line.items()}


def _number_again(key: str, value: object) -> object:
    return (
        NON_FINITE.get(value, value) if key not in TEXT_KEYS and isinstance(value, str) else value
    )
