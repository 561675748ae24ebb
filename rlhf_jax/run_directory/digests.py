"""Digests of what a run is made of: its config, its data, folders that it reads, and the code."""

import ast
import functools
import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.tasks.api import Split, Task
from rlhf_jax.tasks.common import reading

HEX_DIGITS = 16
CHUNK_BYTES = 1 << 20
WHOLE_BYTES = 64 << 20
"""Files up to this size are read whole."""
BLOCK_BYTES = 64 << 10
"""Of a larger file, blocks of this size are read: three of each tensor, or `NUM_BLOCKS` evenly
spaced ones.
"""
NUM_BLOCKS = 256
READ_SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".jinja")
"""Files of a pretrained folder that are read; a README says nothing of the numbers."""
PACKAGE = Path(__file__).resolve().parent.parent
NOT_IN_THE_NUMBERS = ("cli", "planner", "report", "run_directory", "sweeps")
"""Folders of the package that read commands, write, draw or look ahead: no number of training comes from them."""
SPLITS: tuple[Split, ...] = ("train", "heldout")


def digest_text(*parts: str) -> str:
    """The digest of texts in order."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:HEX_DIGITS]


def digest_values(values: Mapping[str, Any]) -> str:
    """The digest of flattened config values, whatever their order; tuples and lists are the same."""
    return digest_text(json.dumps(dict(sorted(values.items())), sort_keys=True))


def digest_file(path: Path) -> str:
    """The digest of a file: of its whole content up to `WHOLE_BYTES`, else of its size and of blocks.

    The blocks of a safetensors file are the beginning, the middle and the end of every tensor, so
    that two sets of weights of one shape differ wherever training has changed a tensor.
    """
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        else:
            digest.update(str(size).encode())
            for start in (
                _tensor_blocks(path) if path.suffix == ".safetensors" else _even_blocks(size)
            ):
                file.seek(start)
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()[:HEX_DIGITS]


def _even_blocks(size: int) -> list[int]:
    return [block * (size - BLOCK_BYTES) // (NUM_BLOCKS - 1) for block in range(NUM_BLOCKS)]


def _tensor_blocks(path: Path) -> list[int]:
    """The header, then three blocks of every tensor: a safetensors file begins with its header's
    length and the header.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    starts = list(range(0, 8 + length, BLOCK_BYTES))
    for name, tensor in sorted(header.items()):
        if name == "__metadata__":
            continue
        first, end = (8 + length + offset for offset in tensor["data_offsets"])
        last = max(first, end - BLOCK_BYTES)
        starts += [first, (first + last) // 2, last]
    return starts


def digest_folder(folder: Path, suffixes: tuple[str, ...] = ()) -> str:
    """The digest of the names and contents of a folder's files, with those of its sub-folders.

    Args:
      folder: an existing one.
      suffixes: of the files that count; (): all files.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and (not suffixes or path.suffix in suffixes)
    )
    return digest_text(*(f"{path.relative_to(folder)} {digest_file(path)}" for path in files))


def digest_path(path: str, weights: bool = True) -> str:
    """The digest of a file, or of a pretrained folder; "" where no path is given.

    Args:
      path: of the file or the folder.
      weights: whether a folder's weights count; those of a tokenizer's folder do not.
    """
    if not path:
        return ""
    target = Path(path)
    suffixes = READ_SUFFIXES if weights else READ_SUFFIXES[1:]
    return digest_folder(target, suffixes) if target.is_dir() else digest_file(target)


def digest_task(task: Task) -> str:
    """The digest of a task's data: the task's own digest, else that of all texts and rows of both
    splits.

    Raises ComponentError for an exception of the task's code, and for a prompt or reference that is
    no text.
    """
    if hasattr(task, "digest"):
        return task.digest()  # type: ignore[attr-defined]
    digest = hashlib.sha256()
    for text in _texts(task):
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:HEX_DIGITS]


def _texts(task: Task) -> Iterable[str]:
    for split in SPLITS:
        yield split
        for index in range(reading.num_prompts(task, split)):
            yield reading.prompt(task, split, index)
            yield from reading.references(task, split, index)
            if hasattr(task, "record"):
                yield json.dumps(_plain(reading.record(task, split, index)))
        for comparison in reading.comparisons(task, split):
            yield from comparison


def _plain(value: object) -> object:
    """A row's field as JSON has it; of an object only its type counts, as its text may hold an
    address.
    """
    if isinstance(value, Mapping):
        return sorted((str(key), _plain(inner)) for key, inner in value.items())
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | None) else type(value).__name__


@functools.cache
def digest_code() -> str:
    """The digest of the package's code that makes the numbers.

    Comments, docstrings and layout do not count.
    """
    sources = sorted(
        path
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in NOT_IN_THE_NUMBERS
    )
    return digest_text(*(f"{path.relative_to(PACKAGE)} {digest_source(path)}" for path in sources))


def digest_source(path: Path) -> str:
    """The digest of a Python source, without comments, docstrings and layout."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and ast.get_docstring(node, clean=False):
            del node.body[0]
    return digest_text(ast.dump(tree))
