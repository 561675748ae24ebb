"""A sweep over a grid: its tasks, their processes, and what is written as they end.

DIRECTORY/cells/<label>-<digest>/    the run of a cell
DIRECTORY/logs/<label>-<digest>.log  what it prints
DIRECTORY/results.csv                see `results_table.py`
DIRECTORY/comparison.html            the comparison of the cells that are done
"""

import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_jax.refusal import Failed, Refusal
from rlhf_jax.run_directory import run_config
from rlhf_jax.sweeps import grid, results_table, shared_stages
from rlhf_jax.sweeps.checked_cells import Checked
from rlhf_jax.sweeps.display import Display
from rlhf_jax.sweeps.tasks import Conductor, Process, State, Task, code_of

CELLS, LOGS, COMPARISON = "cells", "logs", "comparison.html"
LOG = "log.txt"  # of a shared stage
TITLES = {
    shared_stages.SFT: "SFT",
    shared_stages.REWARD_MODEL: "reward model",
    shared_stages.PROMPT_VALUES: "prompt values",
}


@dataclass(frozen=True)
class Sweep:
    """The config that a sweep varies, overrides that all cells have, and where it writes."""

    named: str
    fixed: tuple[str, ...]
    directory: Path
    store: Path


def tasks_of(sweep: Sweep, cells: Sequence[Checked]) -> list[Task]:
    """The tasks of cells, each after the shared stages that it needs.

    Args:
      sweep: that they are of.
      cells: whose configs are checked.
    """
    stages: dict[Path, Task] = {}
    tasks: list[Task] = []
    for cell in cells:
        given = [sweep.named, *sweep.fixed, *grid.overrides(cell.setting)]
        given.append(f"--config.seed={cell.seed}")
        label = grid.label(cell.setting, cell.seed)
        folder = grid.folder(label, cell.identity)
        directory = sweep.directory / CELLS / folder
        needs, begin = [], _begun_from(directory, sweep.store)
        if not begin:
            needs = _stages(sweep, cell, given, stages)
            begin = str(needs[-1].directory) if needs else ""
        tasks += [need for need in needs if need not in tasks]
        tasks.append(
            Task(
                label,
                directory,
                [*given, *_places(directory, begin)],
                sweep.directory / LOGS / f"{folder}.log",
                needs=needs,
                setting=cell.setting,
                seed=cell.seed,
                updates=cell.updates,
            )
        )
    return tasks


def _stages(
    sweep: Sweep, cell: Checked, given: Sequence[str], stages: dict[Path, Task]
) -> list[Task]:
    """The tasks of the stages that a cell shares, in order; new ones are added to `stages`."""
    needs: list[Task] = []
    for stage, digest in cell.shared.items():
        directory = shared_stages.directory(sweep.store, stage, digest)
        if directory not in stages:
            begin = str(needs[-1].directory) if needs else ""
            stages[directory] = Task(
                f"{TITLES[stage]} {digest[:8]} (seed {cell.seed})",
                directory,
                [*given, f"--config.job={stage}", *_places(directory, begin)],
                directory / LOG,
                needs=list(needs),
                stage=stage,
                updates=cell.updates,
            )
        needs.append(stages[directory])
    return needs


def _begun_from(directory: Path, store: Path) -> str:
    """The stage of the store that a cell has begun from already; "" where there is none.

    A cell goes on from it, also where today's code would make another one.
    """
    try:
        begin = str(run_config.read(directory)[0].get("begin", ""))
    except Refusal:  # it has not begun
        return ""
    is_of_store = bool(begin) and Path(begin).resolve().parent == store.resolve()
    return begin if is_of_store and (Path(begin) / run_config.FILE).exists() else ""


def _places(directory: Path, begin: str) -> list[str]:
    """The directory of a run, and the run that it begins from."""
    return [f"--config.directory={directory}", *([f"--config.begin={begin}"] if begin else [])]


def start(task: Task) -> Process:
    """Starts a task in a process of its own, which Ctrl-C does not reach: the sweep tells it."""
    task.log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "rlhf_jax.cli.run", *task.arguments]
    task.log.write_bytes(b"")  # of an earlier attempt, whose last line says nothing of this one
    # A cell of a sweep that was killed may still write to its log: appended lines stay whole.
    with task.log.open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def conduct(
    sweep: Sweep,
    tasks: Sequence[Task],
    begin: Callable[[Task], Process],
    limit: int,
    code: str,
    program: str,
) -> None:
    """Runs what is left of a sweep, shows it, and writes its table and its comparison.

    Args:
      sweep: that the tasks are of.
      tasks: see `tasks_of`.
      begin: starts a task.
      limit: most tasks at once.
      code: the digest of the package's code.
      program: the command `run` as a person calls it.

    Raises Failed that names each task that failed, its last line, and the command that repeats it.
    """
    cells = [task for task in tasks if task.is_cell]
    with Display(tasks) as display:

        def changed(task: Task) -> None:
            if task.state is State.DONE and task.is_cell:
                task.figures = results_table.figures(task)
            display.changed(task)
            if task.state is not State.RUNNING and task.is_cell:
                results_table.write(sweep.directory, cells)

        Conductor(tasks, begin, limit, code, changed).run(display.tick)
    if not display.live:
        print(display.counts(), flush=True)
    print(f"results: {results_table.write(sweep.directory, cells)}", flush=True)
    finish(sweep, cells, code)
    if failed := [task for task in tasks if task.state is State.FAILED]:
        for task in failed:
            print(f"{task.name} failed: {task.reason}", file=sys.stderr)
            print(f"  log: {task.log}", file=sys.stderr)
            print(f"  again: {program} {shlex.join(task.arguments)}", file=sys.stderr)
        names = ", ".join(task.name for task in failed)
        missing = sum(cell.state is not State.DONE for cell in cells)
        raise Failed(
            f"{missing} of {len(cells)} cells are not done ({names} failed); "
            "the same command runs them again"
        )


def finish(sweep: Sweep, cells: Sequence[Task], code: str) -> None:
    """Writes the page that compares the cells that are done, and says which are of other code."""
    done = [cell for cell in cells if cell.state is State.DONE]
    older = [cell.name for cell in done if code_of(cell) != code]
    if older:
        print(
            f"note: made by other code than today's: {', '.join(older)}; their directories may be "
            "removed, to run them again"
        )
    if len(done) < 2:
        return
    from rlhf_jax.report.comparison import html

    try:
        given = [str(cell.directory) for cell in done]
        page = html.write(given, sweep.directory / COMPARISON, print)
    except Refusal as error:
        print(f"no comparison: {error}")
    else:
        print(f"comparison: {page}", flush=True)
