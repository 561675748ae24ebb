"""`results.csv` of a sweep: one row per cell, written anew by an atomic rename whenever one ends.

<a column per key of the grid>     the value of the cell
seed, status, directory            status: waiting, running, done, failed, or not run
updates                            of the policy that the figures are of
gold_mean                          mean score of the gold judge, in the judge's unit
win_rate_share                     share of pairs that win against the references, by the gold judge
heldout_accuracy_share             of offline DPO: share of held-out pairs ordered as labelled
reward_mean                        mean score of the reward model, in the unit that its report names
kl_nats_per_completion             KL to the SFT policy
entropy_nats_per_token             of the policy
completion_length_tokens           mean length
finished_share                     share of samples that end with an EOS
distinct_completions_share         share of samples that are distinct
reason                             last line of a cell that failed

A figure is of the last evaluation, and empty where the run has none.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.records import jsonl, metrics
from rlhf_jax.refusal import Refusal
from rlhf_jax.report import read
from rlhf_jax.sweeps.tasks import Task

FILE = "results.csv"
FIGURES = {
    "updates": "update",
    "gold_mean": "gold_mean",
    "win_rate_share": "win_rate",
    "heldout_accuracy_share": "heldout_accuracy",
    "reward_mean": "reward_mean",
    "kl_nats_per_completion": "kl",
    "entropy_nats_per_token": "entropy",
    "completion_length_tokens": "completion_length",
    "finished_share": "finished",
    "distinct_completions_share": "distinct_completions",
}
"""Column -> name in an evaluation."""


def figures(task: Task) -> dict[str, Any]:
    """The last evaluation of a cell's policy, by the names of the columns; empty without one."""
    path = task.directory / metrics.FILE
    try:
        evaluations = read.policy_evaluations(jsonl.read(path)) if path.exists() else []
    except Refusal:  # a line that is being written, or a damaged one: its report says so
        return {}
    last = evaluations[-1] if evaluations else {}
    return {column: last[name] for column, name in FIGURES.items() if name in last}


def write(directory: Path, cells: Sequence[Task]) -> Path:
    """Writes the table; returns its path.

    Args:
      directory: of the sweep.
      cells: all of them, in the order of the rows.
    """
    keys = list(cells[0].setting) if cells else []
    columns = [*keys, "seed", "status", *FIGURES, "directory", "reason"]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    for cell in cells:
        row: dict[str, Any] = {**cell.setting, "seed": cell.seed, "status": cell.state.value}
        table.writerow(
            row | cell.figures | {"directory": str(cell.directory), "reason": cell.reason}
        )
    jsonl.replace(directory / FILE, text.getvalue().encode())
    return directory / FILE
