"""Signs of life of a command that prints nothing for a while, such as one that compiles.

On a terminal the progress bar moves by itself. Elsewhere a line says every few seconds which stage
is under way, and whether it compiles.
"""

import sys
import threading
from typing import TextIO

from rlhf_jax.devices import distributed
from rlhf_jax.records import progress
from rlhf_jax.runtime import activity

SILENCE_SECONDS = 9.0
CHECK_SECONDS = 0.5


def start(stream: TextIO | None = None) -> None:
    """Starts the thread that prints the lines, for the life of the process.

    Args:
      stream: that the lines go to; standard output by default.
    """
    out = stream or sys.stdout
    if not out.isatty():
        threading.Thread(target=_beat, args=(out,), name="pulse", daemon=True).start()


def _beat(out: TextIO) -> None:
    programs, pause = activity.CompileCounter(), threading.Event()
    while not pause.wait(CHECK_SECONDS):
        if progress.silent_seconds() >= SILENCE_SECONDS and distributed.writes():
            progress.note_printed()
            print(line(programs.count), file=out, flush=True)


def line(programs: int) -> str:
    """The line of this moment.

    Args:
      programs: that have been compiled, or read from the cache.
    """
    return "  ".join(filter(None, (progress.current_line(), doing(programs)))) or "at work"


def doing(programs: int) -> str:
    """The activity of a thread of the command: it compiles, or is in one that has a name.

    Args:
      programs: that have been compiled, or read from the cache.
    """
    states = [
        (thread, activity.state_of(thread.ident))
        for thread in threading.enumerate()
        if thread.ident is not None
    ]
    for thread, state in states:
        if activity.compiles(thread.ident or 0):
            return f"compiling program {programs + 1}, {state.seconds:.0f} s"
    named = [state for _, state in states if state.what != activity.NOTHING_NAMED]
    return f"in {named[0].what} for {named[0].seconds:.0f} s" if named else ""
