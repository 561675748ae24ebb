"""PMD: policy mirror descent by a regression of the log ratio on the advantage.

*PMD-mean*, arXiv 2602.05933; the square is that of Kimi k1.5, arXiv 2501.12599, eq. 3. With S = Σ_t (log
π − log π_behavior) of a completion of n tokens:

    A_i = r_i − mean of the other G − 1        loss = mean_i ½ τ (A_i / τ − S_i)² / n_i        ∂ℓ / ∂log π_t = −(A − τ S) / n

`baseline=leave_one_out_soft_value` has τ log mean e^(r / τ) of the others in place of their mean
(PMD-partition), and `soft_value` that of all G; neither underflows. The loss is that of `algorithms/common/squared.py`.

τ = 0.01 and the mean over a completion's tokens are those of OpenKimi.
"""

from dataclasses import dataclass

from rlhf_jax.algorithms.common.squared import Base, Baseline, Length, Square, squared
from rlhf_jax.config import Positive
from rlhf_jax.types import Algorithm

SCALARS = ("temperature",)


@dataclass(frozen=True)
class Config:
    """Settings of PMD-mean."""

    base: Base = "behavior"  # the policy that the log ratio is taken to
    # what a score is measured against: the others' mean, or a soft value at the temperature below
    baseline: Baseline = "leave_one_out"
    temperature: Positive = 0.01  # τ, of the log ratio, in the unit of the score
    # what a completion's square is divided by: 1, its tokens, or the completion positions
    length: Length = "tokens"


def pmd(config: Config) -> Algorithm:
    """The algorithm; rows are samples.

    Raises Refusal for a base, baseline or length that there is not.
    """
    tau = config.temperature
    return squared("pmd", Square(config.base, config.baseline, tau, tau, config.length, "unit"))
