"""Notes to whoever started a run: one line each on the standard error."""

import sys
from pathlib import Path

from rlhf_jax.devices import distributed


def say(text: str) -> None:
    """Prints one line that begins with "note:"; of several processes, the first does."""
    if distributed.writes():
        print(f"note: {' '.join(text.split())}", file=sys.stderr, flush=True)


def say_cut(path: Path, stage: str, last: int | None, version: int, step: int = 1) -> None:
    """Says that a file of lines ends before the version that a stage goes on from; nothing where it
    does not.

    Args:
      path: of the file.
      stage: whose lines it has.
      last: the last update of the stage in the file; None: it has none.
      version: that the stage goes on from.
      step: updates from one line's to the next one's.
    """
    needed = version - step
    if not version or last == needed or not distributed.writes():
        return
    found = "has no update" if last is None else f"ends with update {last}"
    say(
        f"{path} {found} of {stage}, and version {version}, which the stage goes on from, needs the "
        f"lines up to update {needed}: stop and bring the file back, or remove the checkpoints of "
        f"{stage} after version {0 if last is None else last + step} to have those updates made "
        "again; else the lines stay missing"
    )
