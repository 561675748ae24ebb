"""Shared parts of policy gradients with a ratio: its denominator, the clipped sum, and its metrics."""

from collections.abc import Sequence

import jax.numpy as jnp

from rlhf_jax.algorithms.api import make_batch
from rlhf_jax.ops.corrections import LEVELS, Correction, effective_sums, staleness_weight
from rlhf_jax.ops.losses import clipped_surrogate
from rlhf_jax.ops.masked import masked_count, masked_max, masked_sum, select
from rlhf_jax.ops.policy_gradient.minibatches import weight_sums
from rlhf_jax.ops.policy_gradient.penalties import IN_LOSS, KL, WEIGHTED, kl_penalty
from rlhf_jax.ops.policy_gradient.surrogates import Level, level_ratio
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import (
    Array,
    Batch,
    EffectiveShare,
    Max,
    Mean,
    Metric,
    Need,
    Outputs,
    Quantile,
    Samples,
    Scores,
)

RATIO_BINS, LARGEST_RATIO = 400, 4.0


def needs_of(correction: Correction, *others: Need) -> frozenset[Need]:
    """The log-probabilities that an algorithm with this correction needs, beside `others`."""
    return frozenset({"proximal", *others} if correction.needs_proximal else others)


def ratio_logprob(correction: Correction, samples: Samples, scores: Scores) -> Array:
    """The log-probabilities `[B, C]` that the ratio is taken to.

    Args:
      correction: resolved, without "auto".
      samples: B rows.
      scores: of the samples.
    """
    if correction.ratio_to == "behavior":
        return samples.behavior_logprob_BC
    assert scores.proximal_logprob_BC is not None
    return scores.proximal_logprob_BC


def corrected_batch(
    correction: Correction,
    samples: Samples,
    scores: Scores,
    advantage_BC: Array,
    figures: dict[str, Array],
    **fields: Array,
) -> Batch:
    """All samples as rows, with their advantages and the staleness weight of the correction.

    Args:
      correction: as `resolve` returns it.
      samples: B rows.
      scores: of the same rows; with proximal log-probabilities where the correction needs them.
      advantage_BC: `[B, C]`, or `[B, 1]` for one advantage per completion.
      figures: `[B]` each; their means are reported.
      **fields: further fields of `Batch`, `[B, ...]`.
    """
    if correction.correction != "none":
        assert scores.proximal_logprob_BC is not None
        weight_BC = staleness_weight(
            correction, scores.proximal_logprob_BC, samples.behavior_logprob_BC, samples.mask_BC
        )
        fields["staleness_RC"] = weight_BC
        if correction.normalise:
            sums = weight_sums(weight_BC, samples.mask_BC, correction.level)
            fields["weight_sum_R"], fields["weight_count_R"] = sums
    return make_batch(
        samples,
        scores,
        advantage_RC=select(advantage_BC, samples.mask_BC),
        figures=figures,
        **fields,
    )


def base_logprob(batch: Batch, correction: Correction) -> Array:
    """Log-probabilities of the policy that the ratio is taken to, `[R, C]`; 0 under the mask.

    Args:
      batch: R rows.
      correction: resolved, without "auto".
    """
    base_RC = (
        batch.behavior_logprob_RC
        if correction.ratio_to == "behavior"
        else batch.proximal_logprob_RC
    )
    assert base_RC is not None
    return select(base_RC, batch.mask_RC)


def log_ratio(outputs: Outputs, batch: Batch, correction: Correction) -> Array:
    """log π − log of what the ratio is taken to, `[R, C]`; 0 under the mask.

    Args:
      outputs: log-probabilities `[R, C]`, nats.
      batch: R rows.
      correction: resolved, without "auto".
    """
    return select(outputs.logprob_RC, batch.mask_RC) - base_logprob(batch, correction)


