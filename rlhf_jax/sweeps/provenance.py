"""The versions of code and machine that a number was made with."""

import functools
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from rlhf_jax.algorithms.presets.table import PRESETS
from rlhf_jax.devices.processor import kind
from rlhf_jax.refusal import MissingInput, Refusal

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
IN_WHEEL = PACKAGE / "golden" / "steps.json"
GOLDEN = IN_WHEEL if IN_WHEEL.exists() else ROOT / "tests" / "golden" / "steps.json"
SHARED = ("sft", "reward_model", "evaluation")  # golden entries that every cell depends on
OF_PRESETS = "policy_gradient"
"""The algorithm whose settings a preset is."""
NO_SOURCES: Mapping[str, str] = {}
OWN_ALGORITHM = "code.algorithm"
"""The name of an algorithm's source among those digests: see `stages/common/own_code.py`."""
PROGRAMS = 1
"""Counts the changes of compiled programs that change numbers by rounding alone, which golden
numbers do not show. 1: weights, bounds and rates are arguments, and no longer constants.
"""
DIGITS = 16  # of a digest in hexadecimal: 64 bits


def digest(value: object) -> str:
    """The first 64 bits of the SHA-256 of a value's canonical JSON, in hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def golden_hash(
    algorithm: str, path: Path = GOLDEN, sources: Mapping[str, str] = NO_SOURCES
) -> str:
    """The digest of the golden numbers that an algorithm's runs depend on: its own steps, SFT,
    reward model, evaluation. A preset without a step of its own has that of `policy_gradient`.

    Args:
      algorithm: its name in a config.
      path: the file of golden numbers.
      sources: digests of the sources of components that are not of the package. They stand for the
        golden numbers that such components have not.

    Raises MissingInput where the file of golden numbers is missing, and Refusal for an algorithm
    without an entry.
    """
    if not path.exists():
        raise MissingInput(
            f"{path} is missing: a study records the golden numbers of the code, which a clone and "
            "a wheel have"
        )
    entries = json.loads(path.read_text())
    steps = {name: entry for name, entry in entries.items() if name.partition(":")[0] == algorithm}
    if not steps and algorithm in PRESETS:
        steps = {OF_PRESETS: entries[OF_PRESETS]}
    if not steps and OWN_ALGORITHM not in sources:
        raise Refusal(
            f"{path} has no golden step of {algorithm!r}; there are: {', '.join(entries)}"
        )
    return digest(steps | {name: entries[name] for name in SHARED} | dict(sources))


@functools.cache
def commit() -> str:
    """The commit that is checked out, with "+" where tracked files differ from it; "" outside a
    clone.
    """
    if (
        GOLDEN == IN_WHEEL
    ):  # an environment inside of somebody else's repository has that one's commits above it
        return ""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ).stdout.strip()


@functools.cache
def processor() -> str:
    """The kind of processor, the number of its threads and the generation of compiled programs:
    numbers of one seed agree to the bit only where these are the same. Lines of before `PROGRAMS`
    name no generation.
    """
    return f"{kind()}, {os.cpu_count()} threads, programs {PROGRAMS}"
