"""The ended cells of a study, one line each in a file that is committed, so that any clone goes on
from it.

    {"base": "<digest>", "config": {...}}                                  a config that cells differ from, flattened
    {"cell": "<digest>", "base": "<digest>", "changes": {...}, ...}         an ended cell

A cell is known by the digest of its whole config, without its directory: an edited study asks for
other cells, whatever they are called. `golden` is the hash of the golden numbers that the cell
depends on (`provenance.golden_hash`): lines with another hash than today's are never used. Numbers
keep all their digits, so that a cell that is run again can be compared to the bit.
"""

import fcntl
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_jax.refusal import Refusal
from rlhf_jax.run_directory import history
from rlhf_jax.sweeps.provenance import digest

Line = dict[str, Any]
DIGITS = 4  # significant ones that a measure keeps of a figure
NO_NUMBERS = ("directory", "job", "sft.min_whole_references")
"""Keys that enter no number: where a run is written, which part of it is run, and what is refused
before it begins.
"""


REWARD_STAGES = "reward_stages"
"""Beside the keys of a cell's config: the digest of its reward model's stages, where they are of
another variant.
"""


def significant(value: float) -> float:
    """A figure with the digits that a measure keeps of it in a cell's line."""
    return float(f"{value:.{DIGITS}g}")


def identity(config: Mapping[str, Any]) -> str:
    """The digest of a flattened config without the keys that do not enter its numbers."""
    return digest({key: value for key, value in config.items() if key not in NO_NUMBERS})


def append(
    path: Path, config: Mapping[str, Any], base: Mapping[str, Any], line: Mapping[str, Any]
) -> None:
    """Appends an ended cell, and its base config where the file does not have it yet.

    Several processes may append at once: the file is locked meanwhile.

    Args:
      path: the file; its directory is made.
      config: the cell's flattened config.
      base: the flattened config of the study that it differs from.
      line: what is kept of the cell.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    base = {key: value for key, value in base.items() if key not in NO_NUMBERS}
    changes = {
        key: value
        for key, value in config.items()
        if key not in NO_NUMBERS and base.get(key, ...) != value
    }
    removed = sorted(key for key in base if key not in config)
    known = {"cell": identity(config), "base": digest(base), "changes": changes} | (
        {"removed": removed} if removed else {}
    )
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        held, newline, torn = file.read().rpartition(b"\n")
        if torn:
            file.truncate(len(held) + len(newline))  # by a kill: its cell has not ended
        added = b""
        if digest(base).encode() not in held:
            added += encoded({"base": known["base"], "config": base})
        file.write(added + encoded(known | dict(line)))
        file.flush()
        os.fsync(file.fileno())


def encoded(line: Mapping[str, Any]) -> bytes:
    """One line of JSON; a number that is not finite is an error."""
    return json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def read(path: Path) -> tuple[Line, ...]:
    """The cells of a file, each with its whole flattened config; () where there is no file.

    A last line that a kill has torn is left out. Raises Refusal that names file and line for
    anything else that is no cell.
    """
    if not path.exists():
        return ()
    stat = path.stat()
    return _read(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=4)
def _read(path: Path, mtime_ns: int, size: int) -> tuple[Line, ...]:
    del mtime_ns, size  # they say that the file is still the one that was read
    bases: dict[str, dict[str, Any]] = {}
    cells = []
    whole, _, _torn = path.read_bytes().rpartition(b"\n")
    for place, text in enumerate(whole.split(b"\n") if whole else [], 1):
        try:
            line = json.loads(text)
            if "config" in line:
                bases[line["base"]] = line["config"]
                continue
            kept = {
                key: value
                for key, value in bases[line["base"]].items()
                if key not in line.get("removed", ())
            }
            cells.append(line | {"config": kept | line["changes"]})
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(
                f"{path}, line {place}: no line of a cell ({error}); remove it and run the study "
                "again"
            ) from error
    return tuple(cells)


def line_identity(line: Line, path: Path) -> str:
    """The digest that the cell of a line has under today's keys.

    Args:
      line: of a study's file.
      path: that file, for the message.

    Raises as `under_todays_keys`.
    """
    return identity(under_todays_keys(line["config"], str(path)))


def under_todays_keys(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A cell's flattened config under the keys of today's code.

    Renamed keys have their new names. A key that is newer than the cell gets the value under which
    the code does the same as before, so that cells are not run again for it.

    Args:
      config: values by keys joined by dots.
      where: the source of the config, for the message.

    Raises Refusal for a key that no longer exists.
    """
    translated = history.translated(config, where)
    reward_stages = (
        {REWARD_STAGES: translated.pop(REWARD_STAGES)} if REWARD_STAGES in translated else {}
    )
    known = _known_keys(
        *(translated[name] for name in ("algorithm.name", "task.name", "model.family", "reward"))
    )
    history.check_known(translated, known, where)
    added = {
        key: history.older_value(key, default)
        for key, default in known.items()
        if key not in translated
    }
    return added | translated | reward_stages


@functools.cache
def _known_keys(algorithm: str, task: str, family: str, reward: str) -> dict[str, Any]:
    from rlhf_jax import build

    components = {
        "algorithm": {"name": algorithm},
        "task": {"name": task},
        "model": {"family": family},
    }
    return build.known_keys(components | {"reward": reward})
