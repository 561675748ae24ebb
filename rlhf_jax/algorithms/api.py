"""Shared parts of algorithms: rows to train on from samples, and metrics of the policy's change."""

from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.config import Unbounded
from rlhf_jax.ops import divergences
from rlhf_jax.ops.masked import masked_count, masked_max, masked_sum
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array, Batch, Max, Mean, Metric, Outputs, Samples, Scores

REFERENCE_SCORES, STORED_SCORE = "reference_scores", "reference_score_BS"
"""A need of an algorithm, and its entry of `Scores.extra`: see `dataflow.STORED`."""
UNIT_OF_SCORE = Unbounded("it is in the unit of the score, which has no origin of its own")
"""Of settings that any number may be."""


def make_batch(
    samples: Samples, scores: Scores, rows_R: Array | None = None, **fields: object
) -> Batch:
    """A batch of the samples in rows `rows_R` (int32; all of them by default), without gradient.

    The log-probabilities and values that `scores` has travel along; `fields` are further fields of
    `Batch`, already `[R, ...]`. Rows are in the order of their prompts, as many of each.

    Args:
      samples: B rows.
      scores: of the samples.
      rows_R: int32 indices of the rows; None: all B rows.
    """
    carried: dict[str, Any] = {
        "prompt_tokens_RQ": samples.prompt_tokens_BQ,
        "prompt_mask_RQ": samples.prompt_mask_BQ,
        "tokens_RC": samples.tokens_BC,
        "mask_RC": samples.mask_BC,
        "behavior_logprob_RC": samples.behavior_logprob_BC,
        "reference_logprob_RC": scores.reference_logprob_BC,
        "proximal_logprob_RC": scores.proximal_logprob_BC,
        "value_RC": scores.value_BC,
        "sample_R": jnp.arange(samples.tokens_BC.shape[0], dtype=jnp.int32),
    }
    if rows_R is not None:
        carried = {
            name: None if array is None else array[rows_R] for name, array in carried.items()
        }
    num_rows, num_prompts = (
        carried["tokens_RC"].shape[0],
        samples.tokens_BC.shape[0] // samples.samples_per_prompt,
    )
    rows_per_prompt = num_rows // num_prompts if num_prompts and num_rows % num_prompts == 0 else 1
    made: dict[str, Any] = {
        "temperature": samples.temperature,
        "rows_per_prompt": rows_per_prompt,
        **carried,
        **fields,
    }
    return jax.lax.stop_gradient(Batch(**made))


def grouped_scores(
    samples: Samples, scores: Scores, min_samples_per_prompt: int, algorithm: str
) -> Array:
    """The scores as `[P, G]`, without gradient.

    Args:
      samples: for their `samples_per_prompt`, G.
      scores: whose `score_B` is grouped.
      min_samples_per_prompt: fewest samples of a prompt that the algorithm can learn from.
      algorithm: its name, for the message.

    Raises Refusal for fewer samples per prompt than that, and for rows that are not whole groups.
    """
    per_prompt, num_rows = samples.samples_per_prompt, scores.score_B.shape[0]
    if per_prompt < min_samples_per_prompt:
        raise Refusal(
            f"samples_per_prompt is {per_prompt}; {algorithm} needs at least "
            f"{min_samples_per_prompt}"
        )
    if num_rows % per_prompt:
        raise Refusal(
            f"{num_rows} samples are not whole groups of samples_per_prompt = {per_prompt}"
        )
    return jax.lax.stop_gradient(scores.score_B.reshape(-1, per_prompt))


def flat_groups(score_PG: Array) -> Array:
    """1 at every row of a group whose scores are all equal, else 0: float32 `[P*G]`."""
    flat_P = jnp.max(score_PG, axis=1) == jnp.min(score_PG, axis=1)
    return jnp.repeat(flat_P.astype(jnp.float32), score_PG.shape[1])


def drift_metrics(outputs: Outputs, batch: Batch) -> dict[str, Metric]:
    """Entropy a token, and how far the policy is from the reference and from the law that drew
    these tokens.

    `behavior_kl_k1/k2/k3` are sums over a completion of the estimators of KL to the reference on
    the training rows, hence of the behaviour policy's (perhaps selected) samples. `logprob_change`
    is |log π − log behavior| of a token: 0 on-policy, up to rounding.

    Args:
      outputs: log-probabilities and entropies `[R, C]`, nats.
      batch: R rows.
    """
    mask_RC = batch.mask_RC
    num_tokens, num_rows = masked_count(mask_RC), jnp.float32(mask_RC.shape[0])
    metrics: dict[str, Metric] = {
        "entropy": Mean(masked_sum(outputs.entropy_RC, mask_RC), num_tokens),
        "completion_length": Mean(num_tokens, num_rows),
    }
    if batch.reference_logprob_RC is not None:
        for estimator in (divergences.k1, divergences.k2, divergences.k3):
            terms_RC = estimator(outputs.logprob_RC, batch.reference_logprob_RC, mask_RC)
            metrics[f"behavior_kl_{estimator.__name__}"] = Mean(jnp.sum(terms_RC), num_rows)
    if batch.behavior_logprob_RC is not None:
        change_RC = jnp.abs(divergences.k1(outputs.logprob_RC, batch.behavior_logprob_RC, mask_RC))
        metrics["logprob_change"] = Mean(jnp.sum(change_RC), num_tokens)
        metrics["logprob_change_max"] = Max(jnp.maximum(masked_max(change_RC, mask_RC), 0.0))
    for name, figure_R in batch.figures.items():
        metrics[name] = Mean(jnp.sum(figure_R), num_rows)
    return metrics
