"""Matched deviation: GRPO with GRPOVI's deviation in every group and the rewards' own shape; a
control for scale.

A = (score − mean) · std(z) / std(score), z as in `grpovi.py`: what of GRPOVI remains when only its
scale is taken. The loss is that of `grpo.py`; a flat group has advantage 0.
"""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from rlhf_jax.algorithms import grpovi
from rlhf_jax.ops import advantages
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Algorithm, Array

SCALARS = grpovi.SCALARS


@dataclass(frozen=True)
class Config(grpovi.Config):
    """Settings as GRPOVI's; dividing by the deviation again would leave GRPO."""

    advantage: Literal["centered"] = "centered"


def matched_std(config: Config) -> Algorithm:
    """The algorithm; rows are samples. Raises Refusal for another advantage than "centered"."""
    if config.advantage != "centered":
        raise Refusal(
            f"matched_std.advantage is {config.advantage!r}; accepted: centered (standardized, it "
            "is grpo)"
        )
    return grpovi.increased_policy_gradient("matched_std", config, rescaled)


def rescaled(score_PG: Array, spread_PG: Array) -> Array:
    """Scores about their mean with the deviation of `spread_PG`, `[P, G]`; 0 in a flat group."""
    deviation_P1 = advantages.deviation(score_PG)
    gain_P1 = jnp.where(
        deviation_P1 > 0,
        advantages.deviation(spread_PG) / jnp.where(deviation_P1 > 0, deviation_P1, 1.0),
        0.0,
    )
    return advantages.centered(score_PG) * gain_P1
