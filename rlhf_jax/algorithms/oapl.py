"""OAPL: the log ratio of a completion to the policy that drew it, regressed on the optimal
advantage.

*OAPL*, arXiv 2602.19362. With S = Σ_t (log π − log π_behavior) of a completion and G samples of its
prompt:

    V* = β₁ log (1/G) Σ_i e^(r_i / β₁)        A*_i = r_i − V*        loss = mean_i (β₂ S_i − A*_i)²

The sampler may be as old as one likes, and there is no importance weight: the square's least value
is the policy that is optimal at KL weight β₂ to the sampler's. The loss is that of
`algorithms/common/squared.py`.

β₁ = 1 and β₂ = 10⁻³ are those of a public fork of NeMo-RL that trains it; we could not read the paper's
own. The fork clears its buffer whenever the sampler is synchronised; here a round's version is the
clock's.
"""

from dataclasses import dataclass

from rlhf_jax.algorithms.common.squared import Base, Length, Square, squared
from rlhf_jax.config import Positive
from rlhf_jax.types import Algorithm

SCALARS = ("baseline_temperature", "temperature")


@dataclass(frozen=True)
class Config:
    """Settings of OAPL; the first steps are those of REINFORCE scaled by 2 β₂."""

    base: Base = "behavior"  # the policy that the log ratio is taken to
    baseline_temperature: Positive = 1.0  # β₁, of the soft value, in the unit of the score
    temperature: Positive = 1e-3  # β₂, of the log ratio, in the unit of the score
    # what a completion's square is divided by: 1, its tokens, or the completion positions
    length: Length = "none"


def oapl(config: Config) -> Algorithm:
    """The algorithm; rows are samples.

    Raises Refusal for a base or length that there is not.
    """
    beta, tau = config.baseline_temperature, config.temperature
    return squared(
        "oapl", Square(config.base, "soft_value", beta, tau, config.length, "temperature")
    )
