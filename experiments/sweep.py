"""Runs a study: `python -m experiments.sweep --config=configs/studies/grpovi.py [--cells=N] [--workers=N]`.

`study.py` says which cells there are. A cell that has ended is never run again, an interrupted one begins again, and the
report is written after every seed. Workers are processes with a compile cache in common.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.run import INTERRUPTED, keep_freed_memory, stop
from experiments.study import RESULT, Cell, Study, report_cells, results, tuning


def config_of(study: Study, cell: Cell) -> ConfigDict:
    """The resolved config of a cell, in its own directory."""
    from rlhf_jax import build

    arm = next(arm for arm in study.arms if arm.name == cell.arm)
    config = study.base()
    config.algorithm = build.component("algorithms", arm.algorithm)
    for key, value in itertools.chain(arm.overrides.items(), cell.setting):
        config.update_from_flattened_dict({key: value})
    config.seed = cell.seed
    config.directory = str(study.directory / cell.path)
    config.rlhf.total_prompts = cell.num_updates * config.rlhf.prompts_per_update
    if cell.purpose == "tune":
        config.rlhf.evaluate_every = 0
    config.evaluate.part = 0 if cell.purpose == "tune" else 1
    config.evaluate.num_parts = 2
    return config


def shared_stages(study: Study, seed: int) -> tuple[Any, Any]:
    """The SFT params and the reward of a seed, trained in `base/<seed>` where they are not there yet."""
    from rlhf_jax import build
    from rlhf_jax.jobs import relabel, reward_model, rlhf, sft

    config = study.base()
    config.seed, config.directory = seed, str(study.directory / "base" / str(seed))
    workspace, stages, _ = build.prepare(config)
    params = sft.run(workspace, stages.sft)
    if stages.reward == "learned":
        relabel.run(workspace, stages.comparisons, params)
        reward_model.run(workspace, stages.reward_model, params)
    return params, rlhf.make_reward(workspace, stages)


def run_cells(study: Study, cells: Sequence[Cell]) -> None:
    """Runs cells that have no result yet, seed by seed, in this process. A cell keeps its figures, not its checkpoints."""
    from rlhf_jax import build
    from rlhf_jax.jobs import rlhf

    for seed, of_seed in itertools.groupby(sorted(cells, key=lambda cell: cell.seed), key=lambda cell: cell.seed):
        left = [cell for cell in of_seed if not (study.directory / cell.path / RESULT).exists()]
        if not left:
            continue
        params, reward = shared_stages(study, seed)
        for cell in left:
            workspace, stages, algorithm = build.prepare(config_of(study, cell))
            rlhf.run(workspace, stages, algorithm, reward, params)
            workspace.metrics.close()
            finish(study, cell)


def finish(study: Study, cell: Cell) -> None:
    """Keeps of a cell what the report reads, and writes its result last: with it the cell has ended."""
    from rlhf_jax.observe.lines import replace
    from rlhf_jax.observe.metrics import read

    directory = study.directory / cell.path
    lines = read(directory / "metrics.jsonl")
    curve = [line for line in lines if line["stage"] == "evaluate" and line["of"] == "rlhf"]
    names = ("ratio_p99", "clip_share", "entropy", "behavior_kl_k1", "flat_group_share", "winner_takes_all_share")
    names += ("variance_mean_place", "clipped_low_share", "clipped_high_share", "update_norm")
    updates = [line for line in lines if line["stage"] == "rlhf" and "update" in line]
    means = {name: sum(line[name] for line in updates) / len(updates) for name in names if name in updates[0]}
    result = {"arm": cell.arm, "setting": dict(cell.setting), "seed": cell.seed, "purpose": cell.purpose}
    result |= {"num_updates": cell.num_updates, "curve": curve, "means": means}
    for folder in ("checkpoints", "rounds", "tensorboard"):
        shutil.rmtree(directory / folder, ignore_errors=True)
    replace(directory / RESULT, json.dumps(result).encode())


def launch(study: Study, argument: str, cells: Sequence[Cell], num_workers: int) -> None:
    """Runs cells in processes of their own and waits for them. Raises RuntimeError naming the log of one that failed."""
    left = [cell for cell in cells if not (study.directory / cell.path / RESULT).exists()]
    if not left:
        return
    seeds = sorted({cell.seed for cell in left})
    by_seed = [[dataclasses.replace(left[0], seed=seed, num_updates=0)] for seed in seeds]
    for parts in (by_seed, [left[place::num_workers] for place in range(num_workers)]):
        waiting = [part for part in parts if part]
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
    """Begins a worker on cells; a cell of 0 updates stands for its seed's shared stages alone."""
    logs = study.directory / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{time.time_ns()}.log"
    listed = json.dumps([dataclasses.asdict(cell) for cell in cells])
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(study.directory / "compile_cache")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    command = [sys.executable, "-m", "experiments.sweep", f"--config={argument}", "--worker"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment)
    assert process.stdin is not None
    process.stdin.write(listed.encode())
    process.stdin.close()
    return process, log


def work(study: Study) -> None:
    """A worker: reads its cells from standard input and runs them."""
    read = [Cell(**cell | {"setting": tuple(map(tuple, cell["setting"]))}) for cell in json.load(sys.stdin)]
    for seed in sorted({cell.seed for cell in read if not cell.num_updates}):
        shared_stages(study, seed)
    run_cells(study, [cell for cell in read if cell.num_updates])


def load(argument: str) -> Study:
    """The study of `file.py[:argument]`, by its `get_study`. Raises ValueError where there is none."""
    path, _, choice = argument.partition(":")
    if not Path(path).is_file():
        there = ", ".join(str(found) for found in sorted(Path("configs/studies").glob("[!_]*.py")))
        raise ValueError(f"no study {path!r}; there are: {there}")
    spec = importlib.util.spec_from_file_location("study", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_study"):
        raise ValueError(f"{path} has no get_study: it is no study (python -m experiments.run runs a config)")
    return module.get_study(choice)


def conduct(study: Study, argument: str, num_workers: int, max_cells: int | None) -> None:
    """Tunes, reports, and writes the page after every step; stops after `max_cells` cells where it is given."""
    from rlhf_jax.report.study import write_study

    if max_cells is not None:
        launch(study, argument, next(tuning(study))[:max_cells], num_workers)
        return
    for step, cells in enumerate(tuning(study)):
        print(f"tuning, step {step + 1}: {len(cells)} cells", flush=True)
        launch(study, argument, cells, num_workers)
    cells = report_cells(study)
    for seed in study.report_seeds:
        of_seed = [cell for cell in cells if cell.seed == seed]
        print(f"seed {seed}: {len(of_seed)} cells", flush=True)
        launch(study, argument, of_seed, num_workers)
        print(
            f"report: {write_study(study.directory, results(study, cells), [arm.name for arm in study.arms])}",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit status 2: the study cannot run; 1: a worker failed; 130: interrupted. The same command goes on."""
    parser = argparse.ArgumentParser(prog="python -m experiments.sweep", description="Runs a study.")
    parser.add_argument("--config", required=True, help="a file of configs/studies/, e.g. configs/studies/grpovi.py")
    parser.add_argument("--cells", type=int, help="run only so many cells of the first step")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="processes at once")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    try:
        study = load(given.config)
        if given.worker:
            work(study)
        else:
            conduct(study, given.config, given.workers, given.cells)
    except (ValueError, FileNotFoundError) as error:
        stop(error)
    except (OSError, RuntimeError) as error:
        stop(error, 1)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on with the cells that are left", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    keep_freed_memory()
    main()
