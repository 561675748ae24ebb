"""GRPO: a clipped policy gradient of tokens with the score of each sample measured against its own
group.

Shao et al. 2024, *DeepSeekMath*, arXiv 2402.03300, eq. 3 and §4.1.2.

    A_i = (score_i − mean) / (std + ε)  of the prompt's G samples       ("standardized"; "bessel": the unbiased deviation;
                                                                 "centered": no division)
    loss = mean over tokens of  −min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A) + kl_weight · k3(π ‖ π_ref)

`aggregation` names the mean: "sequence" that of each completion, then over completions (the
paper's), "token" over all tokens of the minibatch, "constant_length" over completions of a constant
length. The KL is a term of the loss, by the estimator k3.

Two further choices, both off by default. `level` "sequence_mean" or "sequence" takes the ratio of the
whole completion in place of the token's (GSPO, arXiv 2507.18071, whose clips are 3e-4 and 4e-4). `kl`
"k3_weighted" is unbiased on stale samples too (DeepSeek-V3.2, arXiv 2512.02556, §3.1); plain k3 is not.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import jax.numpy as jnp

from rlhf_jax.algorithms.api import drift_metrics, flat_groups, grouped_scores
from rlhf_jax.algorithms.common.shapes import check_shapes
from rlhf_jax.algorithms.common.surrogate import (
    check_level,
    corrected_batch,
    needs_of,
    reference_penalty,
    token_surrogate,
)
from rlhf_jax.config import NonNegative, Positive
from rlhf_jax.ops import advantages
from rlhf_jax.ops.corrections import Correction, resolve
from rlhf_jax.ops.masked import masked_count
from rlhf_jax.ops.policy_gradient.surrogates import Level
from rlhf_jax.ops.scalars import is_zero
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Aggregation, Algorithm, Array, Batch, Metrics, Outputs, Samples, Scores

ADVANTAGES: dict[str, Callable[[Array], Array]] = {
    "standardized": advantages.standardized,
    "bessel": advantages.bessel,
    "centered": advantages.centered,
}
SCALARS = (
    "kl_weight",
    "clip_low",
    "clip_high",
    "correction.cap",
    "correction.floor",
    "correction.second_moment",
)
"""Numbers that compiled programs take as arguments: see `ops/scalars.py`."""
AGGREGATIONS = ("token", "sequence", "constant_length")

Figures = dict[str, Array]
Advantage = Callable[[Array, Samples, Scores], tuple[Array, Figures]]
"""(score_PG, samples, scores) -> (advantage_PG, figures [P*G])."""


@dataclass(frozen=True)
class Config:
    """Settings of GRPO; defaults of arXiv 2402.03300, §4.2 (kl_weight 0.04) and of PPO (clip 0.2)."""

    kl_weight: NonNegative = 0.04  # of the k3 estimate of the KL to the reference, in the loss
    clip_low: Positive = 0.2  # the ratio is clipped at 1 - clip_low
    clip_high: Positive = 0.2  # and at 1 + clip_high
    # the mean over tokens: see the module
    aggregation: Literal["token", "sequence", "constant_length"] = "sequence"
    # the score against its group's mean, and perhaps over its deviation
    advantage: Literal["standardized", "bessel", "centered"] = "standardized"
    correction: Correction = field(default_factory=Correction)
    # of the clipped ratio: each token's, or one of its completion
    level: Level = "token"
    # kind of the KL in the loss: see ops/policy_gradient/penalties.py
    kl: Literal["k2", "k3", "k3_weighted", "k3_detached"] = "k3"


def grpo(config: Config) -> Algorithm:
    """The algorithm; rows are samples.

    Raises Refusal for an advantage or aggregation that it does not have.
    """

    return group_policy_gradient(
        "grpo", config, advantage_from_scores(advantage_of("grpo", config.advantage))
    )


def advantage_from_scores(shape: Callable[[Array], Array]) -> Advantage:
    """The advantage of an algorithm that asks for nothing but its groups' scores, and has no
    figures of its own.
    """

    def advantage(score_PG: Array, samples: Samples, scores: Scores) -> tuple[Array, Figures]:
        del samples, scores
        return shape(score_PG), {}

    return advantage


def advantage_of(algorithm: str, name: str) -> Callable[[Array], Array]:
    """The function from `[P, G]` scores to `[P, G]` advantages that a name of `ADVANTAGES` means.

    Args:
      algorithm: for the message.
      name: of the advantage.

    Raises Refusal for another name.
    """
    if name not in ADVANTAGES:
        raise Refusal(f"{algorithm}.advantage is {name!r}; accepted: {', '.join(ADVANTAGES)}")
    return ADVANTAGES[name]


def group_policy_gradient(
    name: str, config: Config, advantage: Advantage, **properties: object
) -> Algorithm:
    """GRPO with another advantage: what its variants share.

    `properties` are further fields of `Algorithm`.

    Args:
      name: of the algorithm.
      config: of its settings.
      advantage: maps scores `[P, G]` to advantages `[P, G]`.
    """
    if config.aggregation not in AGGREGATIONS:
        raise Refusal(
            f"{name}.aggregation is {config.aggregation!r}; accepted: {', '.join(AGGREGATIONS)}"
        )
    check_level(name, config.level, config.kl)
    aggregation: Aggregation = config.aggregation  # type: ignore[assignment]
    correction = resolve(config.correction)

    def credit(samples: Samples, scores: Scores) -> Batch:
        score_PG = grouped_scores(samples, scores, 2, name)
        advantage_PG, figures = advantage(score_PG, samples, scores)
        figures = {"flat_group_share": flat_groups(score_PG), **figures}
        return corrected_batch(correction, samples, scores, advantage_PG.reshape(-1, 1), figures)

    def loss(outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        loss_RC, metrics = token_surrogate(
            outputs, batch, correction, config.clip_low, config.clip_high, config.level
        )
        if not is_zero(config.kl_weight):
            loss_RC += config.kl_weight * reference_penalty(config.kl, outputs, batch)
        if aggregation == "sequence":
            loss_RC /= jnp.maximum(masked_count(batch.mask_RC, dim=1), 1.0)[:, None]
        return jnp.sum(loss_RC), {**metrics, **drift_metrics(outputs, batch)}

    reference = () if is_zero(config.kl_weight) else ("reference",)
    return check_shapes(
        Algorithm(
            name=name,
            needs=needs_of(correction, *reference, *properties.pop("needs", ())),  # type: ignore[misc]
            unit=1,
            aggregation=aggregation,
            credit=credit,
            losses={"policy": loss},
            min_samples_per_prompt=2,
            group_baseline=True,
            ratio=True,
            **properties,  # type: ignore[arg-type]
        )
    )