def token_surrogate(
    outputs: Outputs,
    batch: Batch,
    correction: Correction,
    clip_low: float,
    clip_high: float,
    level: Level = "token",
) -> tuple[Array, dict[str, Metric]]:
    """The clipped surrogate of each token, weighted by its staleness, `[R, C]` and 0 under the
    mask; and metrics.

    Args:
      outputs: log-probabilities and entropies `[R, C]`, nats.
      batch: R rows.
      correction: resolved, without "auto".
      clip_low: distance of the lower bound of the ratio from 1.
      clip_high: distance of the upper bound from 1.
      level: of the ratio: that of each token, or of its whole completion. See
        `ops/policy_gradient/surrogates.py`.
    """
    assert batch.advantage_RC is not None
    mask_RC, advantage_RC = batch.mask_RC, batch.advantage_RC
    log_RC = level_ratio(log_ratio(outputs, batch, correction), mask_RC, level)
    loss_RC, clipped_RC = clipped_surrogate(log_RC, advantage_RC, clip_low, clip_high)
    if not correction.clips:
        loss_RC, clipped_RC = -jnp.exp(log_RC) * advantage_RC, jnp.zeros_like(mask_RC)
    weight_RC = mask_RC.astype(jnp.float32) if batch.staleness_RC is None else batch.staleness_RC
    metrics = ratio_metrics(jnp.exp(log_RC), weight_RC, clipped_RC, mask_RC)
    return select(weight_RC * loss_RC, mask_RC), metrics


def reference_penalty(kind: KL, outputs: Outputs, batch: Batch) -> Array:
    """The penalty for divergence from the reference of each token, nats `[R, C]`; 0 under the mask.

    Args:
      kind: a term of the loss: see `ops/policy_gradient/penalties.py`.
      outputs: log-probabilities `[R, C]`, nats.
      batch: R rows, with those of the reference and of the behavior policy.
    """
    assert batch.behavior_logprob_RC is not None
    assert batch.reference_logprob_RC is not None
    return kl_penalty(
        kind,
        outputs.logprob_RC,
        batch.behavior_logprob_RC,
        batch.reference_logprob_RC,
        batch.mask_RC,
    )


def check_level(algorithm: str, level: str, kl: str, accepted: Sequence[str] = IN_LOSS) -> None:
    """Raises Refusal for a level of the ratio or a kind of the KL that there is not, and for two that
    do not go together.

    Args:
      algorithm: its name, for the message.
      level: of the ratio.
      kl: of the penalty for divergence from the reference.
      accepted: kinds of the KL that the algorithm has.
    """
    if level not in LEVELS:
        raise Refusal(f"{algorithm}.level is {level!r}; accepted: {', '.join(LEVELS)}")
    if kl not in accepted:
        raise Refusal(f"{algorithm}.kl is {kl!r}; accepted: {', '.join(accepted)}")
    if kl in WEIGHTED and level != "token":
        others = ", ".join(kind for kind in accepted if kind not in WEIGHTED)
        raise Refusal(
            f"{algorithm}.kl is {kl!r} with level {level!r}; accepted: {others}, or level 'token': "
            "the ratio of a completion is no weight of a token's divergence"
        )


def ratio_metrics(ratio: Array, weight: Array, clipped: Array, mask: Array) -> dict[str, Metric]:
    """Metrics of the ratio: mean, 99th percentile, largest, share clipped; of the weight: mean; of
    both: the effective sample share.

    The percentile is read from a histogram of `RATIO_BINS` bins from 0 to `LARGEST_RATIO`.

    Args:
      ratio: ρ, `[R, C]` for tokens or `[R]` for completions.
      weight: the staleness weight, of the same shape.
      clipped: bool, of the same shape.
      mask: bool, of the same shape.
    """
    count = masked_count(mask)
    bin_index = jnp.clip(ratio * (RATIO_BINS / LARGEST_RATIO), 0, RATIO_BINS - 1).astype(jnp.int32)
    counts = (
        jnp.zeros(RATIO_BINS, jnp.float32)
        .at[jnp.where(mask, bin_index, 0).reshape(-1)]
        .add(mask.astype(jnp.float32).reshape(-1))
    )
    return {
        "ratio": Mean(masked_sum(ratio, mask), count),
        "ratio_p99": Quantile(counts, 0.0, LARGEST_RATIO, 0.99),
        "ratio_max": Max(jnp.maximum(masked_max(ratio, mask), 0.0)),
        "clip_share": Mean(masked_sum(clipped.astype(jnp.float32), mask), count),
        "staleness_weight": Mean(masked_sum(weight, mask), count),
        "effective_sample_share": EffectiveShare(*effective_sums(ratio * weight, mask), count),
    }
