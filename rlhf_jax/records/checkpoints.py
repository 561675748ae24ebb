"""Saves and restores train states with orbax: asynchronous, atomic, a bounded number kept, a
damaged one passed over.

Nothing is deleted before it is replaced: checkpoints that cannot be used, and those later than the
one that a run goes on from, are moved to `set_aside/<stage>/` of the run directory, and removed
from there once training has saved as late a version again.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from rlhf_jax.devices import distributed
from rlhf_jax.models.common import forms
from rlhf_jax.records.jsonl import replace
from rlhf_jax.records.notes import say
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.types import Params

FILES = ".files.json"
"""In a stage's directory: the files of each of its checkpoints, with their sizes, and digests of
the small ones.
"""
SMALL_BYTES = 1 << 20
Read = TypeVar("Read")
T = TypeVar("T")


class Unusable(RuntimeError):
    """An undamaged checkpoint that a run cannot go on from.

    The message says why.
    """


class Damaged(Unusable):
    """A checkpoint or a file that belongs to it is missing or cannot be read.

    The message names the file or what was raised.
    """


def _processes() -> ocp.options.MultiprocessingOptions:
    """Orbax's options that name all processes.

    Without them orbax waits in a collective of all devices. A collective from its own thread would
    be ordered differently to the trainer's and samplers' programs on every host. With them it waits
    through the coordinator.
    """
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(active_processes=set(range(jax.process_count())))


def _manager(directory: Path, keep: int | None, partly: bool = False) -> ocp.CheckpointManager:
    """Orbax's manager of a stage's checkpoints; with no number to keep, one to read with, of which
    one kind reads parts.

    Its handler is given: orbax would infer it from the newest checkpoint, and could not read any
    where that is damaged.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=False, multiprocessing_options=_processes()
    )
    handler = ocp.PyTreeCheckpointHandler() if partly else ocp.StandardCheckpointHandler()
    return ocp.CheckpointManager(directory, options=options, item_handlers=handler)


