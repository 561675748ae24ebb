"""RLOO with a clipped ratio of whole completions: each sample against the mean of its prompt's
others.

Ahmadian et al. 2024, *Back to Basics*, arXiv 2402.14740, eq. 6 (the leave-one-out baseline); with
the ratio that the code of Async RLHF has (arXiv 2410.18252; "Proximal RLOO").

    R_i = score_i − kl_weight Σ_t (log π' − log π_ref)        A_i = R_i − mean of the other G − 1
    ρ_i = exp Σ_t (log π − log π')                            loss = −mean_i min(ρ_i A_i, clip(ρ_i, 1 ± clip) A_i)

π' is what the ratio is taken to (`ops/corrections.py`). The completion is one action: one ratio,
one weight.

Two further choices, both off by default. `level` "token" clips the ratio of each token, "sequence_mean" that
of the completion to the power of one over its length; the loss is then the sum over a completion's tokens.
`kl` other than "k1_in_score" takes the KL out of the score and adds it to the loss, summed over a
completion: "k3_weighted" is unbiased on stale samples too (DeepSeek-V3.2, arXiv 2512.02556, §3.1).
"""

from dataclasses import dataclass, field
from typing import Literal

import jax.numpy as jnp

from rlhf_jax.algorithms.api import drift_metrics, flat_groups, grouped_scores
from rlhf_jax.algorithms.common.shapes import check_shapes
from rlhf_jax.algorithms.common.surrogate import (
    check_level,
    corrected_batch,
    log_ratio,
    needs_of,
    ratio_logprob,
    ratio_metrics,
    reference_penalty,
    token_surrogate,
)
from rlhf_jax.config import NonNegative, Positive
from rlhf_jax.ops import advantages
from rlhf_jax.ops.corrections import MAX_LOG, Correction, resolve
from rlhf_jax.ops.divergences import k1
from rlhf_jax.ops.losses import clipped_surrogate
from rlhf_jax.ops.policy_gradient.penalties import IN_LOSS
from rlhf_jax.ops.policy_gradient.surrogates import Level
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Algorithm, Array, Batch, Metrics, Outputs, Samples, Scores

KINDS = ("k1_in_score", *IN_LOSS)
"""Kinds of the KL."""
CORRECTED_AT: dict[Level, tuple[Level, ...]] = {
    "token": ("token", "sequence", "sequence_mean"),
    "sequence": ("sequence",),
    "sequence_mean": ("sequence", "sequence_mean"),
}
"""Level of the ratio -> accepted levels of the correction's weight."""
SCALARS = ("kl_weight", "clip", "correction.cap", "correction.floor")


@dataclass(frozen=True)
class Config:
    """Settings of RLOO; defaults of arXiv 2410.18252, hyperparameters of TL;DR RLOO."""

    kl_weight: NonNegative = 0.05  # of the KL to the reference, subtracted from the score
    clip: Positive = 0.2  # a completion's ratio stays within 1 - clip and 1 + clip
    correction: Correction = field(default_factory=lambda: Correction(level="sequence"))
    # of the clipped ratio: one of the completion, or each token's
    level: Level = "sequence"
    # the KL in the score, or a kind of it in the loss: see ops/policy_gradient/penalties.py
    kl: Literal["k1_in_score", "k2", "k3", "k3_weighted", "k3_detached"] = "k1_in_score"


def rloo(config: Config) -> Algorithm:
    """The algorithm; rows are samples. Raises Refusal for a correction of single tokens beside a ratio
    of completions, and for a KL that has no meaning at a level.
    """
    correction = resolve(config.correction)
    check_level("rloo", config.level, config.kl, KINDS)
    accepted = CORRECTED_AT[config.level]
    if correction.level not in accepted or correction.correction == "second_moment":
        raise Refusal(
            f"rloo has one ratio a {'token' if config.level == 'token' else 'completion'}; its "
            f"correction is {correction.correction!r} at level {correction.level!r}, accepted: level "
            f"{' or '.join(map(repr, accepted))} and none, truncate or mask"
        )

    def credit(samples: Samples, scores: Scores) -> Batch:
        score_PG = grouped_scores(samples, scores, 2, "rloo")
        assert scores.reference_logprob_BC is not None
        drawn_BC = ratio_logprob(correction, samples, scores)
        if config.kl == "k1_in_score":
            kl_B = jnp.sum(k1(drawn_BC, scores.reference_logprob_BC, samples.mask_BC), axis=1)
            regularized_PG = score_PG - config.kl_weight * kl_B.reshape(score_PG.shape)
        else:
            regularized_PG = score_PG
        advantage_PG = advantages.leave_one_out(regularized_PG)
        return corrected_batch(
            correction,
            samples,
            scores,
            advantage_PG.reshape(-1, 1),
            {"flat_group_share": flat_groups(score_PG)},
        )

    def loss(outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        summed, metrics = surrogate(outputs, batch)
        if config.kl != "k1_in_score":
            summed += config.kl_weight * jnp.sum(reference_penalty(config.kl, outputs, batch))
        return summed, {**metrics, **drift_metrics(outputs, batch)}

    def surrogate(outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        assert batch.advantage_RC is not None
        if config.level != "sequence":
            loss_RC, metrics = token_surrogate(
                outputs, batch, correction, config.clip, config.clip, config.level
            )
            return jnp.sum(loss_RC), metrics
        log_R = jnp.clip(jnp.sum(log_ratio(outputs, batch, correction), axis=1), -MAX_LOG, MAX_LOG)
        # The first column of a row is never masked, and a completion's weight and advantage are the
        # same at all of its tokens.
        loss_R, clipped_R = clipped_surrogate(
            log_R, batch.advantage_RC[:, 0], config.clip, config.clip
        )
        weight_R = jnp.ones_like(log_R) if batch.staleness_RC is None else batch.staleness_RC[:, 0]
        metrics = ratio_metrics(jnp.exp(log_R), weight_R, clipped_R, jnp.ones_like(clipped_R))
        return jnp.sum(weight_R * loss_R), metrics

    return check_shapes(
        Algorithm(
            name="rloo",
            needs=needs_of(correction, "reference"),
            unit=1,
            aggregation="sequence",
            credit=credit,
            losses={"policy": loss},
            min_samples_per_prompt=2,
            group_baseline=True,
            ratio=True,
        )
    )
