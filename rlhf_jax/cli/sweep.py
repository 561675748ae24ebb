"""Runs a grid over a config, or a study.

    rlhf-jax sweep quickstart --grid rlhf.lag=0,1,4 --grid algorithm.beta=0.1,0.5 --seeds=3
    rlhf-jax sweep studies/grpovi [--cells=N] [--workers=N]

`python -m experiments.sweep --config=FILE` is the same command.

A grid needs no file: `sweeps/grid.py` makes its cells, `sweeps/grid_sweep.py` runs them, each as
the command `run` does. A study is a file of its own, for what a grid cannot say.

Of a study, `study.py` says which cells there are, `cells.py` runs them. A cell that has ended is never run
again, an interrupted one begins again, and the report is written after every seed. Workers are
processes with a compile cache in common; `--slurm` makes them an array of jobs.
"""

import argparse
import dataclasses
import importlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax import config_modules
from rlhf_jax.cli import command
from rlhf_jax.cli.run import keep_freed_memory
from rlhf_jax.refusal import Failed, Refusal
from rlhf_jax.sweeps.cells import Cells, load, phases, work
from rlhf_jax.sweeps.steps import report_cells, tuning
from rlhf_jax.sweeps.study import Cell, Study, setting_from_json


def launch(
    study: Study,
    argument: str,
    wanted: Sequence[Cell],
    num_workers: int,
    deadline: float = math.inf,
) -> None:
    """Runs cells in processes of their own and waits for them.

    A worker that fails stops no other one. Raises Failed that names each log and its last line,
    when all have ended.

    Args:
      study: whose cells they are.
      argument: the study, as the command names it.
      wanted: the cells to run.
      num_workers: most processes at once.
      deadline: of `time.time`, after which no cell is begun.
    """
    failed = []
    for waiting in phases(Cells(study), wanted, num_workers):
        running: list[tuple[subprocess.Popen[bytes], Path]] = []
        try:
            while waiting or running:
                while waiting and len(running) < num_workers:
                    running.append(start_worker(study, argument, waiting.pop(0), deadline))
                failed += [log for process, log in running if process.poll()]
                running = [(process, log) for process, log in running if process.poll() is None]
                time.sleep(0.2)
        finally:
            for process, _ in running:
                process.terminate()
        if failed:
            break  # the cells need the stages before them
    if failed:
        raise Failed("; ".join(f"{last_line(log)} (see {log})" for log in failed))


