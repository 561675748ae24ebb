"""Activities of a run's threads: the activity that each is in, and since when. The watchdog judges
the silence of a thread by them.

    kind     how long a thread may be in it                       examples
    work     as long as it takes; a notice past the deadline      a reward, an evaluation, a checkpoint, a compile
    call     `rlhf.device_call_seconds`                           one call of the devices: generate, score, an update
    wait     as long as the other side is alive                   for a version, for a round
    remote   as long as the other processes are alive             for their slices (`processes/liveness.py`)
    ""       `rlhf.deadline_seconds`                              everything else, such as the reader of the run's events

A device gives no sign of life while a call runs, so only its seconds tell a hung call from a slow
one. Seconds count from the thread's last sign of life: an activity that begins or ends, or a
program that has been compiled. The seconds of a call count from the last sign of either side, and
not while one side or another process is at work: calls of both sides may share devices, and a
collective waits for all processes.
"""

import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import jax

Kind = Literal["work", "call", "wait", "remote", ""]
NOTHING_NAMED = "the code that reads the run's events"
COMPILING = ("jax/_src/compiler.py", "jax/_src/compilation_cache.py")
TRACING = ("jax/_src/interpreters/partial_eval.py", "jax/_src/interpreters/mlir.py")
# JAX's event of one program, compiled or read from its cache
COMPILED = "/jax/core/compile/backend_compile_duration"
COMPILE_EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    COMPILED,
)
LIBRARIES = ("/site-packages/", "/lib/python", "<frozen")


@dataclass(frozen=True)
class State:
    """One thread's activity: `seconds` since its last sign of life."""

    what: str
    kind: Kind
    seconds: float


_lock = threading.Lock()
_stacks: dict[int, list[tuple[str, Kind]]] = {}
_alive_at: dict[int, float] = {}


@contextlib.contextmanager
def during(what: str, kind: Kind) -> Iterator[None]:
    """Records this thread's activity while the block runs.

    Args:
      what: completes "has been in" in a message.
      kind: of the activity, which sets how long it may last.
    """
    thread = threading.get_ident()
    with _lock:
        stack = _stacks.setdefault(thread, [])
        stack.append((what, kind))
        _alive_at[thread] = time.monotonic()
    try:
        yield
    finally:
        with _lock:
            stack.pop()
            _alive_at[thread] = time.monotonic()


def at_work(what: str) -> contextlib.AbstractContextManager[None]:
    """`during` of kind "work", which has no limit."""
    return during(what, "work")


def beat(thread: int | None = None) -> None:
    """A sign of life of a thread (its identifier; by default this one)."""
    with _lock:
        _alive_at[threading.get_ident() if thread is None else thread] = time.monotonic()


def state_of(thread: int) -> State:
    """The state of a thread: its outermost work, or else its innermost activity."""
    with _lock:
        stack, alive_at = list(_stacks.get(thread, ())), _alive_at.get(thread, time.monotonic())
    seconds = time.monotonic() - alive_at
    for what, kind in stack:
        if kind == "work":
            return State(what, kind, seconds)
    if compiles(thread):
        return State(
            f"the compilation of {stack[-1][0] if stack else 'a program'}", "work", seconds
        )
    return State(*stack[-1], seconds) if stack else State(NOTHING_NAMED, "", seconds)


def compiles(thread: int) -> bool:
    """True while a thread has JAX trace, lower or compile a program, by the files of its stack."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_filename.replace("\\", "/").endswith(COMPILING + TRACING):
            return True
        frame = frame.f_back
    return False


def location(thread: int) -> str:
    """The innermost file and line of a thread outside of libraries, or "" for one that has ended."""
    frame = sys._current_frames().get(thread)
    frames = traceback.extract_stack(frame) if frame is not None else []
    own_frames = [
        entry for entry in frames if not any(library in entry.filename for library in LIBRARIES)
    ]
    return f"{own_frames[-1].filename}, line {own_frames[-1].lineno}" if own_frames else ""


class CompileCounter:
    """Counts the programs that XLA has compiled, or read from its cache, in any thread since the
    counter was made.

    After the first round the count should not grow.
    """

    def __init__(self) -> None:
        listen_to_compiles()
        self._before = _compiled

    @property
    def count(self) -> int:
        return _compiled - self._before


def timings_since(began: float) -> dict[str, float]:
    """The seconds of wall time since a moment, and those of them in which some thread traced,
    lowered or compiled a program, or read one from the cache; the latter only where they were
    listened to all the time.

    Args:
      began: seconds of `time.perf_counter`.
    """
    now = time.perf_counter()
    timings = {"wall_seconds": now - began}
    if _listening_since is not None and _listening_since <= began:
        timings["compile_seconds"] = compile_seconds(began, now)
    return timings


def compile_seconds(begin: float, end: float) -> float:
    """Seconds between two moments of `time.perf_counter` in which some thread compiled."""
    with _lock:
        intervals = list(_compiling)
    return sum(max(0.0, min(end, last) - max(begin, first)) for first, last in intervals)


def seconds_without_compiling(begin: float, end: float) -> float:
    """The other seconds between two moments of `time.perf_counter`."""
    return end - begin - compile_seconds(begin, end)


_compiled = 0
_listening_since: float | None = None
_compiling: list[tuple[float, float]] = []
"""When programs were compiled: intervals in order, which do not overlap."""


def listen_to_compiles() -> None:
    """Begins to count compiled programs, once.

    JAX keeps its listeners for good, so all counters share one.
    """
    global _listening_since
    with _lock:
        if _listening_since is None:
            jax.monitoring.register_event_duration_secs_listener(_heard)
            _listening_since = time.perf_counter()


def _heard(event: str, duration_secs: float, **_: str | int) -> None:
    global _compiled
    if event in COMPILE_EVENTS:
        _add_interval(time.perf_counter(), duration_secs)
    if event == COMPILED:
        beat()  # of the thread that compiled
        with _lock:
            _compiled += 1


def _add_interval(end: float, seconds: float) -> None:
    """Adds an interval that ends now. It is merged with those that it overlaps: traces are nested,
    and threads compile at the same time.
    """
    begin = end - seconds
    with _lock:
        while _compiling and _compiling[-1][1] >= begin:
            first, last = _compiling.pop()
            begin, end = min(begin, first), max(end, last)
        _compiling.append((begin, end))
