"""`starts.jsonl` of a run directory: one line for every start, with what it ran on and what was
changed for it.

date, pid, host, command               when and where
version, commit                        of this library, and the git commit of the code where it is a checkout
environment                            see `environment.py`
mesh                                   the sizes of the mesh that is used, on each host
begin, origins                         the run that is begun from, and where its SFT policy and reward model were made
digests                                of config, data, pretrained folders and code (`digests.py`)
at                                     {stage: version of its newest checkpoint}: what the start goes on from
changed                                {key: [before, now]} of the config since the start before
differences                            what may change numbers by rounding from here on, in words
"""

import os
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import rlhf_jax
from rlhf_jax.records import jsonl

FILE = "starts.jsonl"
STAGE = "start"
GIT_SECONDS = 10


def read(directory: Path) -> list[dict[str, Any]]:
    """The starts of a run, oldest first; none where an older version made it.

    Raises Refusal for a damaged line.
    """
    path = directory / FILE
    return jsonl.read(path) if path.exists() else []


def write(directory: Path, start: dict[str, Any]) -> None:
    """Appends a start, with its date, process and command."""
    path = directory / FILE
    jsonl.drop_torn_line(path)
    jsonl.append(path, {"stage": STAGE, **process_facts(), **start})


def process_facts() -> dict[str, Any]:
    """This process and its code."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "version": rlhf_jax.__version__,
        "commit": commit(),
    }


@cache
def commit() -> str:
    """The git commit of the package's checkout, with "+changes" where files differ from it; "" for
    an installed package.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + (
            "+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments],
        capture_output=True,
        text=True,
        timeout=GIT_SECONDS,
        check=True,
    )
    return done.stdout.strip()
