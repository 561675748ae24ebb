"""Traces of chosen updates by `jax.profiler`, one folder each, which TensorBoard's profiler and
Perfetto read.
"""

from collections.abc import Callable, Collection, Generator, Iterable
from pathlib import Path
from typing import TypeVar

import jax

Event = TypeVar("Event")
FOLDER = "profile"


def traced(
    events: Iterable[Event],
    ended: Callable[[Event], tuple[int, object] | None],
    updates: Collection[int],
    directory: Path,
    version: int,
) -> Iterable[Event]:
    """The events of a loop, during whose chosen updates `jax.profiler` writes a trace.

    A trace begins where the update before has been recorded, so that it has what the loop does
    between: sampling and scores of a new round, an evaluation, a checkpoint. It ends when the
    update's metrics have come from the device. In the asynchronous loop it has the sampler's thread
    too.

    Args:
      events: of a loop, taken one by one.
      ended: of an event that ends an update, its number from 0 and its metrics; else None.
      updates: counted from 1, as in `rlhf.evaluate_at`; of those before `version` nothing is done.
      directory: of the run; each traced update has a folder there, `profile/update_<number>`.
      version: updates that were made before the loop began.
    """
    return _traced(events, ended, updates, directory, version) if updates else events


def _traced(
    events: Iterable[Event],
    ended: Callable[[Event], tuple[int, object] | None],
    updates: Collection[int],
    directory: Path,
    version: int,
) -> Generator[Event, None, None]:
    tracing = False

    def begin(update: int) -> bool:
        if update in updates:
            jax.profiler.start_trace(str(directory / FOLDER / f"update_{update}"))
        return update in updates

    try:
        tracing = begin(version + 1)
        for event in events:
            update = ended(event)
            if update is not None and tracing:
                jax.block_until_ready(update[1])
                tracing = False
                jax.profiler.stop_trace()
            yield event
            if update is not None:
                tracing = begin(update[0] + 2)
    finally:
        if tracing:
            jax.profiler.stop_trace()
