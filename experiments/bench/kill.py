"""Kills a tiny pipeline at random moments with SIGKILL, starts it again, and compares its end with
that of a run never killed.

`python -m experiments.bench.kill [--moments=50] [--seed=0] [--job=inflight]` prints one JSON line: how many of the
moments ended bitwise equal in params, metrics (times aside), samples, ledger and comparisons, and
where the kills fell. Every other pipeline has a sampling thread. `--job=inflight` has in-flight
updates in slots. `--job=buffer` trains on a replay buffer, with a sampler that is renewed every other
round. `--job=dpo` kills offline DPO, with the SFT policy and the comparisons before it.
`--job=adapters` is PPO whose four roles are adapters on one base.
"""

import argparse
import collections
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rlhf_jax.records.rates import is_timing

ROOT = Path(__file__).parents[2]
STAGES = ("sft", "reward_model", "rlhf")
SIZES = (
    "model.width=16",
    "model.ffn_width=32",
    "model.num_layers=1",
    "model.num_heads=2",
    "lengths.max_completion_tokens=8",
    "sft.num_updates=12",
    "sft.rows_per_update=8",
    "sft.checkpoint_every=5",
    "comparisons.num_train=32",
    "comparisons.num_heldout=16",
    "comparisons.prompts_per_batch=16",
    "reward_model.num_updates=8",
    "reward_model.pairs_per_update=4",
    "reward_model.checkpoint_every=3",
    "reward_model.standardize_prompts=16",
    "rlhf.total_prompts=96",
    "rlhf.prompts_per_update=4",
    "rlhf.num_minibatches=2",
    "rlhf.lag=1",
    "rlhf.loop=synchronous",
    "rlhf.evaluate_every=2",
    "rlhf.checkpoint_every=4",
    "rlhf.log_samples=2",
    "evaluate.num_prompts=8",
    "evaluate.num_prompts_between=8",
    "evaluate.prompts_per_batch=8",
    "evaluate.samples_per_prompt=2",
    "best_of_n=()",
    "best_of_n_prompts=8",
)
DPO_STAGES = ("sft", "dpo")
DPO_SIZES = (
    "dpo.num_updates=24",
    "dpo.pairs_per_update=4",
    "dpo.evaluate_every=4",
    "dpo.checkpoint_every=4",
)
INFLIGHT = (
    "rlhf.engine=slots",
    "rlhf.weights=inflight",
    "rlhf.num_slots=24",
    "rlhf.segment_steps=2",
    "rlhf.tau=6",
)
ADAPTERS = ("lora.rank=3",)
BUFFER = ("rlhf.sync_every=2", "rlhf.buffer_rounds=3")
LOOPS = ("rlhf.loop=asynchronous", "rlhf.loop=synchronous")
"""The loops that are killed in turn; the run that never was is synchronous."""
LIMIT_SECONDS = 240


# A shell's background job is begun with SIGINT ignored, and so is all that it begins: a run must
# hear it here all the same.
LISTENING = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
    " os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


def start(
    directory: Path, cache: Path, *overrides: str, config: str = "quickstart.py"
) -> subprocess.Popen:
    """Begins, or goes on with, the run of a directory.

    Args:
      directory: of the run.
      cache: through which runs share compiled programs.
      overrides: `KEY=VALUE`, after the sizes.
      config: a file of configs/, with its argument.
    """
    settings = [*SIZES, f"directory={directory}", *overrides]
    command = [
        sys.executable,
        "-c",
        LISTENING,
        "-m",
        "experiments.run",
        f"--config=configs/{config}",
    ]
    sharing = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return subprocess.Popen(
        [*command, *(f"--config.{setting}" for setting in settings)],
        cwd=ROOT,
        env=os.environ | sharing,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    """Waits for the end. Raises RuntimeError with what the process said when it failed."""
    _, errors = process.communicate(timeout=LIMIT_SECONDS)
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode}: {errors[-4000:]}")


