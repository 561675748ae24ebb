"""Online IPO: the pairs of Online DPO with a squared loss, whose best margin is finite.

Azar et al. 2023, *A General Theoretical Paradigm*, arXiv 2310.12036, eq. 17; on fresh pairs as in
Guo et al. 2024, arXiv
2402.04792. With the margin of `online_dpo.py`:  loss = (margin − 1 / (2β))². A tie has gradient 0 and keeps its place.
"""

from dataclasses import dataclass

from rlhf_jax.algorithms.online_dpo import best_against_worst
from rlhf_jax.config import Positive
from rlhf_jax.ops.losses import ipo
from rlhf_jax.types import Algorithm

SCALARS = ("beta",)


@dataclass(frozen=True)
class Config:
    """Settings of Online IPO."""

    beta: Positive = 0.05  # τ in arXiv 2310.12036: a margin of 1 / (2β) = 10 nats is asked for


def online_ipo(config: Config) -> Algorithm:
    """The algorithm; rows are pairs, chosen then rejected."""

    return best_against_worst("online_ipo", lambda margin_U: ipo(margin_U, config.beta))
