"""Notes to whoever started a run: one line each on the standard error."""

import sys

from rlhf_jax.devices import distributed


def say(text: str) -> None:
    """Prints one line that begins with "note:"; of several processes, the first does."""
    if distributed.writes():
        print(f"note: {' '.join(text.split())}", file=sys.stderr, flush=True)
