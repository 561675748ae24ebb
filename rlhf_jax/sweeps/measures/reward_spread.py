"""The spread of rewards within prompts: what a policy gradient or a comparison has to learn from
(Razin et al. 2025, arXiv 2503.15477). A reward model may be accurate between prompts and hardly tell
the samples of one prompt apart.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlhf_jax.runtime.program import Program
from rlhf_jax.runtime.synchronous import Event, Scored
from rlhf_jax.sweeps.cell_lines import significant
from rlhf_jax.types import Params


def within_prompts(reward_B: np.ndarray, samples_per_prompt: int) -> float:
    """The root of the mean variance of the rewards of a prompt's samples, in the reward's own unit.

    >>> within_prompts(np.array([0.0, 2.0, 5.0, 5.0]), 2)
    0.7071067811865476

    Args:
      reward_B: raw rewards, those of a prompt next to one another.
      samples_per_prompt: G; the variance is that of G numbers, not of a sample of them.
    """
    return math.sqrt(float(reward_B.reshape(-1, samples_per_prompt).var(axis=1).mean()))


class RewardSpread:
    """Measures every round before it is trained on."""

    def __init__(self, params: Params):
        """Begins a cell.

        Args:
          params: of version 0, which are not used.
        """
        del params
        self._within: list[float] = []

    def take(self, program: Program, event: Event) -> None:
        """Measures the rewards of a round."""
        if isinstance(event, Scored):
            found = within_prompts(
                np.asarray(event.scores.raw_B, np.float64), program.spec.sampling.samples_per_prompt
            )
            self._within.append(significant(found))

    def figures(self) -> Mapping[str, Any]:
        """The spread of every round."""
        return {"within_prompt_std": self._within}
