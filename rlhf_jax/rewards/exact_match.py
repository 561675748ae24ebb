"""1 for a verified answer, 0 for any other: the judge of a task whose answers can be checked."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_jax.refusal import Refusal, RewardError
from rlhf_jax.rewards import gold
from rlhf_jax.rewards.api import HostReward
from rlhf_jax.tasks.api import Task

KIND = "host"


@dataclass(frozen=True)
class Config:
    """Exact match has no settings: the task defines what a right answer is."""


def make(task: Task, config: Config | None = None) -> HostReward:
    """The reward `(prompts, completions, finished) -> 0 or 1 [B]`, float32.

    Args:
      task: verifiable; its `judge` is called once per completion.
      config: has no settings.

    Raises Refusal for a task that cannot verify answers. The reward, when called, raises
    RewardError for a judge that gives anything but 0 or 1.
    """
    del config
    if not task.verifiable:
        raise Refusal(
            f"reward exact_match needs a verifiable task; {type(task).__name__} is not: use gold "
            "or learned"
        )
    judge = gold.make(task)

    def reward(
        prompts: Sequence[str], completions: Sequence[str], finished: Sequence[bool]
    ) -> np.ndarray:
        scores_B = judge(prompts, completions, finished)
        wrong = scores_B[(scores_B != 0) & (scores_B != 1)]
        if wrong.size:
            raise RewardError(
                f"exact_match: {type(task).__name__}.judge gave {wrong[0]}; a verified answer is 0 "
                "or 1"
            )
        return scores_B

    return reward
