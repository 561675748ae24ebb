"""What is kept of a cell that has ended: its curve, means of its metrics, its schedule and ages, and what it trained on."""

import json
import shutil
from collections.abc import Sequence
from typing import Any

from experiments.study import RESULT, Cell, Study
from rlhf_jax.jobs import rlhf
from rlhf_jax.observe.lines import Line, replace
from rlhf_jax.observe.metrics import read
from rlhf_jax.types import Algorithm

MEANS = ("ratio_p99", "clip_share", "entropy", "behavior_kl_k1", "flat_group_share", "winner_takes_all_share")
MEANS += ("variance_mean_place", "clipped_low_share", "clipped_high_share", "update_norm")
MEANS += ("logprob_change", "effective_sample_share", "tie_share")
SCHEDULE = ("lag", "num_minibatches", "num_epochs", "samples_per_prompt")
BULK = ("checkpoints", "rounds", "tensorboard")  # folders of a run that no report reads


def finish(study: Study, cell: Cell, config: rlhf.Config, algorithm: Algorithm) -> None:
    """Keeps of a cell what the report reads, and writes its result last: with it the cell has ended.

    Raises RuntimeError where an update was of another age than the clock says.
    """
    directory = study.directory / cell.path
    lines = read(directory / "metrics.jsonl")
    updates = [line for line in lines if line["stage"] == rlhf.STAGE and "update" in line]
    arm = study.arm(cell.arm)
    result: dict[str, Any] = {"arm": cell.arm, "setting": dict(cell.setting), "seed": cell.seed}
    result |= {"purpose": cell.purpose, "num_updates": cell.num_updates}
    result |= {"algorithm": arm.algorithm, "policy": arm.policy, "reward": arm.reward}
    result["schedule"] = {name: getattr(config, name) for name in SCHEDULE}
    result["ages"] = ages(config, updates)
    result["trained"] = trained(config, algorithm, updates)
    result["curve"] = [line for line in lines if line["stage"] == "evaluate" and line["of"] == rlhf.STAGE]
    result["means"] = {name: sum(line[name] for line in updates) / len(updates) for name in MEANS if name in updates[0]}
    for folder in BULK:
        shutil.rmtree(directory / folder, ignore_errors=True)
    replace(directory / RESULT, json.dumps(result).encode())


def ages(config: rlhf.Config, updates: Sequence[Line]) -> dict[str, float]:
    """Mean and largest age of a run's updates, by its clock; the run's own record must say the same."""
    clock = config.schedule()
    said = [clock.age(*divmod(update, clock.updates_per_round)) for update in range(clock.num_updates)]
    met = [line["age"] for line in updates]
    if met != said:
        first = next((place for place, pair in enumerate(zip(met, said, strict=False)) if pair[0] != pair[1]), len(met))
        raise RuntimeError(f"ages of a cell are not the clock's from update {first} on: {met[first : first + 3]}")
    return {"mean": sum(said) / len(said), "max": max(said)}


def trained(config: rlhf.Config, algorithm: Algorithm, updates: Sequence[Line]) -> dict[str, int]:
    """What a run cost: prompts and completions sampled, rows and completion tokens that updates were made of, updates.

    A row counts in every epoch that trains on it. Tokens are from the mean length of every update's rows.
    """
    rows = algorithm.rows_per_prompt(config.samples_per_prompt) * config.prompts_per_update
    return {
        "prompts": config.total_prompts,
        "completions": config.total_prompts * config.samples_per_prompt,
        "rows": rows * len(updates),
        "tokens": round(sum(rows * line["completion_length"] for line in updates)),
        "updates": len(updates),
        "prompts_per_update": config.prompts_per_update,
    }
