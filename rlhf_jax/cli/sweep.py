"""Runs a study: `python -m experiments.sweep --config=configs/studies/grpovi.py [--cells=N]
[--workers=N]`.

`rlhf-jax sweep studies/grpovi` is the same command on a study that comes with the code, by its
short name.

`study.py` says which cells there are, `cells.py` runs them. A cell that has ended is never run
again, an interrupted one begins again, and the report is written after every seed. Workers are
processes with a compile cache in common; `--slurm` makes them an array of jobs.
"""

import argparse
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rlhf_jax import config_modules
from rlhf_jax.cli import command
from rlhf_jax.cli.run import keep_freed_memory
from rlhf_jax.refusal import Failed, Refusal
from rlhf_jax.sweeps.cells import Cells, load, phases, work
from rlhf_jax.sweeps.study import Cell, Study, report_cells, tuning


def launch(study: Study, argument: str, wanted: Sequence[Cell], num_workers: int) -> None:
    """Runs cells in processes of their own and waits for them.

    A worker that fails stops no other one. Raises Failed that names each log and its last line,
    when all have ended.
    """
    failed = []
    for waiting in phases(Cells(study), wanted, num_workers):
        running: list[tuple[subprocess.Popen[bytes], Path]] = []
        try:
            while waiting or running:
                while waiting and len(running) < num_workers:
                    running.append(start_worker(study, argument, waiting.pop(0)))
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
    study: Study, argument: str, cells: Sequence[Cell]
) -> tuple[subprocess.Popen[bytes], Path]:
    """Begins a worker on cells; see `phases`."""
    logs = study.directory / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{time.time_ns()}.log"
    listed = json.dumps([dataclasses.asdict(cell) for cell in cells])
    command = [sys.executable, "-m", "rlhf_jax.cli.sweep", f"--config={argument}", "--worker"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)
    assert process.stdin is not None
    process.stdin.write(listed.encode())
    process.stdin.close()
    return process, log


def given_cells() -> list[Cell]:
    """The cells that standard input has for a worker."""
    return [
        Cell(**cell | {"setting": tuple(map(tuple, cell["setting"]))})
        for cell in json.load(sys.stdin)
    ]


def conduct(
    study: Study, run: Callable[[Sequence[Cell]], None], max_cells: int | None = None
) -> None:
    """Tunes, reports, and writes the page after every seed; stops after `max_cells` cells where it
    is given.

    Raises Failed for the cells that failed: at once while settings are being chosen, which needs
    all cells of a step; else after every other cell has been run.
    """
    cells, failures = Cells(study), []
    if max_cells is not None:
        first = next(iter(tuning(study, cells.ended)), None)
        run((report_cells(study, cells.ended) if first is None else first)[:max_cells])
        return
    for step, wanted in enumerate(tuning(study, cells.ended)):
        print(
            f"tuning, step {step + 1}: {len(wanted)} cells, {len(cells.left(wanted))} to run",
            flush=True,
        )
        run(wanted)
    reported = report_cells(study, cells.ended)
    page = importlib.import_module(study.report)
    for seed in study.report_seeds:
        of_seed = [cell for cell in reported if cell.seed == seed]
        print(f"seed {seed}: {len(of_seed)} cells, {len(cells.left(of_seed))} to run", flush=True)
        try:
            run(of_seed)
        except Failed as error:
            failures.append(str(error))
        if results := cells.results(reported):
            written = page.write_study(study.directory, results, [arm.name for arm in study.arms])
            print(f"report: {written}", flush=True)
    if failures:
        raise Failed(f"{'; '.join(failures)}. The same command runs the failed cells again")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a study. Raises SystemExit with a status where it does not end well: see `command.py`.

    The same command goes on.
    """
    parser = argparse.ArgumentParser(prog=command.program("sweep"), description="Runs a study.")
    study_names = ", ".join(config_modules.shipped(studies=True))
    parser.add_argument("study", nargs="?", help=f"a study that comes with the code: {study_names}")
    parser.add_argument(
        "--config", help="a file of configs/studies/, e.g. configs/studies/grpovi.py, or your own"
    )
    parser.add_argument("--cells", type=int, help="run only so many cells of the first step")
    parser.add_argument(
        "--workers", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="processes at once"
    )
    parser.add_argument(
        "--slurm",
        nargs="?",
        const="",
        help="run them as an array of jobs; optionally with options of submitit: "
        "timeout_min=60,slurm_partition=gpu",
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if (given.study is None) == (given.config is None):
        parser.error("a study is given by its name or by --config=FILE, and by one of them")
    argument = given.config or given.study

    def body(place: command.Place) -> None:
        for name, least in (("workers", 1), ("cells", 1)):
            if getattr(given, name) is not None and getattr(given, name) < least:
                raise Refusal(f"--{name} is {getattr(given, name)}; accepted: {least} or more")
        study = load(argument)
        place.directory = study.directory
        if given.worker:
            work(study, given_cells())
            return
        run = partial(launch, study, argument, num_workers=given.workers)
        if given.slurm is not None:
            from rlhf_jax.cli import slurm

            run = partial(
                slurm.launch,
                slurm.executor(study, given.slurm),
                study,
                argument,
                num_jobs=given.workers,
            )
        conduct(study, run, given.cells)

    if status := command.call(body, "the same command goes on with the cells that are left"):
        raise SystemExit(status)


def start() -> None:
    """Runs the command on the arguments of the command line."""
    keep_freed_memory()
    command.start(main)


if __name__ == "__main__":
    start()
