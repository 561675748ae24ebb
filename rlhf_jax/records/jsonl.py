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
back into floats. `lines.py` reads.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, SupportsFloat

from rlhf_jax.devices import distributed
from rlhf_jax.records import lines
from rlhf_jax.records.lines import Head, Line, head_of, read

__all__ = [
    "Line",
    "append",
    "append_all",
    "cut_back",
    "drop_torn_line",
    "number",
    "read",
    "replace",
]

ENCODE = json.JSONEncoder(allow_nan=False).encode  # `json.dumps` makes an encoder for every line


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


def drop_torn_line(path: Path) -> None:
    """Removes what follows the last newline, so that the next line starts on its own.

    A missing file stays missing. Only the end of the file is read.
    """
    if not path.exists() or not distributed.writes():
        return
    begin, text = next(lines.from_end(path), (0, None))
    end = 0 if text is None else begin + len(text) + 1
    if end < path.stat().st_size:
        os.truncate(path, end)


def cut_back(
    path: Path,
    stage: str,
    update: int,
    evaluations_from: int | None = None,
    aside: Path | None = None,
) -> int | None:
    """Makes the file as it was when `stage` had made version `update`: what its checkpoint is
    resumed with.

    Removes the stage's own lines with "update" >= `update`, evaluations of the stage ("of") with
    "update" >= `evaluations_from` (default `update`; `update + 1` where a version is evaluated
    before its checkpoint is written), the stage's lines without "update" (timings, which are
    written when it ends), and a torn last line. Other lines keep their bytes. A missing file stays
    missing.

    The file is read from its end, up to the last line of the stage that remains: a stage writes its
    updates in order, and each evaluation of a version after the update that made it. The file is
    truncated there; where lines of other stages follow, it is replaced by an atomic rename.

    Args:
      path: of the file.
      stage: that goes on.
      update: the version that it goes on from.
      evaluations_from: the first version whose evaluations are removed, at least `update`.
      aside: a file to which the removed lines are appended, for lines that may not be written again.

    Returns the last update of the stage that remains, None where there is none. Raises Refusal that
    names file and line for a line, among those that were read, that is not a JSON object.
    """
    if not path.exists() or not distributed.writes():
        return None
    limit = update if evaluations_from is None else evaluations_from
    begin, last, any_cut, any_left = 0, None, False, False
    for _, end, head in lines.heads_from_end(path):
        if _is_cut(head, stage, update, limit):
            any_cut = True
        elif head.stage == stage:
            begin, last = end, head.update
            break
        else:
            any_left = True
    if any_cut:
        _cut(path, begin, any_left, aside, lambda head: _is_cut(head, stage, update, limit))
    else:
        drop_torn_line(path)
    return last


def _cut(
    path: Path, begin: int, any_left: bool, aside: Path | None, is_cut: Callable[[Head], bool]
) -> None:
    """Removes lines from the byte `begin` on; `any_left` tells whether others stay there."""

    def texts(wanted: bool) -> Iterator[bytes]:
        with path.open("rb") as file:
            file.seek(begin)
            for text in file:
                if text.endswith(b"\n") and is_cut(head_of(text[:-1], path, begin)) == wanted:
                    yield text

    if aside is not None:
        aside.parent.mkdir(parents=True, exist_ok=True)
        with replacing(aside) as file:
            if aside.exists():
                _copy(aside, aside.stat().st_size, file)
            file.writelines(texts(True))
    if not any_left:
        os.truncate(path, begin)
        return
    with replacing(path) as file:
        _copy(path, begin, file)
        file.writelines(texts(False))


def _copy(path: Path, count: int, file: BinaryIO) -> None:
    """Copies the first `count` bytes of a file."""
    with path.open("rb") as source:
        while count:
            data = source.read(min(lines.BLOCK_BYTES, count))
            file.write(data)
            count -= len(data)


def _is_cut(head: Head, stage: str, update: int, evaluations_from: int) -> bool:
    if head.stage == stage:
        return head.update is None or head.update >= update
    return head.of == stage and (head.update is None or head.update >= evaluations_from)


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
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Context manager of a file beside `path` that is renamed into place when its body has ended.

    Raises as `replace`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
