"""PPO: a clipped policy gradient of tokens, with a critic of its own and generalised advantages.

Schulman et al. 2017, arXiv 1707.06347, eq. 7; in the form of RLHF (Ouyang et al. 2022, arXiv
2203.02155; Huang et al. 2024, arXiv 2403.17031; Async RLHF, arXiv 2410.18252):

    r_t = −kl_weight (log π' − log π_ref), and the score at the last token         A = GAE(r, V), returns = A + V
    policy: −mean over tokens of min(ρ A', clip(ρ, 1 ± clip) A')     A' = A whitened over the tokens of the *round*
    critic: mean over tokens of ½ max((V − returns)², (clip(V, V₀ ± value_clip) − returns)²)

π' is what the ratio ρ is taken to. The critic is a role of its own, begun as the reward model in
units of the standardised score; V is of what precedes a token, and the completion is the episode:
nothing follows its last token, EOS or not.
"""

from dataclasses import dataclass, field

import jax.numpy as jnp

from rlhf_jax.algorithms.api import drift_metrics, grouped_scores
from rlhf_jax.algorithms.common.shapes import check_shapes
from rlhf_jax.algorithms.common.surrogate import (
    corrected_batch,
    needs_of,
    ratio_logprob,
    token_surrogate,
)
from rlhf_jax.config import Fraction, NonNegative, Positive
from rlhf_jax.ops.advantages import gae
from rlhf_jax.ops.corrections import Correction, resolve
from rlhf_jax.ops.divergences import k1
from rlhf_jax.ops.losses import clipped_value
from rlhf_jax.ops.masked import last_index, masked_count, masked_sum, masked_whiten, select
from rlhf_jax.types import Algorithm, Array, Batch, Mean, Metrics, Outputs, Samples, Scores

SCALARS = (
    "kl_weight",
    "clip",
    "value_clip",
    "gamma",
    "gae_lambda",
    "correction.cap",
    "correction.floor",
    "correction.second_moment",
)


@dataclass(frozen=True)
class Config:
    """Settings of PPO; defaults of arXiv 2410.18252, hyperparameters of TL;DR PPO (its value
    coefficient 0.1 weighs a sum of the two losses: with an optimizer for each role it has no
    place).
    """

    kl_weight: NonNegative = 0.05  # of the KL to the reference, in each token's reward
    clip: Positive = 0.2  # the ratio stays within 1 - clip and 1 + clip
    value_clip: Positive = 0.2  # the value moves at most so far from the round's first
    gamma: Fraction = 1.0  # γ
    gae_lambda: Fraction = 0.95  # λ
    correction: Correction = field(default_factory=Correction)


def ppo(config: Config) -> Algorithm:
    """The algorithm; rows are samples."""
    correction = resolve(config.correction)

    def credit(samples: Samples, scores: Scores) -> Batch:
        grouped_scores(samples, scores, 1, "ppo")
        assert scores.reference_logprob_BC is not None
        assert scores.value_BC is not None
        mask_BC = samples.mask_BC
        kl_BC = k1(ratio_logprob(correction, samples, scores), scores.reference_logprob_BC, mask_BC)
        is_last_BC = jnp.arange(mask_BC.shape[1])[None] == last_index(mask_BC)[:, None]
        reward_BC = select(scores.score_B[:, None], is_last_BC) - config.kl_weight * kl_BC
        advantage_BC = gae(
            reward_BC, scores.value_BC, mask_BC, gamma=config.gamma, gae_lambda=config.gae_lambda
        )
        returns_BC = select(advantage_BC + scores.value_BC, mask_BC)
        whitened_BC = masked_whiten(advantage_BC, mask_BC)
        return corrected_batch(correction, samples, scores, whitened_BC, {}, return_RC=returns_BC)

    def policy(outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        loss_RC, metrics = token_surrogate(outputs, batch, correction, config.clip, config.clip)
        return jnp.sum(loss_RC), {**metrics, **drift_metrics(outputs, batch)}

    def critic(outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        return critic_loss(outputs, batch, config.value_clip)

    return check_shapes(
        Algorithm(
            name="ppo",
            needs=needs_of(correction, "reference", "value"),
            unit=1,
            aggregation="token",
            credit=credit,
            losses={"policy": policy, "critic": critic},
            ratio=True,
        )
    )


def critic_loss(outputs: Outputs, batch: Batch, value_clip: float) -> tuple[Array, Metrics]:
    """The clipped value loss summed over tokens, and metrics of the values.

    Args:
      outputs: with `value_RC` of the critic that is trained.
      batch: with `value_RC` at the start of the round, and `return_RC`.
      value_clip: see `clipped_value`.
    """
    assert batch.value_RC is not None
    assert batch.return_RC is not None
    mask_RC, count = batch.mask_RC, masked_count(batch.mask_RC)
    value_RC, first_RC = select(outputs.value_RC, mask_RC), select(batch.value_RC, mask_RC)
    loss_RC, clipped_RC = clipped_value(value_RC, first_RC, batch.return_RC, value_clip)
    return masked_sum(loss_RC, mask_RC), {
        "value": Mean(jnp.sum(value_RC), count),
        "return": Mean(jnp.sum(batch.return_RC), count),
        "squared_error": Mean(masked_sum(jnp.square(value_RC - batch.return_RC), mask_RC), count),
        "clip_share": Mean(masked_sum(clipped_RC.astype(jnp.float32), mask_RC), count),
    }