class Checkpoints:
    """Checkpoints of one stage, by step.

    `save` returns at once; a partial one is never taken for a complete one.
    """

    def __init__(self, directory: Path, keep: int = 2, only_read: bool = False):
        """`directory` is `checkpoints/<stage>` of a run; it is made where it is missing, unless it
        is only read.
        """
        self.directory = directory.absolute()
        if not only_read:
            self.directory.mkdir(parents=True, exist_ok=True)
        self._manager = _manager(self.directory, None if only_read else keep)
        self._saved: set[int] = set()  # by this process, and not listed yet

    @property
    def aside(self) -> Path:
        """The folder of checkpoints that are no longer used, until they are replaced."""
        return self.directory.parent.parent / "set_aside" / self.directory.name

    def steps(self) -> list[int]:
        """Steps of complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def held(self) -> list[int]:
        """Steps whose files may be gone on from after a kill: those of `steps`, of which the last
        may not be complete yet, and those that it replaces once it is.
        """
        return sorted({*self.steps(), *ocp.utils.checkpoint_steps(self.directory)})

    def latest(self) -> int | None:
        """The newest step, or None."""
        return max(self.steps(), default=None)

    def newest(self, read: Callable[[int], Read], otherwise: str = "") -> tuple[int, Read] | None:
        """The newest undamaged step and the result of `read` for it; None without a checkpoint.

        Args:
          read: reads a step, and raises Damaged where that or something that belongs to it cannot
            be read; collective.
          otherwise: ends the message where no checkpoint can be used.

        Prints which steps are passed over. Raises Refusal where there are checkpoints and none can
        be used; no file is changed.
        """
        passed: dict[int, str] = {}
        damaged: set[int] = set()
        for step in reversed(self.steps()):
            problem = distributed.agree(self.problem(step)[:200])
            if problem:
                damaged.add(step)
            else:
                try:
                    result = read(step)
                except Unusable as error:
                    problem = str(error)
                    damaged |= {step} if isinstance(error, Damaged) else set()
                else:
                    self._say_passed(passed, damaged, step)
                    return step, result
            passed[step] = problem
        if not passed:
            return None
        listed = "; ".join(f"{step}: {why}" for step, why in sorted(passed.items()))
        raise Refusal(
            f"no checkpoint of {self.directory} can be gone on from ({listed}), and none was "
            "touched: bring back what is "
            f"missing, or remove these checkpoints to begin the stage again{otherwise}"
        )

    def _say_passed(self, passed: dict[int, str], damaged: set[int], step: int) -> None:
        """Says of each damaged step that it is passed over, and once why others are made again,
        which is no fault.
        """
        for later, why in passed.items():
            if later in damaged:
                say(
                    f"checkpoint {later} of {self.directory} cannot be used ({why}): going on from "
                    f"{step}"
                )
        again = {later: why for later, why in passed.items() if later not in damaged}
        for why in dict.fromkeys(again.values()):
            say(
                f"{self.directory.name} goes on from version {step}, and makes those up to "
                f"{max(again)} again: {why}"
            )

    def problem(self, step: int) -> str:
        """The fault in the files of a step, or "": by the list of them, where there is one."""
        return problem_of(self.directory, step)

    def save(self, step: int, tree: object) -> None:
        """Begins to save a pytree of arrays.

        Raises RuntimeError when the step is there already: orbax would skip it in silence.
        """
        self.wait()
        if str(step) in (listed := self._listed()):  # of an earlier checkpoint of the same step
            self._write_list({name: files for name, files in listed.items() if name != str(step)})
        if not self._manager.save(step, args=ocp.args.StandardSave(tree)):
            raise RuntimeError(
                f"checkpoint {step} in {self.directory} was not saved: a step at or after it exists"
            )
        self._saved.add(step)

    def restore(self, step: int, abstract: T) -> T:
        """The pytree saved at `step`, laid out as `abstract` (ShapeDtypeStructs with shardings)
        says, whose layers may be stacked where the saved ones are not. Raises Damaged.
        """

        def read(stored: T) -> T:
            return self._read(self._manager, step, ocp.args.StandardRestore(stored))

        return forms.read_as(abstract, self._names(self._manager, step), read)

    def restore_part(self, step: int, abstract: T) -> T:
        """Restores the part of the pytree saved at `step` that `abstract` holds, such as params
        without the optimizer state. Its layers may be stacked where the saved ones are not. Raises
        Damaged.
        """
        with _manager(self.directory, None, partly=True) as manager:

            def read(stored: T) -> T:
                arguments = ocp.checkpoint_utils.construct_restore_args(stored)
                partly = ocp.args.PyTreeRestore(
                    item=stored, restore_args=arguments, partial_restore=True
                )
                return self._read(manager, step, partly)

            return forms.read_as(abstract, self._names(manager, step), read)

    def _names(self, manager: ocp.CheckpointManager, step: int) -> list[str]:
        """The names of the arrays saved at `step`."""
        return forms.names(self._guarded(step, lambda: manager.item_metadata(step).tree))

    def _read(
        self, manager: ocp.CheckpointManager, step: int, arguments: ocp.args.CheckpointArgs
    ) -> Any:
        return self._guarded(step, lambda: manager.restore(step, args=arguments))

    def _guarded(self, step: int, read: Callable[[], Read]) -> Read:
        try:
            return read()
        except (jax.errors.JaxRuntimeError, MemoryError):
            raise
        # orbax and tensorstore raise ValueError, KeyError, OSError, and Exception itself
        except Exception as error:
            raise Damaged(
                f"{self.directory / str(step)} cannot be read: {' '.join(str(error).split())[:160]}"
            ) from error

    def set_aside_after(self, step: int) -> None:
        """Moves checkpoints later than `step` out of the way, so that training can save those
        versions again; collective.
        """
        later = [later_step for later_step in self.steps() if later_step > step]
        if not later:
            return
        if distributed.is_first():
            for later_step in later:
                target = self.aside / str(later_step)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(
                    target, ignore_errors=True
                )  # an earlier one of this version, which has been replaced since
                shutil.move(self.directory / str(later_step), target)
        distributed.barrier()
        self._manager.reload()

    def wait(self) -> None:
        """Blocks until what was begun is on disk; raises what went wrong there.

        Then what it replaces is removed.
        """
        self._manager.wait_until_finished()
        if not distributed.is_first() or not self._saved:
            return
        directories = {step: self.directory / str(step) for step in self.steps()}
        known = self._listed() | {
            str(step): _files(directories[step]) for step in self._saved if step in directories
        }
        self._write_list(
            {str(step): known[str(step)] for step in directories if str(step) in known}
        )
        if self.aside.is_dir():
            self._remove_replaced(max(self._saved))
        self._saved = set()

    def _remove_replaced(self, step: int) -> None:
        """Removes what was moved aside of versions up to `step`, which have been saved again."""
        for path in self.aside.iterdir():
            if int(path.name.partition(".")[0]) <= step:
                shutil.rmtree(path)
        for folder in (self.aside, self.aside.parent):
            if not any(folder.iterdir()):
                folder.rmdir()

    def close(self) -> None:
        self._manager.close()

    def _listed(self) -> dict[str, Any]:
        return _listed(self.directory)

    def _write_list(self, listed: dict[str, Any]) -> None:
        replace(self.directory / FILES, json.dumps(listed, sort_keys=True).encode())


def problem_of(directory: Path, step: int) -> str:
    """Returns the first fault of a checkpoint's files, by the list of them where there is one, or
    "".

    Args:
      directory: `checkpoints/<stage>` of a run.
      step: one of its steps.
    """
    for name, (size, digest) in sorted(_listed(directory).get(str(step), {}).items()):
        path = directory / str(step) / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes of {size}"
        if digest and _digest(path) != digest:
            return f"{path} was changed"
    return ""


def _listed(directory: Path) -> dict[str, Any]:
    """The files of a stage's checkpoints by their steps; without the list, damage shows when a
    checkpoint is read.
    """
    try:
        return json.loads((directory / FILES).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}


def _files(checkpoint: Path) -> dict[str, tuple[int, str]]:
    """Sizes and digests of a checkpoint's files by their names; of large ones the size alone."""
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(checkpoint)): (size, _digest(path) if size <= SMALL_BYTES else "")
        for path in files
        for size in (path.stat().st_size,)
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def abstract_like(tree: T, shardings: object) -> T:
    """ShapeDtypeStructs of a tree, as `restore` takes them.

    Args:
      tree: of arrays or their shapes.
      shardings: a tree of shardings like it.
    """
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def complete_steps(directory: Path) -> list[int]:
    """Steps of a stage's checkpoints, oldest first.

    Raises MissingInput, naming the stage, where there is none.
    """
    steps = sorted(ocp.utils.checkpoint_steps(directory)) if directory.exists() else []
    if not steps:
        stage = directory.name
        raise MissingInput(
            f"no complete checkpoint in {directory}: run the stage {stage!r} first "
            f"(--config.job={stage})"
        )
    return steps


