"""Best of group: GRPO that only asks which sample of a prompt is the best; a control for what
reshaping rewards does.

A = 1[best] − 1/G, equals sharing the 1 ("centered"), or that over its deviation ("standardized"):
the limit of GRPOVI for a mean low in the range (winner takes all; see `ops/variance_increase.py`).
The loss is that of `grpo.py`.
"""

from dataclasses import dataclass

from rlhf_jax.algorithms import grpo
from rlhf_jax.ops import advantages
from rlhf_jax.types import Algorithm

SCALARS = grpo.SCALARS


@dataclass(frozen=True)
class Config(grpo.Config):
    """Settings as GRPO's."""


def best_of_group(config: Config) -> Algorithm:
    """The algorithm; rows are samples.

    Raises Refusal for an advantage that GRPO does not have either.
    """
    shape = grpo.advantage_of("best_of_group", config.advantage)

    advantage = grpo.advantage_from_scores(
        lambda score_PG: shape(advantages.best_of_group(score_PG))
    )
    return grpo.group_policy_gradient("best_of_group", config, advantage)
