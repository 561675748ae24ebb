"""JSON-lines files of a run directory: appended so that a kill leaves at most one torn last line,
and cut back exactly.

A line is an object with at least "stage"; most have "update". Three kinds are told apart when a
file is cut back:

    the training of a stage   {"stage": "rlhf", "update": 7, ...}                   update 7 made version 8 of version 7
    an evaluation             {"stage": "evaluate", "of": "rlhf", "update": 8, ...} version 8 was evaluated
    a stage as a whole        {"stage": "rlhf", "kind": "timing", ...}              no update; written when it ends

Of several processes only the first writes: in the others what writes or cuts does nothing
(`distributed.writes`).

Numbers that JSON cannot say are the strings "NaN", "Infinity" and "-Infinity"; `read` turns them
back into floats.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

from rlhf_jax.devices import distributed
from rlhf_jax.refusal import Refusal

Line = dict[str, Any]
TEXT_KEYS = frozenset({"stage", "of", "kind", "prompt", "completion", "text"})
ENCODE = json.JSONEncoder(allow_nan=False).encode  # `json.dumps` makes an encoder for every line
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def number(value: SupportsFloat) -> int | float | str:
    """A Python number (or a scalar of numpy or JAX) as JSON can say it; integers stay integers."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    real = float(value)
    if math.isfinite(real):
        return real
    return "NaN" if math.isnan(real) else "Infinity" if real > 0 else "-Infinity"


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Appends one line; see `append_all`.

    Args:
      path: of the file.
      line: values that JSON can say.
    """
    append_all(path, [line])


def append_all(path: Path, added: Iterable[Mapping[str, Any]]) -> None:
    """Appends lines in one write, visible to other processes when this returns.

    The file is opened for each call, so that a file replaced by `cut_back` is never written through
    an old handle.

    Args:
      path: of the file, which is made where it is missing.
      added: lines, of values that JSON can say.

    Raises OSError that names the file when the disk is full; lines that did not fit are taken back.
    """
    if not distributed.writes():
        return
    data = "".join(ENCODE(line) + "\n" for line in added).encode()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            _write_whole(descriptor, data)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error


def _write_whole(descriptor: int, data: bytes) -> None:
    size = os.fstat(descriptor).st_size
    written = os.write(descriptor, data)
    try:
        while written < len(data):
            written += os.write(descriptor, data[written:])
    except OSError:
        os.ftruncate(
            descriptor, size
        )  # a full disk must not leave half a line in front of the next one
        raise


def read(path: Path) -> list[Line]:
    """Every whole line, in order. A last line without its newline was torn by a kill and is left
    out.

    Raises Refusal that names file and line for anything else that is not a JSON object;
    FileNotFoundError.
    """
    return [line for _, line in _read_with_bytes(path)]


def _read_with_bytes(path: Path) -> list[tuple[bytes, Line]]:
    whole, newline, _torn = path.read_bytes().rpartition(b"\n")
    return (
        [
            (text, _parse(path, line_number, text))
            for line_number, text in enumerate(whole.split(b"\n"), 1)
        ]
        if newline
        else []
    )


def _parse(path: Path, line_number: int, text: bytes) -> Line:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise Refusal(f"{path}, line {line_number}: not JSON ({error})") from error
    if not isinstance(line, dict) or not isinstance(line.get("stage"), str):
        raise Refusal(
            f'{path}, line {line_number}: expected an object with "stage", found {text[:80]!r}'
        )
    return {key: _number_again(key, value) for key, value in line.items()}


def _number_again(key: str, value: object) -> object:
    return (
        NON_FINITE.get(value, value) if key not in TEXT_KEYS and isinstance(value, str) else value
    )


def drop_torn_line(path: Path) -> None:
    """Removes what follows the last newline, so that the next line starts on its own.

    A missing file stays missing.
    """
    if not path.exists() or not distributed.writes():
        return
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)


def cut_back(
    path: Path,
    stage: str,
    update: int,
    evaluations_from: int | None = None,
    aside: Path | None = None,
) -> set[int]:
    """Makes the file as it was when `stage` had made version `update`: what its checkpoint is
    resumed with.

    Removes the stage's own lines with "update" >= `update`, evaluations of the stage ("of") with
    "update" >= `evaluations_from` (default `update`; `update + 1` where a version is evaluated
    before its checkpoint is written), the stage's lines without "update" (timings, which are
    written when it ends), and a torn last line. Other lines keep their bytes; the file is replaced
    by an atomic rename. A missing file stays missing. Raises as `read` does.

    Args:
      path: of the file.
      stage: that goes on.
      update: the version that it goes on from.
      evaluations_from: the first version whose evaluations are removed.
      aside: a file to which the removed lines are appended, for lines that may not be written again.

    Returns the updates of the stage whose lines remain.
    """
    if not path.exists() or not distributed.writes():
        return set()
    limit = update if evaluations_from is None else evaluations_from
    lines_left, lines_cut, updates = [], [], set()
    for text, line in _read_with_bytes(path):
        if _is_cut(line, stage, update, limit):
            lines_cut.append(text + b"\n")
            continue
        lines_left.append(text + b"\n")
        if line["stage"] == stage and "update" in line:
            updates.add(line["update"])
    if aside is not None and lines_cut:
        aside.parent.mkdir(parents=True, exist_ok=True)
        replace(aside, (aside.read_bytes() if aside.exists() else b"") + b"".join(lines_cut))
    replace(path, b"".join(lines_left))
    return updates


def _is_cut(line: Line, stage: str, update: int, evaluations_from: int) -> bool:
    if line["stage"] == stage:
        return line.get("update", update) >= update
    return line.get("of") == stage and line.get("update", evaluations_from) >= evaluations_from


def replace(path: Path, data: bytes) -> None:
    """Writes a whole file beside `path` and renames it into place: a reader sees the old one or the
    new one.

    Args:
      path: of the file, in a folder that exists.
      data: all that the file will hold.

    Raises OSError that names the file when the disk is full; the old file is then untouched.
    """
    if not distributed.writes():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
