"""Prompts of a task by their place in its endless, reshuffled stream, so that a sample's ordinal
gives its prompt back.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from rlhf_jax.records.ledger import STAGE
from rlhf_jax.tasks import api
from rlhf_jax.tasks.api import Split, stream_indices
from rlhf_jax.tasks.common import reading

PURPOSE = STAGE  # the stream that the stage of this name reads


@dataclass(frozen=True)
class TaskPrompts(Sequence[str]):
    """Texts of consecutive places of a task's stream.

    Example: `task.prompts("train", 16, 2)` has start 16 and two texts; their ordinals are 16 and
    17.
    """

    task: api.Task
    split: Split
    start: int
    indices: tuple[int, ...]  # of the prompts in their split

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[str, ...]: ...

    def __getitem__(self, place: int | slice) -> str | tuple[str, ...]:
        if isinstance(place, slice):
            return tuple(
                reading.prompt(self.task, self.split, index) for index in self.indices[place]
            )
        return reading.prompt(self.task, self.split, self.indices[place])

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def records(self) -> list[Mapping[str, Any]]:
        """The fields of each prompt's row that a reward may ask for: see `tasks.api.Task`."""
        return [reading.record(self.task, self.split, index) for index in self.indices]


class SeekableTask:
    """A task whose prompts can also be read by their place in its stream.

    Everything else is the task's own.
    """

    def __init__(self, task: api.Task):
        self.task = task

    def __getattr__(self, name: str) -> Any:
        if name == "task":  # while a copy is made, before it is set
            raise AttributeError(name)
        return getattr(self.task, name)

    def __repr__(self) -> str:
        return f"SeekableTask({self.task!r})"

    def prompts(self, split: Split, start: int, count: int, seed: int = 0) -> TaskPrompts:
        """Prompts at places start ... start + count - 1 of an endless stream that is reshuffled
        every epoch.

        Args:
          split: "train" or "heldout".
          start: the first place, 0 or more.
          count: how many prompts.
          seed: of the order. `rl.run(seed=0)` trains on the order of seed 0 from place 0 on.

        Returns:
          A sequence of texts that knows its places.

        Example:
          >>> import rlhf_jax as rl
          >>> list(rl.task("addition", limit=10).prompts("train", 0, 2))
          ['1+4=', '1+6=']
        """
        num_prompts = reading.num_prompts(self.task, split)
        indices = stream_indices(
            num_prompts, (seed << 32) + zlib.crc32(PURPOSE.encode()), start, count
        )
        return TaskPrompts(self.task, split, start, tuple(indices.tolist()))


def own(task: object) -> Any:
    """The task inside a `SeekableTask`; another object as it is."""
    return task.task if isinstance(task, SeekableTask) else task
