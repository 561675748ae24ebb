"""RLOO with a clipped ratio of whole completions: each sample against the mean of its prompt's
others.

Ahmadian et al. 2024, *Back to Basics*, arXiv 2402.14740, eq. 6 (the leave-one-out baseline); with
the ratio that the code of Async RLHF has (arXiv 2410.18252; "Proximal RLOO").

    R_i = score_i − kl_weight Σ_t (log π' − log π_ref)        A_i = R_i − mean of the other G − 1
    ρ_i = exp Σ_t (log π − log π')                            loss = −mean_i min(ρ_i A_i, clip(ρ_i, 1 ± clip) A_i)

π' is what the ratio is taken to (`ops/corrections.py`). The completion is one action: one ratio,
one weight.
"""

from dataclasses import dataclass, field

import jax.numpy as jnp

from rlhf_jax.algorithms.api import drift_metrics, flat_groups, grouped_scores
from rlhf_jax.algorithms.common.shapes import check_shapes
from rlhf_jax.algorithms.common.surrogate import (
    corrected_batch,
    log_ratio,
    needs_of,
    ratio_logprob,
    ratio_metrics,
)
from rlhf_jax.config import NonNegative, Positive
from rlhf_jax.ops import advantages
from rlhf_jax.ops.corrections import MAX_LOG, Correction, resolve
from rlhf_jax.ops.divergences import k1
from rlhf_jax.ops.losses import clipped_surrogate
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Algorithm, Array, Batch, Metrics, Outputs, Samples, Scores

SCALARS = ("kl_weight", "clip", "correction.cap", "correction.floor")


@dataclass(frozen=True)
class Config:
    """Settings of RLOO; defaults of arXiv 2410.18252, hyperparameters of TL;DR RLOO."""

    kl_weight: NonNegative = 0.05  # of the KL to the reference, subtracted from the score
    clip: Positive = 0.2  # a completion's ratio stays within 1 - clip and 1 + clip
    correction: Correction = field(default_factory=lambda: Correction(level="sequence"))


def rloo(config: Config) -> Algorithm:
    """The algorithm; rows are samples. Raises Refusal for a correction of single tokens."""
    correction = resolve(config.correction)
    if correction.level != "sequence" or correction.correction == "second_moment":
        raise Refusal(
            f"rloo has one ratio a completion; its correction is {correction.correction!r} at "
            "level "
            f"{correction.level!r}, accepted: level 'sequence' and none, truncate or mask"
        )

    def credit(samples: Samples, scores: Scores) -> Batch:
        score_PG = grouped_scores(samples, scores, 2, "rloo")
        assert scores.reference_logprob_BC is not None
        drawn_BC = ratio_logprob(correction, samples, scores)
        kl_B = jnp.sum(k1(drawn_BC, scores.reference_logprob_BC, samples.mask_BC), axis=1)
        advantage_PG = advantages.leave_one_out(
            score_PG - config.kl_weight * kl_B.reshape(score_PG.shape)
        )
        return corrected_batch(
            correction,
            samples,
            scores,
            advantage_PG.reshape(-1, 1),
            {"flat_group_share": flat_groups(score_PG)},
        )

    def loss(outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        assert batch.advantage_RC is not None
        log_R = jnp.clip(jnp.sum(log_ratio(outputs, batch, correction), axis=1), -MAX_LOG, MAX_LOG)
        # The first column of a row is never masked, and a completion's weight and advantage are the
        # same at all of its tokens.
        loss_R, clipped_R = clipped_surrogate(
            log_R, batch.advantage_RC[:, 0], config.clip, config.clip
        )
        weight_R = jnp.ones_like(log_R) if batch.staleness_RC is None else batch.staleness_RC[:, 0]
        metrics = ratio_metrics(jnp.exp(log_R), weight_R, clipped_R, jnp.ones_like(clipped_R))
        return jnp.sum(weight_R * loss_R), {**metrics, **drift_metrics(outputs, batch)}

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
