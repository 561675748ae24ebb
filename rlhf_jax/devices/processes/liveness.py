"""Signs of life between the processes of a run: where one dies, the others end with a line that names
it.

A process in a collective hears of a death at once, because the collective fails. One that waits
elsewhere, as for a file or a compiler, would be ended by jax after `distributed.HEARTBEAT_SECONDS`,
with a stack trace. So each process puts up a number that grows every `BEAT_SECONDS`, and reads the
numbers of the others. A process whose number has not grown for `LIMIT_SECONDS` has died, or its
machine has stopped.

Beside its number stands what the process is at work on, such as a slow reward. The others wait for it
in a collective meanwhile, and do not take that for a call that hangs.
"""

import atexit
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import jax

from rlhf_jax.devices.processes.messages import Board

BEAT_SECONDS = 2.0
LIMIT_SECONDS = 15.0
LEFT = "left"
"""What a process puts up at its end, in the place of its number."""


class Notices(Protocol):
    """The calls of a `Board` that a watch needs."""

    def write(self, name: str, text: str) -> None: ...

    def read(self, name: str) -> str | None: ...


class Watch:
    """The numbers of all processes, as one of them sees them, and what the others are at work on
    (`elsewhere`, by process).
    """

    def __init__(
        self, board: Notices, process: int, num_processes: int, seconds: Callable[[], float]
    ):
        """Counts from now on.

        Args:
          board: that the processes share.
          process: this one.
          num_processes: of the run.
          seconds: the time.
        """
        self._board, self._process, self._seconds = board, process, seconds
        self._others = [other for other in range(num_processes) if other != process]
        self._beat, self._answered = 0, seconds()
        self._last: dict[int, str | None] = {}
        self._heard = dict.fromkeys(self._others, seconds())
        self.work: Callable[[], str] = str  # what this process is at work on; "": nothing
        self.elsewhere: Mapping[int, str] = {}

    def look(self) -> str:
        """Puts the next number up and reads those of the others. Returns who has died; "": nobody."""
        now = self._seconds()
        try:
            self._board.write(str(self._process), f"{self._beat} {self.work()}")
            found = {other: self._board.read(str(other)) for other in self._others}
        except jax.errors.JaxRuntimeError:
            if now - self._answered < LIMIT_SECONDS:
                return ""
            return f"the coordination service has not answered for {LIMIT_SECONDS:.0f} s"
        self._beat, self._answered = self._beat + 1, now
        for other, text in found.items():
            if text != self._last.get(other) or text == LEFT:
                self._last[other], self._heard[other] = text, now
        told = {other: (text or "").partition(" ")[2] for other, text in found.items()}
        self.elsewhere = {other: what for other, what in told.items() if what}
        silent = [str(other) for other in self._others if now - self._heard[other] >= LIMIT_SECONDS]
        if not silent:
            return ""
        return (
            f"process {', '.join(silent)} has not been heard of for {LIMIT_SECONDS:.0f} s: it has "
            "died, or its machine has stopped"
        )

    def leave(self) -> None:
        """Tells the others that this process has ended well."""
        self._board.write(str(self._process), LEFT)


_watch: Watch | None = None


def tell(work: Callable[[], str]) -> None:
    """Sets what this process tells the others with each of its signs.

    Args:
      work: returns what the process is at work on; "": nothing.
    """
    if _watch is not None:
        _watch.work = work


def elsewhere() -> Mapping[int, str]:
    """Work of the other processes, by process; {} where there are none, or none is at work."""
    return {} if _watch is None else _watch.elsewhere


def begin(process: int, num_processes: int, end: Callable[[str], object]) -> None:
    """Watches over the other processes in a thread, until the interpreter ends.

    All processes begin after `jax.distributed.initialize`, and make no `Board` before.

    Args:
      process: this one.
      num_processes: of the run.
      end: of this process, told who has died.
    """
    global _watch
    watch, stopped = Watch(Board(), process, num_processes, time.monotonic), threading.Event()
    _watch = watch

    def look() -> None:
        while not stopped.wait(BEAT_SECONDS):
            if said := watch.look():
                end(said)
                return

    thread = threading.Thread(target=look, name="liveness", daemon=True)

    def stop() -> None:
        stopped.set()
        thread.join(LIMIT_SECONDS)
        watch.leave()

    # It runs before jax's own, which waits for the other processes.
    atexit.register(stop)
    thread.start()
