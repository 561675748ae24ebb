"""Kills one of two processes that share one copy of the params, at a random moment with SIGKILL.

`python -m experiments.bench.kill_hosts [--moments=10] [--seed=0]` prints one JSON line. Each time the
other process must end by itself within a minute, with one line that says why. The same command is
then started again, and its directory must be that of a run never killed, to the bit: params, metrics
(times aside), samples, ledger and comparisons. Every other run has a sampling thread.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.bench import kill
from experiments.bench.processes import Processes

STAGES = ("sft", "rlhf")
SETTINGS = (
    *(each for each in kill.SIZES if not each.startswith(("comparisons.", "reward_model."))),
    "reward=gold",
    "sft.num_updates=12",
    "rlhf.evaluate_every=0",
    "mesh.fsdp_hosts=2",
)
MOST_SECONDS = 60
"""That the process which was not killed may take to end."""
ENDED = ("as it does when another of them has ended", "has not been heard of for")
"""What a collective says that fails, and what a process says that waits elsewhere."""
GOES_ON = "the same command goes on from the last checkpoint"


def start(directory: Path, cache: Path, loop: str) -> Processes:
    """Begins two processes of a run, or goes on with it.

    Args:
      directory: of the run.
      cache: through which runs share compiled programs.
      loop: of `kill.LOOPS`.
    """
    command = [
        *("-m", "experiments.run", "--config=configs/quickstart.py"),
        *(f"--config.{each}" for each in (*SETTINGS, f"directory={directory}", loop)),
    ]
    sharing = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return Processes(directory, command, 2, 1, sharing)


def finish(processes: Processes) -> None:
    """Waits for the end. Raises RuntimeError with what the processes said where one failed."""
    if any(processes.wait(kill.LIMIT_SECONDS)):
        raise RuntimeError(processes.said())


def kill_one(processes: Processes, directory: Path, victim: int, lines: int, delay: float) -> Any:
    """Kills a process at a moment, and waits for the other one.

    Args:
      processes: two.
      directory: of their run.
      victim: the number of the one that is killed.
      lines: of metrics that are waited for.
      delay: seconds after that.

    Returns: seconds until the other one ended, its exit status and what it said of it.
    """
    kill.wait_for(processes.all[0], directory, lines)
    time.sleep(delay)
    processes.all[victim].send_signal(signal.SIGKILL)
    began = time.monotonic()
    statuses = processes.wait(2 * MOST_SECONDS)
    log = processes.logs[1 - victim].read_text().splitlines()
    return {
        "killed": statuses[victim] == -signal.SIGKILL,
        "seconds": round(time.monotonic() - began, 1),
        "status": statuses[1 - victim],
        "said": [line for line in log if any(said in line for said in ENDED)],
        "goes_on": sum(GOES_ON in line for line in log),
        "traceback": any("Traceback" in line or "Check failure" in line for line in log),
    }


def faults(end: dict[str, Any]) -> list[str]:
    """Faults in the end of the process that was not killed.

    Args:
      end: as `kill_one` returns it.
    """
    found = []
    if end["seconds"] > MOST_SECONDS:
        found.append(f"it took {end['seconds']} s")
    if end["status"] != 1:
        found.append(f"its status was {end['status']}")
    if len(end["said"]) != 1 or end["goes_on"] != 1 or end["traceback"]:
        found.append(f"it said {len(end['said'])} line(s), traceback: {end['traceback']}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", default="", help="of compiled programs; '': a new one")
    arguments = parser.parse_args()
    began, draw, runs = time.monotonic(), random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory() as folder:
        cache, whole = Path(arguments.cache or f"{folder}/cache"), Path(folder, "whole")
        finish(start(whole, cache, kill.LOOPS[1]))
        moments = kill.moments(kill.num_lines(whole), arguments.moments, arguments.seed)
        for index, (lines, delay) in enumerate(moments):
            directory, loop = Path(folder, f"killed-{index}"), kill.LOOPS[index % 2]
            victim = draw.randrange(2)
            processes = start(directory, cache, loop)
            end = kill_one(processes, directory, victim, lines, delay)
            where = kill.stage_at(directory)
            if faults(end):
                print(processes.said(), file=sys.stderr)
            finish(start(directory, cache, loop))
            runs.append(
                {"victim": victim, "in": where, "loop": loop.partition("=")[2]}
                | {"seconds": end["seconds"], "killed": end["killed"], "faults": faults(end)}
                | {"differ": kill.differences(whole, directory, STAGES)}
            )
            print(f"{index + 1}/{arguments.moments}: {runs[-1]}", file=sys.stderr, flush=True)
    killed = [run for run in runs if run["killed"]]
    print(
        json.dumps(
            {
                "benchmark": "kill_hosts",
                "moments": arguments.moments,
                "killed": len(killed),
                "ended_well": sum(not run["faults"] for run in killed),
                "equal": sum(not run["differ"] for run in runs),
                "slowest_end": max(run["seconds"] for run in killed),
                "runs": runs,
                "seconds": round(time.monotonic() - began),
            }
        )
    )


if __name__ == "__main__":
    main()
