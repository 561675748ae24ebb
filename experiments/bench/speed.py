"""Gold against wall clock in three arms: synchronous on all devices, synchronous on split devices,
and asynchronous.

Templated reviews at the sizes of the studies; the SFT policy and the reward model are made once a
seed. Half of the devices train and half sample where they are split. A round's seconds are the
median over rounds without an evaluation, so that a curve's clock is version x seconds a round.
Quality is called equal where the 90 % interval of the paired difference in win-rate to the first
arm lies within 0.02 on either side (two one-sided tests at 5 %).

    python -m experiments.bench.speed --seeds=5 --devices=2 --output experiments/bench/results/speed.json
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.bench import measure

MARGIN = 0.02
T_90 = {
    2: 6.314,
    3: 2.920,
    4: 2.353,
    5: 2.132,
    8: 1.895,
    10: 1.833,
}  # two-sided 90 % of Student's t, by number of seeds
SHARED = ("checkpoints", "comparisons", "reward_model.json")
ARMS = ("synchronous, all devices", "synchronous, split", "asynchronous, split")


def arm_config(
    arm: str, seed: int, directory: Path, num_devices: int, prompts_per_update: int
) -> ConfigDict:
    """The config of one of the arms."""
    from configs.common import reviews

    config = reviews.base()
    config.seed, config.directory = seed, str(directory)
    config.rlhf.prompts_per_update, config.rlhf.total_prompts = (
        prompts_per_update,
        64 * prompts_per_update,
    )
    config.rlhf.loop, config.rlhf.lag = (
        ("asynchronous", 1) if arm.startswith("asynchronous") else ("synchronous", 0)
    )
    if arm.endswith("split"):
        config.mesh.data = config.rlhf.sampler_slice_devices = num_devices // 2
        config.rlhf.sampler_slices = 1
    else:
        config.mesh.data = num_devices
    return config


def run_arm(config: ConfigDict, base: Path) -> dict[str, Any]:
    """Trains from the shared stages, and reads what happened."""
    from rlhf_jax import build
    from rlhf_jax.stages import pipeline, rlhf

    directory = Path(config.directory)
    prepared = build.prepare(config)
    for name in SHARED:
        there = base / name
        keep = shutil.ignore_patterns("rlhf")
        shutil.copytree(
            there, directory / name, ignore=keep
        ) if there.is_dir() else shutil.copyfile(there, directory / name)
    params, reward = pipeline.before_rlhf(*prepared[:2])
    rlhf.run(*prepared, reward, params)
    prepared[0].metrics.close()
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    ends = {
        line["update"]: line["seconds"]
        for line in lines
        if line["stage"] == "rlhf" and "update" in line
    }
    evaluations = [line for line in lines if line.get("of") == "rlhf"]
    at = {line["update"] for line in evaluations}
    rounds = [ends[k + 1] - ends[k] for k in range(2, max(ends)) if not at & {k, k + 1, k + 2}]
    return {
        "seconds_a_round": float(np.median(rounds)),
        "curve": [
            (line["update"], line["gold_mean"], line["win_rate"], line["kl"])
            for line in evaluations
        ],
        "win_rate": evaluations[-1]["win_rate"],
    }


def base_of(seed: int, directory: Path) -> Path:
    """SFT policy, comparisons and reward model of a seed, on one device."""
    from configs.common import reviews
    from rlhf_jax import build
    from rlhf_jax.stages import pipeline

    config = reviews.base()
    config.seed, config.directory = seed, str(directory)
    pipeline.before_rlhf(*build.prepare(config)[:2])
    return directory


def summary(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A case an arm: seconds a round, win-rate, and the paired difference to the first arm."""
    first, cases = ARMS[0], []
    for arm, runs in found.items():
        rates = np.array([run["win_rate"] for run in runs])
        seconds = np.array([run["seconds_a_round"] for run in runs])
        case: dict[str, Any] = {
            "case": arm,
            "seconds_a_round": round(float(seconds.min()), 4),
            "to_first_arm": round(
                float(np.median(seconds / [run["seconds_a_round"] for run in found[first]])), 4
            ),
            "win_rate": round(float(rates.mean()), 4),
            "curves": [run["curve"] for run in runs],
        }
        if arm != first and len(runs) in T_90:
            gap = rates - [run["win_rate"] for run in found[first]]
            half = T_90[len(runs)] * gap.std(ddof=1) / np.sqrt(len(runs))
            case["win_rate_difference"] = [
                round(float(gap.mean() + side * half), 4) for side in (-1, 0, 1)
            ]
            case["equivalent"] = bool(max(abs(gap.mean() - half), abs(gap.mean() + half)) <= MARGIN)
        cases.append(case)
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--devices", type=int, default=2, help="an even number; of a CPU as many are made"
    )
    parser.add_argument("--prompts", type=int, default=64, help="an update")
    parser.add_argument(
        "--bases",
        type=Path,
        nargs="*",
        default=[],
        help="runs with these stages, one a seed, whose stages serve",
    )
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.devices < 2 or options.devices % 2:
        parser.error(f"--devices is {options.devices}; accepted: even numbers from 2")
    jax.config.update("jax_num_cpu_devices", options.devices)
    load_average = os.getloadavg()
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as scratch:
        jax.config.update("jax_compilation_cache_dir", str(Path(scratch) / "compiled"))
        for seed in range(options.seeds):
            base = (
                options.bases[seed]
                if options.bases
                else base_of(seed, Path(scratch) / f"base{seed}")
            )
            for number, arm in enumerate(ARMS):
                directory = Path(scratch) / f"{seed}_{number}"
                found[arm].append(
                    run_arm(
                        arm_config(arm, seed, directory, options.devices, options.prompts), base
                    )
                )
    measure.report("speed", summary(found), load_average, options.output)


if __name__ == "__main__":
    main()