def num_lines(directory: Path) -> int:
    """Lines of metrics.jsonl: how far a run is."""
    path = directory / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(process: subprocess.Popen, directory: Path, lines: int) -> None:
    """Until metrics.jsonl has this many lines, or the process has ended."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while num_lines(directory) < lines and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)


def kill_at(process: subprocess.Popen, directory: Path, lines: int, delay: float) -> bool:
    """SIGKILL `delay` seconds after metrics.jsonl has this many lines; False when the run ended
    before.
    """
    wait_for(process, directory, lines)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def untimed(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are not timings, without their times."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not is_timing(name)}
        for line in lines
        if line.get("kind") != "timing"
    ]


def state(directory: Path, stage: str) -> tuple[int, list[np.ndarray]]:
    """The newest checkpoint of a stage, which several processes may have written: its step, and
    every array of it.
    """
    folder = directory / "checkpoints" / stage
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    assert steps, f"no checkpoint of {stage}"
    path, reader = (folder / str(max(steps)) / "default").absolute(), ocp.PyTreeCheckpointer()
    shapes = reader.metadata(path).item_metadata.tree
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
    return max(steps), jax.tree.leaves(reader.restore(path, restore_args=arguments))


def start_dpo(directory: Path, cache: Path, *overrides: str) -> subprocess.Popen:
    """`start` of offline DPO, with its own sizes."""
    return start(directory, cache, *DPO_SIZES, *overrides, config="offline_dpo.py")


def start_inflight(directory: Path, cache: Path, *overrides: str) -> subprocess.Popen:
    """`start` of a pipeline with in-flight updates."""
    return start(directory, cache, *INFLIGHT, *overrides)


def start_buffered(directory: Path, cache: Path, *overrides: str) -> subprocess.Popen:
    """`start` of a pipeline with a replay buffer."""
    return start(directory, cache, *BUFFER, *overrides)


def start_adapted(directory: Path, cache: Path, *overrides: str) -> subprocess.Popen:
    """`start` of PPO with adapters."""
    return start(directory, cache, *ADAPTERS, *overrides, config="quickstart.py:algorithm=ppo")


def differences(one: Path, other: Path, stages: Sequence[str] = STAGES) -> list[str]:
    """Differences between two finished directories, to the bit; times are left out.

    Args:
      one: a directory.
      other: another one.
      stages: whose checkpoints are compared.
    """
    found = []
    for stage in stages:
        (step, arrays), (other_step, other_arrays) = state(one, stage), state(other, stage)
        if step != other_step or [x.tobytes() for x in arrays] != [
            x.tobytes() for x in other_arrays
        ]:
            found.append(f"checkpoint of {stage}")
    if untimed(one / "metrics.jsonl") != untimed(other / "metrics.jsonl"):
        found.append("metrics.jsonl")
    for name in (
        "samples.jsonl",
        "ledger.jsonl",
        "schedule.jsonl",
        "comparisons/train.jsonl",
        "comparisons/heldout.jsonl",
        "reward_model.json",
    ):
        if (one / name).exists() != (other / name).exists():
            found.append(f"{name} is missing in one")
        elif (one / name).exists() and (one / name).read_bytes() != (other / name).read_bytes():
            found.append(name)
    return found


def moments(lines: int, count: int, seed: int) -> list[tuple[int, float]]:
    """Seeded kill moments spread over a run of `lines` lines: a number of lines, and a further
    delay in seconds.
    """
    random = np.random.default_rng(seed)
    edges = np.linspace(0, lines, count + 1)
    return [
        (
            int(random.uniform(low, high)),
            float(random.choice([0.0, random.uniform(0, 0.05), random.uniform(0, 0.5)])),
        )
        for low, high in itertools.pairwise(edges)
    ]


def stage_at(directory: Path) -> str:
    """The stage that a killed run was in or had just ended."""
    path = directory / "metrics.jsonl"
    whole = path.read_bytes().splitlines()[:-1] if path.exists() else []
    return json.loads(whole[-1])["stage"] if whole else "start"


JOBS = {
    "pipeline": start,
    "inflight": start_inflight,
    "buffer": start_buffered,
    "dpo": start_dpo,
    "adapters": start_adapted,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", choices=tuple(JOBS), default="pipeline")
    arguments = parser.parse_args()
    is_dpo = arguments.job == "dpo"
    begin = JOBS[arguments.job]
    stages = DPO_STAGES if is_dpo else STAGES
    loops = ("rlhf.loop=synchronous",) if is_dpo else LOOPS  # DPO has no loop
    began, unequal, where = time.monotonic(), [], collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        cache, whole = Path(folder, "cache"), Path(folder, "whole")
        finish(begin(whole, cache))
        for place, (lines, delay) in enumerate(
            moments(num_lines(whole), arguments.moments, arguments.seed)
        ):
            directory, loop = Path(folder, f"killed-{place}"), loops[place % len(loops)]
            killed = kill_at(begin(directory, cache, loop), directory, lines, delay)
            where[f"{stage_at(directory) if killed else 'ended before'}, {loop}"] += 1
            finish(begin(directory, cache, loop))
            found = differences(whole, directory, stages)
            if found:
                unequal.append({"lines": lines, "delay": delay, "loop": loop, "differ": found})
            print(f"{place + 1}/{arguments.moments}: {found or 'equal'}", file=sys.stderr)
    result = {
        "benchmark": "kill",
        "job": arguments.job,
        "moments": arguments.moments,
        "equal": arguments.moments - len(unequal),
    }
    print(
        json.dumps(
            result
            | {"killed_in": where, "unequal": unequal, "seconds": round(time.monotonic() - began)}
        )
    )


if __name__ == "__main__":
    main()
