"""What the sampling thread and the trainer hand to each other: published versions one way, sampled rounds the other.

Bounded by the clock, not by a queue's length: a version is held until the last round that it samples is there (in bounded
mode, until there is a newer one), a round until it is trained on, so with lag ℓ there are at most ℓ + 1 of each. The first
failure of either side ends every wait of the other.
"""

import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from rlhf_jax.types import Params, Samples

T = TypeVar("T")
POLL_SECONDS = 0.05  # a wait looks this often whether the other side is alive


class Stopped(Exception):
    """The other side has ended: nothing more will come."""


class Stalled(RuntimeError):
    """Neither side has handed over anything for longer than was allowed."""


class Buffer:
    """Shared by two threads. `deadline_seconds` is how long a wait may last without any hand-over."""

    def __init__(self, deadline_seconds: float):
        self._changed = threading.Condition()
        self._params: dict[int, Params] = {}
        self._rounds: dict[int, Samples] = {}
        self._failure: BaseException | None = None
        self._stopped = False
        self._no_more_rounds = False
        self._deadline_seconds = deadline_seconds
        self._last_change = time.monotonic()

    def publish(self, version: int, params: Params) -> None:
        """Gives the sampler a version that it owns."""
        with self._changed:
            self._params[version] = params
            self._notify()

    def params(self, version: int) -> Params:
        """Waits for a version. Raises Stopped where the trainer has ended, Stalled past the deadline."""
        return self._wait(lambda: self._params.get(version), f"version {version} of the params")

    def newest(self, at_least: int) -> tuple[int, Params]:
        """Waits for a version that is no older than `at_least`: the newest there is, and its params. Raises as `params`."""

        def find() -> tuple[int, Params] | None:
            version = max(self._params, default=-1)
            return (version, self._params[version]) if version >= at_least else None

        return self._wait(find, f"version {at_least} of the params or a newer one")

    def forget_before(self, version: int) -> None:
        """Lets go of versions that no later round samples with."""
        with self._changed:
            for older in [known for known in self._params if known < version]:
                del self._params[older]

    def put(self, round_index: int, samples: Samples) -> None:
        """Gives the trainer a sampled round."""
        with self._changed:
            self._rounds[round_index] = samples
            self._notify()

    def wait_for(self, round_index: int) -> Samples:
        """Waits for a round, which stays. Raises what made the sampler fail, Stopped where it ended early, Stalled."""
        return self._wait(lambda: self._rounds.get(round_index), f"round {round_index}", lambda: self._no_more_rounds)

    def take(self, round_index: int) -> Samples:
        """Waits for a round and takes it out; raises as `wait_for`."""
        samples = self.wait_for(round_index)
        with self._changed:
            del self._rounds[round_index]
        return samples

    def end_of_rounds(self) -> None:
        """The sampler will put no more: who waits for another round is told so."""
        with self._changed:
            self._no_more_rounds = True
            self._notify()

    def arrived(self, known: Iterable[int]) -> dict[int, Samples]:
        """The rounds that are here and not in `known`; they stay."""
        seen = set(known)
        with self._changed:
            return {index: samples for index, samples in sorted(self._rounds.items()) if index not in seen}

    def stop(self, failure: BaseException | None = None) -> None:
        """This side has ended, well or by `failure`: the other side's waits end too."""
        with self._changed:
            self._stopped = True
            self._failure = self._failure or failure
            self._notify()

    def _notify(self) -> None:
        self._last_change = time.monotonic()
        self._changed.notify_all()

    def _wait(self, ready: Callable[[], T | None], what: str, over: Callable[[], bool] = lambda: False) -> T:
        with self._changed:
            while (found := ready()) is None:
                if self._failure is not None:
                    raise self._failure
                if self._stopped or over():
                    raise Stopped(f"waiting for {what}, but the other side has ended")
                silent = time.monotonic() - self._last_change
                if silent > self._deadline_seconds:
                    held = f"versions {sorted(self._params)} and rounds {sorted(self._rounds)} are held"
                    raise Stalled(f"waited {silent:.1f} s for {what}, and nothing was handed over; {held}")
                self._changed.wait(POLL_SECONDS)
            return found
