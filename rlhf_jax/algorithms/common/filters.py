"""Filters of a policy gradient's rows: those that count, and weights of 0 for those that are left out."""

from dataclasses import replace

import jax.numpy as jnp

from rlhf_jax.ops.corrections import log_staleness
from rlhf_jax.ops.masked import masked_mean, select
from rlhf_jax.ops.policy_gradient.row_filters import RowFilter, kept_tokens
from rlhf_jax.types import Array, Batch, Samples


def counted_rows(rows: RowFilter, samples: Samples, flat_B: Array) -> Array:
    """1 for the rows that count in the denominator, and 0 for those that the filter leaves out, `[B]`.

    Args:
      rows: the filter.
      samples: B rows.
      flat_B: 1 in groups whose scores are all equal.
    """
    counted_B = jnp.ones_like(flat_B)
    if rows.flat == "leave_out":
        counted_B *= 1 - flat_B
    if rows.truncated == "leave_out":
        counted_B *= samples.finished_B.astype(counted_B.dtype)
    return counted_B


def kept_share(kept_RC: Array, mask_RC: Array) -> Array:
    """Share of each row's tokens that a filter keeps, `[R]`.

    Args:
      kept_RC: bool.
      mask_RC: True at tokens of the completion.
    """
    return masked_mean(kept_RC.astype(jnp.float32), mask_RC, dim=1)


def filtered(rows: RowFilter, batch: Batch) -> Batch:
    """The batch whose weights are 0 where the proximal policy has left the behavior policy.

    Args:
      rows: a filter that reads the proximal policy.
      batch: R rows.
    """
    assert batch.proximal_logprob_RC is not None
    assert batch.behavior_logprob_RC is not None
    assert batch.advantage_RC is not None
    mask_RC = batch.mask_RC
    log_RC = log_staleness(batch.proximal_logprob_RC, batch.behavior_logprob_RC, mask_RC, "token")
    kept_RC = kept_tokens(rows, log_RC, batch.advantage_RC, mask_RC)
    weight_RC = mask_RC.astype(jnp.float32) if batch.staleness_RC is None else batch.staleness_RC
    figures = {**batch.figures, "kept_share": kept_share(kept_RC, mask_RC)}
    return replace(batch, staleness_RC=select(weight_RC, kept_RC), figures=figures)
