"""The line that is kept of a cell that has ended: its curve, means of its metrics, its schedule,
ages and cost.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf_jax.records.jsonl import Line
from rlhf_jax.records.metrics import read
from rlhf_jax.stages import rlhf
from rlhf_jax.sweeps import provenance
from rlhf_jax.sweeps.study import Arm, Cell
from rlhf_jax.types import Algorithm

MEANS = (
    "ratio_p99",
    "clip_share",
    "entropy",
    "behavior_kl_k1",
    "flat_group_share",
    "winner_takes_all_share",
)
MEANS += ("variance_mean_place", "clipped_low_share", "clipped_high_share", "update_norm")
MEANS += ("logprob_change", "effective_sample_share", "tie_share")
SCHEDULE = ("lag", "num_minibatches", "num_epochs", "samples_per_prompt")
KEYS_OF_A_LINE = ("stage", "of", "seconds")  # of an evaluation, that no report reads


def line_of(
    directory: Path,
    study: str,
    arm: Arm,
    cell: Cell,
    config: rlhf.Config,
    algorithm: Algorithm,
    diverged: str,
    golden: str,
) -> dict[str, Any]:
    """The line of a cell, from its run's metrics.

    Args:
      directory: of the cell's run.
      study: the study's name.
      arm: of the cell.
      cell: that has ended.
      config: its settings.
      algorithm: its algorithm.
      diverged: the message of a figure that was not finite; "" for a run that came to its end.
      golden: the hash of the golden numbers that the cell depends on.

    Raises RuntimeError where an update was of another age than the clock says.
    """
    path = directory / "metrics.jsonl"
    lines = read(path) if path.exists() else []
    updates = [line for line in lines if line["stage"] == rlhf.STAGE and "update" in line]
    line: dict[str, Any] = {"study": study, "arm": cell.arm, "setting": dict(cell.setting)}
    line |= {"seed": cell.seed, "purpose": cell.purpose, "num_updates": cell.num_updates}
    line |= {"algorithm": arm.algorithm, "policy": arm.policy, "reward": arm.reward}
    line |= {"golden": golden, "commit": provenance.commit()}
    line |= {"processor": provenance.processor(), "date": datetime.now(UTC).date().isoformat()}
    line["schedule"] = {name: getattr(config, name) for name in SCHEDULE}
    line["ages"] = ages(config, updates, whole=not diverged)
    line["trained"] = trained(config, algorithm, updates)
    evaluations = [
        line for line in lines if line["stage"] == "evaluate" and line["of"] == rlhf.STAGE
    ]
    line["curve"] = [
        finite_or_none(evaluation)
        for evaluation in sorted(evaluations, key=lambda evaluation: evaluation["update"])
    ]
    line["means"] = finite_or_none(
        {name: mean(updates, name) for name in MEANS if updates and name in updates[0]}
    )
    return line | ({"diverged": diverged} if diverged else {})


def reward_model_of(directory: Path) -> dict[str, Any]:
    """The last evaluation of the reward model that a cell was scored by: its accuracy on held-out
    pairs, and mean and deviation of its raw rewards; {} for a reward that is not learned.

    Args:
      directory: of the stages before RLHF.
    """
    path = directory / "metrics.jsonl"
    lines = read(path) if path.exists() else []
    found = [line for line in lines if line["stage"] == "evaluate" and line["of"] == "reward_model"]
    names = ("heldout_accuracy", "raw_mean", "raw_std")
    return finite_or_none({name: found[-1][name] for name in names}) if found else {}


def finite_or_none(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as JSON can say them: None where one is not finite."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in figures.items()
        if name not in KEYS_OF_A_LINE
    }


def mean(updates: Sequence[Line], name: str) -> float:
    return sum(line[name] for line in updates) / len(updates)


def ages(config: rlhf.Config, updates: Sequence[Line], whole: bool = True) -> dict[str, float]:
    """Mean and largest age of a run's updates, by its clock; the run's own record must say the
    same. Where rows have several versions, or rounds are drawn from a buffer, the clock gives bounds
    alone, and the ages are those of the tokens, as recorded.

    `whole`: the record must hold every update.
    """
    clock = config.schedule()
    if clock.buffer_rounds or any(line.get("mixed_share") for line in updates):
        oldest = max(line["age_max"] for line in updates)
        if oldest > clock.max_age or (whole and len(updates) != clock.num_updates):
            raise RuntimeError(
                f"a cell has {len(updates)} updates and tokens of age {oldest:g}; its clock has "
                f"{clock.num_updates} and ages up to {clock.max_age}"
            )
        return {"mean": mean(updates, "age_mean"), "max": oldest}
    by_clock = [
        clock.age(*divmod(update, clock.updates_per_round)) for update in range(clock.num_updates)
    ]
    met = [line["age"] for line in updates]
    if met != (by_clock if whole else by_clock[: len(met)]):
        first = next(
            (
                index
                for index, pair in enumerate(zip(met, by_clock, strict=False))
                if pair[0] != pair[1]
            ),
            len(met),
        )
        raise RuntimeError(
            f"ages of a cell are not the clock's from update {first} on: {met[first : first + 3]}"
        )
    return {"mean": sum(by_clock) / len(by_clock), "max": max(by_clock)}


def trained(config: rlhf.Config, algorithm: Algorithm, updates: Sequence[Line]) -> dict[str, int]:
    """The cost of a run: prompts and completions sampled, rows and completion tokens that updates
    were made of, updates.

    A row counts in every epoch that trains on it. Tokens are from the mean length of every update's
    rows.
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
