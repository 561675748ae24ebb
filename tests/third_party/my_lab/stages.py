"""A stage: counts the prompts of a run's task and writes the number down."""

from typing import Any

from rlhf_jax.stages.api import Workspace
from rlhf_jax.types import Algorithm

FILE = "prompts.txt"


def job(workspace: Workspace, stages: Any, algorithm: Algorithm) -> None:
    """`--config.job=my_lab.stages`."""
    del stages
    workspace.directory.mkdir(parents=True, exist_ok=True)
    counts = [workspace.task.num_prompts(split) for split in ("train", "heldout")]
    (workspace.directory / FILE).write_text(
        f"{algorithm.name}: {counts[0]} + {counts[1]} prompts\n"
    )
