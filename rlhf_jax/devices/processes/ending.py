"""The end of one process of several, with a line that says why: it must not wait for the others, which
may wait for it.
"""

import os
import re
import sys
import threading
from typing import NoReturn

import jax

from rlhf_jax.devices.processes.messages import place
from rlhf_jax.refusal import Refusal

XLA_STATUS = (
    "(UNKNOWN|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|FAILED_PRECONDITION): "
)

_leaving = threading.Lock()  # of the thread that ends this process


def of_another(said: str) -> None:
    """Ends this process where another has died, unless it is ending already.

    Args:
      said: who has died.
    """
    if _leaving.acquire(blocking=False):
        _end(said, 1)


def _end(text: str, status: int, goes_on: bool = True) -> NoReturn:
    """Prints why this process ends, and ends it at once."""
    process, count = place()
    print(f"\nprocess {process} of {count}: {text}", file=sys.stderr)
    if goes_on:
        print("the run stops; the same command goes on from the last checkpoint", file=sys.stderr)
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(status)


def leave(error: BaseException, status: int) -> NoReturn:
    """Prints an error and ends this process of several at once.

    The others may wait for it in a collective, so it must not wait for them.

    Args:
      error: what ended the run.
      status: the exit status; it is 1 where a call over all processes failed.
    """
    _leaving.acquire(blocking=False)
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, KeyboardInterrupt):
        text = "interrupted"
    elif is_from_a_call(error):
        text, status = (
            f"a call over all processes failed, as it does when another of them has ended ({text})",
            1,
        )
    elif isinstance(error, Refusal):
        text = f"error: {error}"
    # The same command would be refused again.
    _end(" ".join(text.split()), status, goes_on=not isinstance(error, Refusal))


def is_from_a_call(error: BaseException) -> bool:
    """True where XLA raised the error: jax raises one of its own errors or a plain ValueError for a
    failed collective.
    """
    return (
        isinstance(error, jax.errors.JaxRuntimeError)
        or re.match(XLA_STATUS, str(error)) is not None
    )
