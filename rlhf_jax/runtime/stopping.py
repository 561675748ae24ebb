"""Ends a run early: after the round under way, on Ctrl-C or SIGTERM (preemption); and at once, when
one of its threads hangs.

A watchdog thread watches both sides of the asynchronous loop. A side that is at work is alive,
however long it takes, and so is one that waits for another process at work. A notice names the
activity once its silence is longer than the deadline, and again each time the silence has doubled. A
side may also be silent for longer than its limit in a device call, or outside of any named activity.
The watchdog then ends the run with `Stalled`, which the other side raises from its next wait. If the
trainer itself hangs, nothing can raise in it: `give_up` then ends the process, if it may.
"""

import contextlib
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import FrameType

from jax.sharding import Mesh

from rlhf_jax.devices import distributed
from rlhf_jax.devices.processes import ending, liveness
from rlhf_jax.runtime import activity
from rlhf_jax.runtime.activity import State
from rlhf_jax.runtime.buffer import Buffer, Stalled

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAMPLER = "sampler"  # the name of the sampling thread; of several slices with a number
POLL_SECONDS = 1.0
GRACE_SECONDS = 5.0  # for a trainer that is told to end, and may only be slow

_may_exit = False


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Context manager that notes the first SIGINT or SIGTERM; the second raises KeyboardInterrupt.

    It yields a function that returns whether a signal was noted. A signal that is ignored stays
    ignored. Outside of the main thread Python has no signals, and nothing is noted.
    """
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)
        print(
            f"\n{signal.Signals(number).name}: the round or update under way is finished and "
            "saved, then the run stops; "
            "again: at once",
            file=sys.stderr,
        )

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, note)
    try:
        yield lambda: bool(noted)
    finally:
        for number in handled:
            signal.signal(number, before[number])


def any_asked(home: Mesh, asked: Callable[[], bool]) -> bool:
    """True where one of the processes was asked to stop; collective.

    Args:
      home: devices that carry the message, which no sampler uses.
      asked: as `asked_to_stop` yields it, of this process.
    """
    return any(distributed.all_gather(asked(), home))


def allow_exit() -> None:
    """Lets `give_up` end this process from now on.

    Commands call it. A process that only imports the package is not ended.
    """
    global _may_exit
    _may_exit = True


def give_up(error: BaseException) -> None:
    """Prints an error and ends the process with status 1, because a hung main thread cannot raise.

    Without `allow_exit` it only prints.
    """
    if _may_exit and distributed.several():
        ending.leave(error, 1)
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    if _may_exit:
        leave(1)


def sampler_names(num_slices: int) -> list[str]:
    """The names of sampling threads, one for each slice."""
    return [SAMPLER] if num_slices == 1 else [f"{SAMPLER} {n}" for n in range(num_slices)]


def hung_sampler() -> str:
    """The activity of a sampling thread that outlived its run; "" where there is none."""
    threads = [
        thread
        for thread in threading.enumerate()
        if thread.name.split(" ")[0] == SAMPLER and thread.is_alive()
    ]
    states = [activity.state_of(thread.ident or 0) for thread in threads]
    return "; ".join(
        f"the sampler has been in {state.what} for {state.seconds:.0f} s" for state in states
    )


def leave_hung(status: object) -> None:
    """Ends the process where a sampling thread outlived its run, because the interpreter's exit would
    wait for it.

    An exception that is being handled is printed first.

    Args:
      status: the exit status; 1 is taken for what is no int.
    """
    hung = hung_sampler()
    if not hung:
        return
    error = sys.exception()
    if error is not None and not isinstance(error, SystemExit):
        traceback.print_exception(error)
    print(
        f"{hung}, and the process ends without it; the same command goes on from the last "
        "checkpoint",
        file=sys.stderr,
    )
    leave(status if isinstance(status, int) else 1)


def leave(status: int) -> None:
    """Ends the process without waiting for threads: one in a call of the devices cannot be
    interrupted.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Watchdog:
    """Watches from `start` to `end`. It is told the threads once both run."""

    def __init__(
        self,
        buffer: Buffer,
        deadline_seconds: float,
        device_call_seconds: float,
        say: Callable[[str], None],
    ):
        """`deadline_seconds` and `device_call_seconds` are the limits of `activity.py`; `say` takes
        notices.
        """
        self.limits = {"": deadline_seconds, "wait": deadline_seconds, "call": device_call_seconds}
        self.keys = {
            "": "rlhf.deadline_seconds",
            "wait": "rlhf.deadline_seconds",
            "call": "rlhf.device_call_seconds",
        }
        self._buffer, self._say = buffer, say
        self._ended = threading.Event()
        self._notice_at: dict[str, float] = {}
        self._at_work: dict[str, float] = {}  # when each side was last seen at work
        self._stalled: Stalled | None = None
        self._sides: dict[str, threading.Thread] = {}
        self._elsewhere: dict[int, tuple[str, float]] = {}  # work of other processes, since when
        self._elsewhere_at = -math.inf  # when another process was last seen at work
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self, trainer: threading.Thread, *samplers: threading.Thread) -> None:
        """Begins, all threads alive."""
        names = sampler_names(len(samplers))
        self._sides = {"trainer": trainer} | dict(zip(names, samplers, strict=True))
        for thread in self._sides.values():
            assert thread.ident is not None
            activity.beat(thread.ident)
        activity.listen_to_compiles()  # a program that has been compiled is a sign of life
        liveness.tell(self._work)
        self._thread.start()

    def end(self) -> None:
        """Ends the watch; the run has ended."""
        self._ended.set()
        self._thread.join()
        liveness.tell(str)

    def _work(self) -> str:
        """Work of a side of this process; "": none is at work."""
        states = (activity.state_of(thread.ident or 0) for thread in self._sides.values())
        return next((state.what for state in states if state.kind == "work"), "")

    def _watch(self) -> None:
        period = min(POLL_SECONDS, *(limit / 4 for limit in self.limits.values()))
        gives_up_at = None
        while not self._ended.wait(period):
            states = {
                side: self._state(side) for side, thread in self._sides.items() if thread.is_alive()
            }
            self._look_elsewhere()
            self._notice(states)
            over = [side for side, state in states.items() if self._is_over(state, states)]
            waiting = [
                state.kind == "wait" and state.seconds > self.limits["wait"]
                for state in states.values()
            ]
            if self._stalled is None and (over or (len(states) > 1 and all(waiting))):
                self._stalled = Stalled(self._describe(states, over))
                self._buffer.stop(self._stalled)
            if self._stalled is None or "trainer" not in over:
                gives_up_at = None
            elif gives_up_at is None:
                gives_up_at = time.monotonic() + GRACE_SECONDS
            elif time.monotonic() > gives_up_at:
                give_up(self._stalled)
                return

    def _look_elsewhere(self) -> None:
        """Takes down what other processes are at work on."""
        now, before = time.monotonic(), self._elsewhere
        self._elsewhere = {
            process: before[process] if before.get(process, ("",))[0] == what else (what, now)
            for process, what in liveness.elsewhere().items()
        }
        if self._elsewhere:
            self._elsewhere_at = now

    def _state(self, side: str) -> State:
        """A side's activity. What it was seen at work on is a sign of life: a compile within a call
        begins and ends nothing.
        """
        state, now = activity.state_of(self._sides[side].ident or 0), time.monotonic()
        if state.kind == "work":
            self._at_work[side] = now
            return state
        return replace(state, seconds=min(state.seconds, now - self._at_work.get(side, -math.inf)))

    def _is_over(self, state: State, states: dict[str, State]) -> bool:
        if state.kind == "call":
            # Both sides may share devices, where a call waits behind the other side's, and a collective
            # waits for the other processes: what those are at work on, or have just ended, explains
            # the silence of this one.
            silent = min(
                time.monotonic() - self._elsewhere_at, *(other.seconds for other in states.values())
            )
            return silent > self.limits["call"] and not any(
                other.kind == "work" for other in states.values()
            )
        return state.kind == "" and state.seconds > self.limits[""]

    def _notice(self, states: dict[str, State]) -> None:
        now = time.monotonic()
        named = {f"the {side}": state for side, state in states.items()}
        for process, (what, since) in self._elsewhere.items():
            named[f"process {process}"] = State(what, "work", now - since)
        for side, state in named.items():
            if state.kind not in ("work", "remote") or state.seconds < self.limits[""]:
                self._notice_at[side] = self.limits[""]
            elif state.seconds > self._notice_at.get(side, self.limits[""]):
                self._notice_at[side] = 2 * state.seconds
                with contextlib.suppress(OSError):  # a closed terminal must not end the watch
                    self._say(f"notice: {side} has been in {state.what} for {state.seconds:.0f} s")

    def _describe(self, states: dict[str, State], over: list[str]) -> str:
        texts = []
        for side in over or states:
            state = states[side]
            location = activity.location(self._sides[side].ident or 0)
            limit = f"{self.keys[state.kind]} = {self.limits[state.kind]:g}"
            texts.append(
                f"the {side} has been in {state.what} for {state.seconds:.1f} s, longer than "
                f"{limit}" + (f" (now at {location})" if location else "")
            )
        others = [
            f"the {side} in {state.what}"
            for side, state in states.items()
            if over and side not in over
        ]
        return "; ".join([*texts, *others, self._buffer.held()])
