"""Reads JSON from outside: the configs of published folders and the lines of datasets. Every error
names its location.

A byte-order mark is accepted. Refused are bytes that are not UTF-8, objects that give one key two
values, numbers and nestings that Python cannot read, and texts with a lone surrogate (half a
character), which no tokenizer accepts. NaN and Infinity are read as Python reads them; a caller
that needs a finite number checks for it.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_jax.refusal import MissingInput, Refusal

HALF = re.compile(
    r"\\u[dD][89a-fA-F]"
)  # an escape that may be half a character: UTF-8 itself cannot hold one
SHOWN = 60
OBJECT = "a JSON object a line"


def decoded(data: bytes, location: str, first_line: int = 1) -> str:
    """Decodes bytes as UTF-8.

    Args:
      data: the bytes.
      location: what a message calls the file.
      first_line: the number of the data's first line.

    Raises Refusal that names the line and the byte where they are not UTF-8.
    """
    try:
        return data.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + data[: error.start].count(b"\n")
        byte = data[error.start]
        raise Refusal(
            f"{location}:{line}: found a byte 0x{byte:02x} that is not UTF-8; save the file as UTF-8"
        ) from None


def parse(text: str, location: str, accepted: str = "a JSON object") -> Any:
    """Parses a JSON text.

    Args:
      text: JSON.
      location: the file, or file and line, that a message names.
      accepted: the accepted form, for the message.

    Returns:
      The value.

    Raises:
      Refusal: for a text that is not JSON, is nested too deeply, or gives one key two values.
    """
    try:
        return json.loads(text, object_pairs_hook=_single)
    except json.JSONDecodeError as error:
        raise Refusal(
            f"{location}: {_cut(text)} is not JSON ({error}); accepted: {accepted}"
        ) from None
    except RecursionError:
        raise Refusal(f"{location}: {_cut(text)} is nested too deeply to be read") from None
    except ValueError as error:  # a key that is given twice, or a number of thousands of digits
        raise Refusal(f"{location}: {_cut(text)} cannot be read: {error}") from None


def read_object(file: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises MissingInput if there is no such file, and Refusal if it holds anything else or a lone
    surrogate.
    """
    text = read_text(file)
    content = parse(text, str(file))
    if not isinstance(content, dict):
        raise Refusal(f"{file}: found {short(content)}; accepted: a JSON object")
    if HALF.search(text):
        for path, value in _texts(content):
            _check_whole(value, f"{file}: {path!r}")
    return content


def read_text(file: Path) -> str:
    r"""Reads a file's text, with every line end as `\n`.

    Raises MissingInput if there is no such file, and Refusal if it cannot be read.
    """
    try:
        return decoded(file.read_bytes(), str(file)).replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise MissingInput(f"{file} is missing") from None
    except OSError as error:
        raise Refusal(f"{file} cannot be read ({error.strerror})") from None


def lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    r"""Streams (file:line, object) of each line of a file of JSON lines.

    The file is cut at `\n` alone, because JSON texts may hold other line separators. Surrogates are
    not checked here: see `text`. A file whose name ends in `.gz` is unpacked. Raises Refusal that
    names the line if it is no object.
    """
    number = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as data:
            for line in data:
                number += 1
                location = f"{file}:{number}"
                content = parse(decoded(line, str(file), number).rstrip("\r\n"), location, OBJECT)
                if not isinstance(content, dict):
                    raise Refusal(f"{location}: found {short(content)}; accepted: {OBJECT}")
                yield location, content
    except (EOFError, OSError, zlib.error) as error:
        raise Refusal(
            f"{file} cannot be read after line {number} ({error}); write or download it again"
        ) from None


def text(location: str, values: Mapping[str, Any], key: str, empty: bool = False) -> str:
    """Returns a field that must be text.

    Args:
      location: the file and line, or row, of the values.
      values: the fields of an object or a row.
      key: of the field.
      empty: accept an empty text.

    Raises:
      Refusal: that names location and field if the value is no text, is empty, or has a lone
        surrogate.
    """
    value = values.get(key)
    if not isinstance(value, str) or not (value or empty):
        raise Refusal(
            f"{location}: {key!r} is {short(value)}; accepted: a "
            f"text{'' if empty else ' that is not empty'}"
        )
    _check_whole(value, f"{location}: {key!r}")
    return value


def short(value: object) -> str:
    """Formats a value for a message: one printable line of 60 characters at most."""
    shown = (
        json.dumps(value, ensure_ascii=False, default=str)
        .encode("utf-8", "backslashreplace")
        .decode()
    )
    return shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 3]}..."


def _cut(text: str) -> str:
    return short(text.strip("\r\n"))


def _check_whole(value: str, location: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Refusal(
            f"{location} holds {value[error.start]!r}, half of a character; remove it"
        ) from None


def _texts(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields (path, text) for every text in a value, keys included."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, held in value.items():
            below = f"{path}.{key}" if path else key
            yield below, key
            yield from _texts(held, below)
    elif isinstance(value, list):
        for number, held in enumerate(value):
            yield from _texts(held, f"{path}[{number}]")


def _single(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs.

    Raises ValueError if a key has two values: JSON readers differ in the one that they take.
    """
    single = dict(pairs)
    if len(single) < len(pairs):
        for key, value in pairs:
            if single[key] != value:
                raise ValueError(
                    f"the key {short(key)} has two values, {short(value)} and {short(single[key])}"
                )
    return single
