"""A*-PO: the log ratio of a completion to the reference, regressed on the advantage over a stored
value of its prompt.

A*-PO, Brantley et al., 2025, arXiv 2505.20686. Stage 1 draws N completions y_i of each prompt x
from the reference q before training, and stores their scores (`stages/prompt_values.py`). Stage 2
trains on one completion y of the current policy:

    V*(x) = β₁ log (1/N) Σ_i e^(r(x, y_i) / β₁)        eq. 5
    loss  = mean of (β₂ Σ_t (log π − log q) − (r − V*))²        eq. 6

The loss is that of `algorithms/common/squared.py`. V* is computed from the stored scores in every
round, so that another β₁ needs no other samples. It goes to their largest as β₁ → 0 and to their mean as
β₁ → ∞; a β₁ of 0 or below is refused.

β₁ = 0.5, β₂ = 10⁻³ and N = 8 (`rlhf.prompt_values.num_samples`) are those of the authors' code, which
also leaves out prompts whose N samples all fail. Their rewards are 0 and 1. Here the samples of a prompt
have failed where they all have one score, and it is at most `fail_score`: with rewards of 0 and 1, where
none has 1. A prompt whose samples differ is never left out, whatever the unit of the reward.
`failed_prompt_share` counts them.
"""

from dataclasses import dataclass
from typing import Annotated

from rlhf_jax.algorithms.api import UNIT_OF_SCORE
from rlhf_jax.algorithms.common.squared import Base, Failed, Given, Length, Square, squared
from rlhf_jax.config import Positive
from rlhf_jax.types import Algorithm

SCALARS = ("baseline_temperature", "temperature", "fail_score")


@dataclass(frozen=True)
class Config:
    """Settings of A*-PO, of which `samples_per_prompt` may be 1."""

    base: Base = "reference"  # the policy that the log ratio is taken to
    baseline_temperature: Positive = 0.5  # β₁, of V*, in the unit of the score
    temperature: Positive = 1e-3  # β₂, of the log ratio, in the unit of the score
    # what a completion's square is divided by: 1, its tokens, or the completion positions
    length: Length = "none"
    # prompts whose samples of the reference all fail: keep, or leave_out of every update
    failed_prompts: Failed = "leave_out"
    # samples have failed that all have one score, which is at most this, in the unit of the score
    fail_score: Annotated[float, UNIT_OF_SCORE] = 0.0


def a2po(config: Config) -> Algorithm:
    """The algorithm; rows are samples.

    Raises Refusal for a base, length or choice of failed prompts that there is not.
    """
    baseline = Given(config.failed_prompts, config.fail_score)
    beta, tau = config.baseline_temperature, config.temperature
    return squared("a2po", Square(config.base, baseline, beta, tau, config.length, "temperature"))
