"""The timeline of a run: spans of seconds of sampler and trainer, from which a report draws who
waited for whom.

side      what       from                              to
sampler   wait       it wants a version                the version is there
sampler   generate   the version is there              the samples are there
trainer   wait       it wants a round                  the round is there
trainer   train      the round is there                its last update has ended and is found finite
trainer   publish    the copy is begun                 the sampler may take it
trainer   host       an event is handed to its reader  the reader is done with it (beside the device's work)

Where several slices with slots have a thread each, the sampler's spans are those of the first.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

FILE = "timeline.jsonl"
Side = Literal["sampler", "trainer"]
What = Literal["wait", "generate", "train", "publish", "host"]


@dataclass(frozen=True)
class Span:
    """Seconds since the timeline began."""

    side: Side
    what: What
    round_index: int
    begin: float
    end: float


class Timeline:
    """Written by both threads, read by the one that keeps it.

    `began_at` is in seconds since 1970.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.began_at = round(time.time(), 3)
        self._began = time.perf_counter()
        self._spans: list[Span] = []
        self._seconds: dict[int, dict[tuple[Side, What], float]] = {}

    def now(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self._began

    @contextlib.contextmanager
    def span(self, side: Side, what: What, round_index: int) -> Iterator[None]:
        """Context manager that records its body as a span; a body that raises is not recorded."""
        begin = self.now()
        yield
        self.add(side, what, round_index, begin)

    def add(self, side: Side, what: What, round_index: int, begin: float) -> None:
        """A span that ends now."""
        span = Span(side, what, round_index, begin, self.now())
        with self._lock:
            self._spans.append(span)
            of_round = self._seconds.setdefault(round_index, {})
            of_round[side, what] = of_round.get((side, what), 0.0) + span.end - span.begin

    def seconds_of(self, round_index: int) -> dict[tuple[Side, What], float]:
        """Seconds of a round's spans that have ended; {} once the round is forgotten."""
        with self._lock:
            return dict(self._seconds.get(round_index, {}))

    def forget_before(self, round_index: int) -> None:
        """Drops the seconds of earlier rounds; their spans stay until they are taken."""
        with self._lock:
            for old in [r for r in self._seconds if r < round_index]:
                del self._seconds[old]

    def take(self) -> list[Span]:
        """The spans since the last call, by their ends."""
        with self._lock:
            taken, self._spans = self._spans, []
        return taken
