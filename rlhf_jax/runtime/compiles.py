"""Counts the programs that XLA compiles, or reads from its cache: after a first round there should be no more."""

import threading

import jax

from rlhf_jax.runtime import activity

EVENT = "/jax/core/compile/backend_compile_duration"  # one a program, whoever asked for it


class Counter:
    """How many programs were compiled since it was made. Counts those of every thread."""

    def __init__(self) -> None:
        listen()
        self._before = _total

    @property
    def count(self) -> int:
        return _total - self._before


_total = 0
_listening = False
_lock = threading.Lock()


def listen() -> None:
    """Begins to listen, once: JAX keeps its listeners for good, so there is one for all counters."""
    global _listening
    with _lock:
        if not _listening:
            jax.monitoring.register_event_duration_secs_listener(_heard)
            _listening = True


def _heard(event: str, duration_secs: float, **_: str | int) -> None:
    del duration_secs
    global _total
    if event == EVENT:
        activity.beat()  # of the thread that compiled
        with _lock:
            _total += 1
