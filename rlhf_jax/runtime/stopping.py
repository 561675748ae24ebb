"""Ends a run: well, when it is asked to stop by Ctrl-C or SIGTERM (preemption); and at once, when one of its threads hangs."""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from rlhf_jax.devices import distributed
from rlhf_jax.runtime import activity

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAMPLER = "sampler"  # the name of the sampling thread

_may_exit = False


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Inside, the first SIGINT or SIGTERM is noted, and what is yielded says so; the second raises KeyboardInterrupt.

    A signal that is ignored stays so. Outside of the main thread, where Python has no signals, nothing is noted.
    """
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)
        print(
            f"\n{signal.Signals(number).name}: the round or update under way is finished and saved, then the run stops; "
            "again: at once",
            file=sys.stderr,
        )

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, note)
    try:
        yield lambda: bool(noted)
    finally:
        for number in heard:
            signal.signal(number, before[number])


def allow_exit() -> None:
    """From now on `give_up` ends this process: it belongs to a command, not to somebody who has imported a function."""
    global _may_exit
    _may_exit = True


def give_up(error: BaseException) -> None:
    """Ends the process with status 1 where the main thread hangs, and so cannot raise; only says so where it may not."""
    if _may_exit and distributed.several():
        distributed.leave(error, 1)
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    if _may_exit:
        leave(1)


def hung_sampler() -> str:
    """What a sampling thread that outlived its run is in; "" where there is none."""
    left = [thread for thread in threading.enumerate() if thread.name == SAMPLER and thread.is_alive()]
    states = [activity.of(thread.ident or 0) for thread in left]
    return "; ".join(f"the sampler has been in {state.what} for {state.seconds:.0f} s" for state in states)


def leave_hung(status: Any) -> None:
    """Ends the process with a status where a sampling thread outlived its run: the interpreter's own end would wait for it.
    An exception that is on its way is printed first."""
    hung = hung_sampler()
    if not hung:
        return
    error = sys.exception()
    if error is not None and not isinstance(error, SystemExit):
        traceback.print_exception(error)
    print(
        f"{hung}, and the process ends without it; the same command goes on from the last checkpoint", file=sys.stderr
    )
    leave(status if isinstance(status, int) else 1)


def leave(status: int) -> None:
    """Ends the process without waiting for threads: one in a call of the devices cannot be interrupted."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
