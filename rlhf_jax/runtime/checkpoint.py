"""Saves and restores train states with orbax: asynchronous, atomic, a bounded number kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from rlhf_jax.refusal import MissingInput


def _processes() -> Any:
    """All of them. Told so, orbax waits for them through the coordinator, and not in a collective of all devices: one from a
    thread of its own would meet the trainer's and the samplers' programs in another order on every host."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(active_processes=set(range(jax.process_count())))


class Checkpoints:
    """Checkpoints of one stage, by step. `save` returns at once; a partial one is never taken for a complete one."""

    def __init__(self, directory: Path, keep: int = 2):
        self.directory = directory.absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=False, multiprocessing_options=_processes())
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

    def restore_part(self, step: int, abstract: Any) -> Any:
        """Of the pytree saved at `step` what `abstract` holds, the rest unread: params without what an optimizer keeps."""
        arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
        return self._manager.restore(
            step, args=ocp.args.PyTreeRestore(item=abstract, restore_args=arguments, partial_restore=True)
        )

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


def complete_steps(directory: Path) -> list[int]:
    """Steps of a stage's checkpoints, oldest first. Raises MissingInput, naming the stage, where there is none."""
    steps = sorted(ocp.utils.checkpoint_steps(directory)) if directory.exists() else []
    if not steps:
        stage = directory.name
        raise MissingInput(
            f"no complete checkpoint in {directory}: run the stage {stage!r} first (--config.job={stage})"
        )
    return steps


def restore_params(directory: Path, abstract: Any, role: str = "", step: int | None = None) -> tuple[Any, int]:
    """Params laid out as `abstract` says, and their step, of a stage's checkpoint: the newest, or that of `step`.

    Args:
      role: whose, where a checkpoint holds the states of several.

    Raises MissingInput naming the stage that has to run first, or the steps that there are.
    """
    steps = complete_steps(directory)
    chosen = steps[-1] if step is None else step
    if chosen not in steps:
        raise MissingInput(f"{directory} has no checkpoint {step}; there are: {', '.join(map(str, steps))}")
    checkpoints, wanted = Checkpoints(directory), {"params": abstract}
    state = checkpoints.restore_part(chosen, {role: wanted} if role else wanted)
    checkpoints.close()
    return (state[role] if role else state)["params"], chosen
