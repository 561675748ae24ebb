"""Lets a stage that saves checkpoints end well when it is asked to stop: by Ctrl-C, or SIGTERM (preemption)."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
            f"\n{signal.Signals(number).name}: this round is finished and saved, then the run stops; again: at once",
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
