"""Notes to whoever started a run: one line each on the standard error."""

import sys

from rlhf_jax.records import writing


def say(text: str) -> None:
    """Prints one line that begins with "note:"; of several processes, the first does."""
    if writing.writes():
        print(f"note: {' '.join(text.split())}", file=sys.stderr, flush=True)
