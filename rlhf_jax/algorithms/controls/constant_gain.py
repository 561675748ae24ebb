"""Constant gain: GRPO without division, on scores times one constant; the simplest control for the
scale of rewards.

A = gain · (score − mean). A common factor changes the learning rate under SGD; under Adam it
divides the KL weight and nothing else, up to its epsilon and to clipping of gradients. The loss is
that of `grpo.py`.
"""

from dataclasses import dataclass
from typing import Literal

from rlhf_jax.algorithms import grpo
from rlhf_jax.config import Positive
from rlhf_jax.ops import advantages
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Algorithm

SCALARS = (*grpo.SCALARS, "gain")


@dataclass(frozen=True)
class Config(grpo.Config):
    """Settings of the control."""

    advantage: Literal["centered"] = "centered"
    gain: Positive = (
        6.0  # about std(z) / std(score) of GRPOVI with scores of deviation 1 in the middle of ±6
    )

    def __post_init__(self) -> None:
        if self.gain <= 0 or self.advantage != "centered":
            raise Refusal(
                f"constant_gain has gain {self.gain} and advantage {self.advantage!r}; accepted: a "
                "positive gain, centered"
            )


def constant_gain(config: Config) -> Algorithm:
    """The algorithm; rows are samples."""
    advantage = grpo.advantage_from_scores(
        lambda score_PG: config.gain * advantages.centered(score_PG)
    )
    return grpo.group_policy_gradient("constant_gain", config, advantage)
