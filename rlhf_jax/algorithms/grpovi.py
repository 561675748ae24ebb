"""GRPOVI: GRPO on rewards that are spread, within each group, to the largest variance that keeps
their order and mean.

Yang, Gu, Qi, Yuan 2025, *Accelerating RLHF Training with Reward Variance Increase*, arXiv
2505.23247, model (3).

    z = argmax Σ p z²  with  low ≤ z ≤ high,  Σ p z = Σ p score,  z in the order of the scores      (`ops/variance_increase.py`)
    A_i = z_i − mean(z)  ("centered"),  over the deviation of z ("standardized");  the loss is that of `grpo.py`

The scores that are spread are the reward's own, a missing-EOS score included; the KL is a term of
the loss. The range is fixed for a run: the bounds of a rubric or of a verifiable reward (0 and 1),
or of standardised scores the SFT mean ± 6 deviations (training leaves a range of SFT quantiles, and
winners that are clipped tie). p is uniform, since samples are drawn from the policy already, or
"reference": π_θ(0)(y | x), the paper's own model. What is logged as the reward is never z.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms import grpo
from rlhf_jax.algorithms.api import UNIT_OF_SCORE
from rlhf_jax.ops.masked import masked_sum
from rlhf_jax.ops.variance_increase import VarianceIncrease, increase_variance
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Algorithm, Array, Samples, Scores

# The ends of the range are constants: XLA rounds the advantage of a traced range in another way than
# that of a constant one (by up to 1e-6, at [-6, 0.7] or [0, 6]).
SCALARS = grpo.SCALARS
WEIGHTS = ("uniform", "reference")
TIES = ("together", "by_index")


@dataclass(frozen=True)
class Config(grpo.Config):
    """Settings of GRPOVI; the paper's KL weight, clipping and aggregation are not known, GRPO's
    stand for them.
    """

    low: Annotated[float, UNIT_OF_SCORE] = -6.0  # SFT standard deviations for a learned reward
    high: Annotated[float, UNIT_OF_SCORE] = 6.0  # the end of the range
    # of a group's samples in mean and variance
    weights: Literal["uniform", "reference"] = "uniform"
    # equal scores stay equal, or are ordered by their index
    ties: Literal["together", "by_index"] = "together"


def grpovi(config: Config) -> Algorithm:
    """The algorithm; rows are samples.

    Raises Refusal for a range, weights, ties or advantage that it does not have.
    """
    return increased_policy_gradient("grpovi", config, lambda score_PG, spread_PG: spread_PG)


def increased_policy_gradient(
    name: str, config: Config, shape: Callable[[Array, Array], Array]
) -> Algorithm:
    """GRPO whose advantage is that of `shape(score_PG, spread_PG)`, both `[P, G]` in units of the
    score.
    """
    check(name, config)
    advantage_function = grpo.advantage_of(name, config.advantage)
    ties: Literal["together", "by_index"] = config.ties  # type: ignore[assignment]

    def advantage(score_PG: Array, samples: Samples, scores: Scores) -> tuple[Array, grpo.Figures]:
        weight_PG = None if config.weights == "uniform" else reference_weights(samples, scores)
        increase = increase_variance(
            score_PG, config.low, config.high, weight_PG=weight_PG, ties=ties
        )
        spread_PG = increase.fraction_PG * (config.high - config.low)
        return advantage_function(shape(score_PG, spread_PG)), increase_figures(increase)

    needs = ("reference",) if config.weights == "reference" else ()
    return grpo.group_policy_gradient(
        name, config, advantage, needs=needs, score_range=(config.low, config.high)
    )


def check(name: str, config: Config) -> None:
    """Raises Refusal naming what the algorithm does not have."""
    if not -jnp.inf < config.low < config.high < jnp.inf:
        raise Refusal(
            f"{name} has the range [{config.low}, {config.high}]; accepted: finite, low below high"
        )
    if config.weights not in WEIGHTS:
        raise Refusal(f"{name}.weights is {config.weights!r}; accepted: {', '.join(WEIGHTS)}")
    if config.ties not in TIES:
        raise Refusal(f"{name}.ties is {config.ties!r}; accepted: {', '.join(TIES)}")


def reference_weights(samples: Samples, scores: Scores) -> Array:
    """π_ref(y | x) of a prompt's samples over that of the most probable one, `[P, G]`: only ratios
    matter.
    """
    assert scores.reference_logprob_BC is not None
    logprob_B = masked_sum(scores.reference_logprob_BC, samples.mask_BC, dim=1)
    logprob_PG = logprob_B.reshape(-1, samples.samples_per_prompt)
    return jax.lax.stop_gradient(jnp.exp(logprob_PG - jnp.max(logprob_PG, axis=1, keepdims=True)))


def increase_figures(increase: VarianceIncrease) -> grpo.Figures:
    """Metrics of an adjustment, `[P*G]` each."""
    per_prompt = increase.fraction_PG.shape[1]
    group_figures = {
        "variance_budget": increase.budget_P,
        "variance_mean_place": increase.mean_place_P,
        "winner_takes_all_share": increase.winner_takes_all_P.astype(jnp.float32),
    }
    return {
        "clipped_low_share": increase.clipped_low_PG.astype(jnp.float32).reshape(-1),
        "clipped_high_share": increase.clipped_high_PG.astype(jnp.float32).reshape(-1),
        **{name: jnp.repeat(figure_P, per_prompt) for name, figure_P in group_figures.items()},
    }
