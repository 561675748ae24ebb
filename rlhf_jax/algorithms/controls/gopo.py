"""GOPO: GRPO with an advantage of ranks alone, from +2 for the best of a group to −2 for the worst.

*GOPO*, arXiv 2602.03876: A = 2 − 4 (rank − 1) / (G − 1), no scale, mean or range of the score;
equal scores share their mean rank, so that a flat group has advantage 0. The loss is that of
`grpo.py`.
"""

from dataclasses import dataclass
from typing import Literal

from rlhf_jax.algorithms import grpo
from rlhf_jax.ops import advantages
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Algorithm

SCALARS = grpo.SCALARS


@dataclass(frozen=True)
class Config(grpo.Config):
    """Settings of GOPO; the advantage is its own."""

    advantage: Literal["rank"] = "rank"  # pyright: ignore[reportIncompatibleVariableOverride]


def gopo(config: Config) -> Algorithm:
    """The algorithm; rows are samples. Raises Refusal for another advantage than "rank"."""
    if config.advantage != "rank":
        raise Refusal(f"gopo.advantage is {config.advantage!r}; accepted: rank")

    return grpo.group_policy_gradient("gopo", config, grpo.advantage_from_scores(advantages.rank))