def last_line(log: Path) -> str:
    """The last line of a worker's log, which says what ended it."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "a worker ended without a word"


def start_worker(
    study: Study, argument: str, cells: Sequence[Cell], deadline: float
) -> tuple[subprocess.Popen[bytes], Path]:
    """Begins a worker on cells; see `phases` and `launch`."""
    logs = study.directory / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{time.time_ns()}.log"
    listed = json.dumps([dataclasses.asdict(cell) for cell in cells])
    command = [sys.executable, "-m", "rlhf_jax.cli.sweep", f"--config={argument}", "--worker"]
    if deadline < math.inf:
        command.append(f"--minutes={max(0.0, deadline - time.time()) / 60}")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)
    assert process.stdin is not None
    process.stdin.write(listed.encode())
    process.stdin.close()
    return process, log


def given_cells() -> list[Cell]:
    """The cells that standard input has for a worker."""
    return [
        Cell(**cell | {"setting": setting_from_json(cell["setting"])})
        for cell in json.load(sys.stdin)
    ]


def conduct(
    study: Study,
    run: Callable[[Sequence[Cell]], None],
    max_cells: int | None = None,
    deadline: float = math.inf,
) -> None:
    """Tunes, reports, and writes the page after every seed; stops after `max_cells` cells where it
    is given.

    Args:
      study: whose cells are run.
      run: runs the cells of a step that have not ended; none is begun after the deadline.
      max_cells: of the first step; None: all cells of all steps.
      deadline: of `time.time`. The command says then how many cells are left.

    Raises Failed for the cells that failed: at once while settings are being chosen, which needs
    all cells of a step; else after every other cell has been run.
    """
    cells, failures = Cells(study), {}
    if max_cells is not None:
        first = next(iter(tuning(study, cells.ended)), None)
        run((report_cells(study, cells.ended) if first is None else first)[:max_cells])
        return
    for step, wanted in enumerate(tuning(study, cells.ended)):
        counts = f"{len(wanted)} cells, {len(cells.left(wanted))} to run"
        print(f"tuning, step {step + 1}: {counts}", flush=True)
        run(wanted)
        if left := len(cells.left(wanted)):  # a step that is not whole chooses nothing
            print(f"the time is over: {left} cells of the step are left", flush=True)
            return
    page = importlib.import_module(study.report)
    # cells that depend on another seed's are known at the second pass at the latest
    for seed in study.report_seeds * (1 + any(arm.seeds_later for arm in study.arms)):
        tried: list[Cell] = []
        while True:  # a derived cell is known once the one that it is derived from has ended
            reported = [cell for cell in report_cells(study, cells.ended) if cell.seed == seed]
            waiting = cells.left(reported)
            if waiting in ([], tried) or seed in failures or time.time() > deadline:
                break
            print(f"seed {seed}: {len(waiting)} cells to run", flush=True)
            tried = waiting
            try:
                run(waiting)
            except Failed as error:
                failures[seed] = str(error)
        reported = report_cells(study, cells.ended)
        if results := cells.results(reported):
            written = page.write_study(study.directory, results, [arm.name for arm in study.arms])
            print(f"report: {written}", flush=True)
        if time.time() > deadline:
            print(f"the time is over: {len(cells.left(reported))} cells are left", flush=True)
            break
    if failures:
        raise Failed(
            f"{'; '.join(failures.values())}. The same command runs the failed cells again"
        )


def argument_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        prog=command.program("sweep"),
        description="Runs a grid over a config, or a study. The same command goes on with either.",
        epilog="With --grid or --seeds, --config.<key>=<value> is as in the command run, for all "
        "cells.",
    )
    study_names = ", ".join(config_modules.shipped(studies=True))
    parser.add_argument(
        "name",
        nargs="?",
        help="with --grid or --seeds a config, such as quickstart; else a study that comes with "
        f"the code: {study_names}",
    )
    parser.add_argument("--config", metavar="FILE", help="a file in place of the name")
    parser.add_argument(
        "--grid",
        action="append",
        metavar="KEY=VALUE,VALUE",
        help="values of a key; of several grids every product is run",
    )
    parser.add_argument("--seeds", metavar="N", help="seeds 0 to N-1 of each, or a list: 0,5")
    parser.add_argument(
        "--directory", type=Path, help="of a grid (runs/sweeps/NAME of the config's name)"
    )
    parser.add_argument(
        "--stages",
        type=Path,
        default=Path("runs/stages"),
        help="the store of SFT policies and reward models that grids share (runs/stages)",
    )
    parser.add_argument("--cells", type=int, help="run only so many cells of a study's first step")
    parser.add_argument(
        "--minutes",
        type=float,
        help="begin no cell of a study after so many minutes; the same command goes on",
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="processes at once: half of the cores; 1 for a grid on an accelerator",
    )
    parser.add_argument(
        "--slurm",
        nargs="?",
        const="",
        help="run them as an array of jobs; optionally with options of submitit: "
        "timeout_min=60,slurm_partition=gpu",
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--check", metavar="FILE", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a sweep. Raises SystemExit with a status where it does not end well: see `command.py`.

    The same command goes on.
    """
    parser = argument_parser()
    given, overrides = parser.parse_known_args(arguments)
    if (given.name is None) == (given.config is None):
        parser.error("a config or a study is given by its name or by --config=FILE, and by one")
    argument = given.config or given.name
    is_grid = given.grid is not None or given.seeds is not None
    if overrides and not is_grid:
        parser.error(f"unrecognized arguments: {' '.join(overrides)} (a study has no overrides)")

    def body(place: command.Place) -> None:
        for name, least in (("workers", 1), ("cells", 1), ("minutes", 0)):
            if getattr(given, name) is not None and getattr(given, name) < least:
                raise Refusal(f"--{name} is {getattr(given, name)}; accepted: {least} or more")
        if given.minutes is not None and (is_grid or given.slurm is not None):
            raise Refusal("--minutes is of a study whose cells run here; accepted: none")
        if given.check:
            write_checked(argument, overrides, given)
            return
        if is_grid:
            run_grid(argument, overrides, given, place)
            return
        given.workers = given.workers or max(1, (os.cpu_count() or 2) // 2)
        study = load(argument)
        place.directory = study.directory
        deadline = math.inf if given.minutes is None else time.time() + 60 * given.minutes
        if given.worker:
            work(study, given_cells(), deadline)
            return
        run = partial(launch, study, argument, num_workers=given.workers, deadline=deadline)
        if given.slurm is not None:
            from rlhf_jax.cli import slurm

            run = partial(
                slurm.launch,
                slurm.executor(study.directory, given.slurm),
                study,
                argument,
                num_jobs=given.workers,
            )
        conduct(study, run, given.cells, deadline)

    if status := command.call(body, "the same command goes on with the cells that are left"):
        raise SystemExit(status)


def write_checked(argument: str, overrides: Sequence[str], given: argparse.Namespace) -> None:
    """Checks the cells of a grid, and writes them to the file that `--check` names.

    Args:
      argument: the config's name or file.
      overrides: of all cells.
      given: the command's arguments.

    Raises Refusal.
    """
    from rlhf_jax.cli import config_files, run
    from rlhf_jax.sweeps import checked_cells, grid

    settings = list(grid.settings(grid.parse(given.grid or ())))

    def read(setting: Sequence[str]) -> ConfigDict:
        return run.overridden(config_files.load(argument), [*overrides, *setting])

    unused = str(given.directory / "cells" / "checked")
    cells = checked_cells.check(read, settings, grid.seeds(given.seeds), unused)
    Path(given.check).write_text(json.dumps(checked_cells.as_json(cells)))


def run_grid(
    argument: str, overrides: Sequence[str], given: argparse.Namespace, place: command.Place
) -> None:
    """Checks every cell of a grid, in a process of its own, and then runs what is left.

    Args:
      argument: the config's name or file.
      overrides: of all cells.
      given: the command's arguments.
      place: gets the directory of the sweep.

    Raises Refusal, and Failed as `grid_sweep.conduct`.
    """
    from rlhf_jax.cli.run import assigned
    from rlhf_jax.sweeps import checked_cells, grid, grid_sweep

    if given.cells is not None:
        raise Refusal("--cells is of a study; a grid runs all of its cells")
    values, seeds = grid.parse(given.grid or ()), grid.seeds(given.seeds)
    for key, _ in assigned(overrides):
        if key == "directory":
            raise Refusal("--config.directory is of one run; accepted: --directory, of the sweep")
        if key in values or (key == "seed" and seeds is not None):
            raise Refusal(
                f"--config.{key} is given beside --{'seeds' if key == 'seed' else 'grid'}"
            )
    stem = re.sub(r"[^\w.=-]+", "_", argument.removeprefix("configs/").replace(".py", ""))
    given.directory = place.directory = given.directory or Path("runs/sweeps") / stem
    num_settings = math.prod(map(len, values.values()))
    print(f"checking {num_settings} settings of {argument}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cells.json"
        listed = [f"--grid={text}" for text in given.grid or ()]
        listed += [f"--seeds={given.seeds}"] * (seeds is not None)
        listed += [f"--directory={given.directory}", f"--check={file}", *overrides]
        worker = [sys.executable, "-m", "rlhf_jax.cli.sweep", f"--config={argument}", *listed]
        if status := subprocess.run(worker, check=False).returncode:
            raise SystemExit(status)  # it has said why
        told = json.loads(file.read_text())
    sweep = grid_sweep.Sweep(argument, tuple(overrides), given.directory, given.stages)
    tasks = grid_sweep.tasks_of(sweep, checked_cells.from_json(told))
    given.directory.mkdir(parents=True, exist_ok=True)
    limit, begin = given.workers, grid_sweep.start
    if given.slurm is not None:
        from rlhf_jax.cli import slurm

        begin = slurm.starter(slurm.executor(given.directory, given.slurm))
        limit = limit or len(tasks)
    limit = limit or (max(1, (os.cpu_count() or 2) // 2) if told["backend"] == "cpu" else 1)
    grid_sweep.conduct(sweep, tasks, begin, limit, told["code"], command.program("run"))


def start() -> None:
    """Runs the command on the arguments of the command line."""
    keep_freed_memory()
    command.outlive_readers()
    command.start(main)


if __name__ == "__main__":
    start()
