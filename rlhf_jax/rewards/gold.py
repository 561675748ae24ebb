"""The task's own gold score as the reward: what a learned reward is trained to imitate."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_jax.rewards.api import HostReward
from rlhf_jax.rewards.common import host_rewards
from rlhf_jax.tasks.api import Task

KIND = "host"


@dataclass(frozen=True)
class Config:
    """The gold score has no settings: the task defines it."""


def make(task: Task, config: Config | None = None) -> HostReward:
    """The task's judge as a reward `(prompts, completions, finished) -> [B]`, float32.

    Args:
      task: whose `judge` is called once per completion.
      config: has no settings.

    The reward, when called, raises as `host_rewards.judge`.
    """
    del config

    def reward(
        prompts: Sequence[str], completions: Sequence[str], finished: Sequence[bool]
    ) -> np.ndarray:
        return host_rewards.judge(task, prompts, completions, finished).astype(np.float32)

    return reward
