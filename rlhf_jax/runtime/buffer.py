"""The buffer between the sampling thread and the trainer: published versions one way, sampled
rounds the other.

The clock bounds it, not a queue's length. A version is held until the last round that it samples
has arrived (in bounded mode, until a newer version is published). A round is held until it is
trained on for the last time. So with lag ℓ there are at most ℓ + 1 of each
(where the clock has no stages, no buffer, and a version after every round). The first failure of either side ends
every wait of the other.
"""

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from rlhf_jax.refusal import Stalled as Stalled
from rlhf_jax.runtime import activity
from rlhf_jax.runtime.spec import Published
from rlhf_jax.types import Samples

T = TypeVar("T")
WAKE_SECONDS = 1.0  # a wait wakes this often, because Ctrl-C is handled between two waits


class Stopped(Exception):
    """The other side has ended: nothing more will come."""


class Buffer:
    """Shared by two threads.

    A wait lasts until the other side hands over, fails or ends; the watchdog ends hung ones.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._params: dict[int, Published] = {}
        self._rounds: dict[int, Samples] = {}
        self._failure: BaseException | None = None
        self._stopped = False
        self._no_more_rounds = False

    def publish(self, version: int, params: Published) -> None:
        """Gives the sampler a version that it owns."""
        with self._changed:
            self._params[version] = params
            self._changed.notify_all()

    def params(self, version: int) -> Published:
        """Waits for a version. Raises Stopped where the trainer has ended, or what made the run
        fail.
        """
        return self._wait(lambda: self._params.get(version), f"version {version} of the params")

    def newest(self, at_least: int) -> tuple[int, Published]:
        """Waits for a version that is no older than `at_least`. Returns the newest version and its
        params. Raises as `params`.
        """

        def find() -> tuple[int, Published] | None:
            version = max(self._params, default=-1)
            return (version, self._params[version]) if version >= at_least else None

        return self._wait(find, f"version {at_least} of the params or a newer one")

    def forget_before(self, version: int) -> None:
        """Drops the versions before `version`."""
        with self._changed:
            for older in [known for known in self._params if known < version]:
                del self._params[older]

    def put(self, round_index: int, samples: Samples) -> None:
        """Gives the trainer a sampled round.

        Args:
          round_index: 0-based.
          samples: of the round.
        """
        with self._changed:
            self._rounds[round_index] = samples
            self._changed.notify_all()

    def wait_for(self, round_index: int) -> Samples:
        """Waits for a round, which stays in the buffer.

        Raises what made the run fail, Stopped where the sampler ended early.
        """
        return self._wait(
            lambda: self._rounds.get(round_index),
            f"round {round_index}",
            lambda: self._no_more_rounds,
        )

    def take(self, round_index: int) -> Samples:
        """Waits for a round and removes it from the buffer; raises as `wait_for`."""
        samples = self.wait_for(round_index)
        with self._changed:
            del self._rounds[round_index]
        return samples

    def forget_rounds_before(self, round_index: int) -> None:
        """Drops the rounds before `round_index`: no later round is trained on them."""
        with self._changed:
            for older in [known for known in self._rounds if known < round_index]:
                del self._rounds[older]

    def end_of_rounds(self) -> None:
        """Records that the sampler will put no more rounds; a wait for another raises Stopped."""
        with self._changed:
            self._no_more_rounds = True
            self._changed.notify_all()

    def arrived(self, known: Iterable[int]) -> dict[int, Samples]:
        """The rounds in the buffer that are not in `known`; they stay."""
        seen = set(known)
        with self._changed:
            return {
                index: samples
                for index, samples in sorted(self._rounds.items())
                if index not in seen
            }

    def stop(self, failure: BaseException | None = None) -> None:
        """Records that this side has ended, well or by `failure`, and ends the other's waits."""
        with self._changed:
            self._stopped = True
            self._failure = self._failure or failure
            self._changed.notify_all()

    def raise_failure(self) -> None:
        """Raises what made the run fail; does nothing in a run that has not failed."""
        with self._changed:
            if self._failure is not None:
                raise self._failure

    def raise_ended(self) -> None:
        """Raises what made the run fail, or Stopped where the other side has ended."""
        self.raise_failure()
        with self._changed:
            if self._stopped:
                raise Stopped("the other side has ended")

    def held(self) -> str:
        """The versions and rounds that are handed over and not taken, in words."""
        with self._changed:
            return f"versions {sorted(self._params)} and rounds {sorted(self._rounds)} are held"

    def _wait(
        self, ready: Callable[[], T | None], what: str, over: Callable[[], bool] = lambda: False
    ) -> T:
        with activity.during(f"its wait for {what}", "wait"), self._changed:
            while (result := ready()) is None:
                if self._failure is not None:
                    raise self._failure
                if self._stopped or over():
                    raise Stopped(f"waiting for {what}, but the other side has ended")
                self._changed.wait(WAKE_SECONDS)
            return result
