"""Dr. GRPO: GRPO without its two divisions, by the group's deviation and by the completion's own
length.

Liu et al. 2025, *Understanding R1-Zero-Like Training*, arXiv 2503.20783, §3.2: A_i = score_i −
mean, summed over tokens and divided by a constant length. The loss is that of `grpo.py`.
"""

from dataclasses import dataclass
from typing import Literal

from rlhf_jax.algorithms import grpo
from rlhf_jax.config import NonNegative
from rlhf_jax.ops import advantages
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Algorithm

SCALARS = grpo.SCALARS


@dataclass(frozen=True)
class Config(grpo.Config):
    """Settings of Dr. GRPO; no KL term, as its authors train."""

    kl_weight: NonNegative = 0.0
    aggregation: Literal["token", "sequence", "constant_length"] = "constant_length"
    advantage: Literal["centered"] = "centered"


def dr_grpo(config: Config) -> Algorithm:
    """The algorithm; rows are samples.

    Raises Refusal for another advantage than "centered": that is GRPO.
    """
    if config.advantage != "centered":
        raise Refusal(
            f"dr_grpo.advantage is {config.advantage!r}; accepted: centered (grpo has the others)"
        )

    return grpo.group_policy_gradient(
        "dr_grpo", config, grpo.advantage_from_scores(advantages.centered)
    )