def _instead(directory: Path, damaged: int) -> str:
    """Ways on from a damaged checkpoint: the stage goes on from the one before, and other versions
    may be read.
    """
    whole = [
        step
        for step in complete_steps(directory)
        if step != damaged and not problem_of(directory, step)
    ]
    stage = directory.name
    if not whole:
        return f"no other is whole: bring it back, or remove {directory} and run the stage again (--config.job={stage})"
    listed = f"whole are: {', '.join(map(str, whole))}"
    if max(whole) > damaged:
        return listed
    return f"{listed}; run the stage again (--config.job={stage}): it goes on from {max(whole)}"


def restore_params(
    directory: Path, abstract: Params, role: str = "", step: int | None = None
) -> tuple[Params, int]:
    """Params laid out as `abstract` says, and their step, of a stage's checkpoint: the newest, or
    that of `step`.

    Args:
      directory: `checkpoints/<stage>` of a run.
      abstract: ShapeDtypeStructs with shardings.
      role: of the params, where a checkpoint holds the states of several.
      step: of the checkpoint; None: the newest.

    Raises MissingInput naming the stage that has to run first, or the steps that there are; Refusal
    for a damaged one.
    """
    steps = complete_steps(directory)
    chosen = steps[-1] if step is None else step
    if chosen not in steps:
        raise MissingInput(
            f"{directory} has no checkpoint {step}; there are: {', '.join(map(str, steps))}"
        )
    checkpoints = Checkpoints(directory, only_read=True)
    wanted = {"params": abstract}
    try:
        if problem := distributed.agree(problem_of(directory, chosen)[:200]):
            raise Damaged(problem)
        if role:
            params = checkpoints.restore_part(chosen, {role: wanted})[role]["params"]
        else:
            params = checkpoints.restore_part(chosen, wanted)["params"]
    except Damaged as error:
        raise Refusal(
            f"checkpoint {chosen} of {directory} is damaged ({error}); "
            f"{_instead(directory, chosen)}"
        ) from error
    finally:
        checkpoints.close()
    return params, chosen
