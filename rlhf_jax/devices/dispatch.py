"""The order in which a process of several dispatches its programs, and the rule that keeps it free
of deadlock.

A program that spans processes ends on a device only when every process has dispatched it. Two
threads may dispatch two such programs in one order here and in the other order there; then each
process waits for the other, and no lock inside a process can prevent it. So one thread of each
process dispatches all of them: the trainer's. A sampling thread runs inside `one_process_only`, and
uses devices of its process alone.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import jax

T = TypeVar("T")
R = TypeVar("R", covariant=True)

_barred: ContextVar[str] = ContextVar("barred", default="")
_logs: list[list["Dispatch"]] = []


class Compiled(Protocol[R]):
    """A compiled function: `jax.jit`'s, or one whose results are awaited. `trace` and `lower` take
    arguments or their shapes.
    """

    def __call__(self, *args: object, **kwargs: object) -> R: ...

    def lower(self, *args: object, **kwargs: object) -> jax.stages.Lowered: ...

    def trace(self, *args: object, **kwargs: object) -> jax.stages.Traced: ...


class SpansProcesses(RuntimeError):
    """A thread that may not has dispatched a program that spans processes."""


@dataclass(frozen=True)
class Dispatch:
    """A program that this process has dispatched: its thread, its name, and the ids of its devices.

    `spans` is True where some of the devices are another process's.
    """

    thread: str
    program: str
    devices: tuple[int, ...]
    spans: bool

    def __str__(self) -> str:
        return f"{self.thread}: {self.program} on {','.join(map(str, self.devices))}"


@contextlib.contextmanager
def logged() -> Iterator[list[Dispatch]]:
    """Collects what every thread dispatches in the block, in this process's order.

    It has the programs that `compiled` and `compiled_here` make. With one
    process it stays empty: nothing can span processes there.
    """
    log: list[Dispatch] = []
    _logs.append(log)
    try:
        yield log
    finally:
        _logs.remove(log)


@contextlib.contextmanager
def one_process_only(thread: str) -> Iterator[None]:
    """Bars this thread from programs that span processes.

    Args:
      thread: its name, for the message of SpansProcesses.
    """
    token = _barred.set(thread)
    try:
        yield
    finally:
        _barred.reset(token)


def note(program: str, tree: object) -> bool:
    """Logs a program by its arguments or its results; False where they hold no array on a device.

    Args:
      program: its name.
      tree: arguments before the program is dispatched, or what it returned.

    Raises SpansProcesses where this thread is barred from the program.
    """
    shardings = {leaf.sharding for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)}
    if not shardings:
        return False
    spans = any(not sharding.is_fully_addressable for sharding in shardings)
    if spans and (thread := _barred.get()):
        raise SpansProcesses(
            f"the thread {thread} dispatches {program!r}, which spans processes; accepted: programs "
            "on the devices of this process. The trainer's thread dispatches the others, in one "
            "order on all processes"
        )
    if _logs:
        devices = {device.id for sharding in shardings for device in sharding.device_set}
        thread = threading.current_thread().name
        entry = Dispatch(thread, program, tuple(sorted(devices)), spans)
        for log in _logs:
            log.append(entry)
    return True


def name_of(function: Callable[..., object]) -> str:
    """The name of a function, or of that which a partial one is made of."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def several() -> bool:
    """True where the run has more than one process."""
    return jax.process_count() > 1


def must_await() -> bool:
    """True where a program over several hosts has to end before the next one is dispatched.

    On CPUs with several devices a process, two programs under way mix up their collectives and hang
    (jax 0.10, gloo).
    """
    return several() and jax.default_backend() == "cpu"


def settled(tree: T) -> T:
    """The tree, awaited where `must_await`."""
    if several():
        note("settled", tree)
    return jax.block_until_ready(tree) if must_await() else tree


class Dispatched(Generic[T]):
    """A compiled function of a process of several: what it dispatches is noted by
    `note`, and awaited where asked.
    """

    def __init__(self, name: str, compiled: Compiled[T], awaited: bool):
        self.name, self.compiled, self.awaited = name, compiled, awaited
        self.lower, self.trace = compiled.lower, compiled.trace

    def __call__(self, *args: object, **kwargs: object) -> T:
        noted = note(self.name, (args, kwargs))
        results = self.compiled(*args, **kwargs)
        if not noted:
            note(self.name, results)
        return jax.block_until_ready(results) if self.awaited else results


def compiled(function: Callable[..., T], *, name: str = "", **options: Any) -> Compiled[T]:
    """Compiles a function that runs over all hosts; see `must_await`.

    Of several processes, only the trainer's thread may call it.

    Args:
      function: pure, of pytrees of arrays.
      name: in the log of dispatches; "": the function's.
      options: of `jax.jit`.
    """
    program = jax.jit(function, **options)
    return Dispatched(name or name_of(function), program, must_await()) if several() else program


def compiled_here(function: Callable[..., T], *, name: str = "", **options: Any) -> Compiled[T]:
    """Compiles a function of this process's arrays, which any thread may call.

    Args:
      function: pure, of pytrees of arrays.
      name: in the log of dispatches; "": the function's.
      options: of `jax.jit`.
    """
    program = jax.jit(function, **options)
    return Dispatched(name or name_of(function), program, awaited=False) if several() else program
