"""Runs a study: `python -m experiments.sweep --config=configs/studies/grpovi.py [--cells=N] [--workers=N]`.

`study.py` says which cells there are, `cells.py` runs them. A cell that has ended is never run again, an interrupted one begins
again, and the report is written after every seed. Workers are processes with a compile cache in common; `--slurm` makes them
an array of jobs.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from experiments.cells import load, phases, work
from experiments.run import INTERRUPTED, keep_freed_memory, stop
from experiments.study import Cell, Study, report_cells, results, tuning
from rlhf_jax.refusal import Refusal


def launch(study: Study, argument: str, cells: Sequence[Cell], num_workers: int) -> None:
    """Runs cells in processes of their own and waits for them. Raises RuntimeError naming the log of one that failed."""
    for waiting in phases(study, cells, num_workers):
        running: list[tuple[subprocess.Popen[bytes], Path]] = []
        try:
            while waiting or running:
                while waiting and len(running) < num_workers:
                    running.append(start(study, argument, waiting.pop(0)))
                for process, log in running:
                    if process.poll():
                        raise RuntimeError(f"a worker ended with status {process.returncode}: see {log}")
                running = [(process, log) for process, log in running if process.poll() is None]
                time.sleep(0.2)
        finally:
            for process, _ in running:
                process.terminate()


def start(study: Study, argument: str, cells: Sequence[Cell]) -> tuple[subprocess.Popen[bytes], Path]:
    """Begins a worker on cells; see `phases`."""
    logs = study.directory / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{time.time_ns()}.log"
    listed = json.dumps([dataclasses.asdict(cell) for cell in cells])
    command = [sys.executable, "-m", "experiments.sweep", f"--config={argument}", "--worker"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)
    assert process.stdin is not None
    process.stdin.write(listed.encode())
    process.stdin.close()
    return process, log


def given_cells() -> list[Cell]:
    """The cells that standard input has for a worker."""
    return [Cell(**cell | {"setting": tuple(map(tuple, cell["setting"]))}) for cell in json.load(sys.stdin)]


def conduct(study: Study, run: Callable[[Sequence[Cell]], None], max_cells: int | None = None) -> None:
    """Tunes, reports, and writes the page after every seed; stops after `max_cells` cells where it is given."""
    from rlhf_jax import plugins

    if max_cells is not None:
        run(next(tuning(study))[:max_cells])
        return
    for step, cells in enumerate(tuning(study)):
        print(f"tuning, step {step + 1}: {len(cells)} cells", flush=True)
        run(cells)
    cells = report_cells(study)
    page = plugins.find("report", study.report)
    for seed in study.report_seeds:
        of_seed = [cell for cell in cells if cell.seed == seed]
        print(f"seed {seed}: {len(of_seed)} cells", flush=True)
        run(of_seed)
        written = page.write_study(study.directory, results(study, cells), [arm.name for arm in study.arms])
        print(f"report: {written}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit status 2: the study cannot run; 1: a worker failed; 130: interrupted. The same command goes on."""
    parser = argparse.ArgumentParser(prog="python -m experiments.sweep", description="Runs a study.")
    parser.add_argument("--config", required=True, help="a file of configs/studies/, e.g. configs/studies/grpovi.py")
    parser.add_argument("--cells", type=int, help="run only so many cells of the first step")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="processes at once")
    parser.add_argument(
        "--slurm",
        nargs="?",
        const="",
        help="run them as an array of jobs; optionally with options of submitit: timeout_min=60,slurm_partition=gpu",
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    try:
        study = load(given.config)
        if given.worker:
            work(study, given_cells())
            return
        run = partial(launch, study, given.config, num_workers=given.workers)
        if given.slurm is not None:
            from experiments import slurm

            run = partial(slurm.launch, slurm.executor(study, given.slurm), study, given.config, num_jobs=given.workers)
        conduct(study, run, given.cells)
    except (Refusal, ModuleNotFoundError) as error:
        stop(error)
    except (OSError, RuntimeError) as error:
        stop(error, 1)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on with the cells that are left", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    keep_freed_memory()
    main()
