"""Saves and restores train states with orbax: asynchronous, atomic, a bounded number kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from rlhf_jax.types import TrainState


class Checkpoints:
    """Checkpoints of one stage, by step. `save` returns at once; a partial one is never taken for a complete one."""

    def __init__(self, directory: Path, keep: int = 2):
        self.directory = directory.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def steps(self) -> list[int]:
        """Steps of complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def latest(self, complete: Callable[[int], bool] = lambda step: True) -> int | None:
        """The newest step for which `complete` holds as well, or None."""
        return next((step for step in reversed(self.steps()) if complete(step)), None)

    def save(self, step: int, tree: Any) -> None:
        """Begins to save a pytree of arrays.

        Raises RuntimeError when the step is there already: orbax would skip it in silence.
        """
        if not self._manager.save(step, args=ocp.args.StandardSave(tree)):
            raise RuntimeError(f"checkpoint {step} in {self.directory} was not saved: a step at or after it exists")

    def restore(self, step: int, abstract: Any) -> Any:
        """The pytree saved at `step`, laid out as `abstract` (ShapeDtypeStructs with shardings) says."""
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def delete_after(self, step: int | None) -> None:
        """Removes checkpoints later than `step` (all, for None): those whose other files are missing."""
        for later in self.steps():
            if step is None or later > step:
                self._manager.delete(later)

    def wait(self) -> None:
        """Blocks until what was begun is on disk; raises what went wrong there."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def abstract_like(tree: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs of a tree of arrays or shapes, with shardings: what `restore` needs."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def restore_params(directory: Path, abstract: TrainState) -> Any:
    """The params of a finished stage's newest checkpoint.

    Raises FileNotFoundError naming the stage that has to run first.
    """
    if not directory.exists():
        raise FileNotFoundError(f"no checkpoint in {directory}: run the stage {directory.parent.name!r} first")
    checkpoints = Checkpoints(directory)
    step = checkpoints.latest()
    if step is None:
        raise FileNotFoundError(f"no complete checkpoint in {directory}: run the stage {directory.parent.name!r} first")
    state = checkpoints.restore(step, abstract)
    checkpoints.close()
    return state.params
