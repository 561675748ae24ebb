"""Weights of whole completions and of tokens: ratios of two policies, and how far they are from 1.

With l = log a − log b of a token that b drew:

    row      w = e^(Σ_t l)       its effective share falls as e^(−Var(Σ_t l)), so with the length of rows
    token    w = e^l             may be near 1 while a few rows make up the whole gradient
    share    (Σ w)² / (n Σ w²)   effective sample size over the number of weights
    χ²       mean of w² − 1      divergence of a from b, on samples of b
"""

import jax.numpy as jnp

from rlhf_jax.ops.corrections import MAX_LOG
from rlhf_jax.ops.divergences import k1, k2, k3
from rlhf_jax.ops.masked import masked_max, masked_mean, masked_sum, select
from rlhf_jax.ops.shapes import assert_shapes
from rlhf_jax.types import Array


def row_ratio(logprob_RC: Array, base_logprob_RC: Array, mask_RC: Array) -> Array:
    """π / b of each whole completion, `[R]`; its log is kept within ±20, so that a sum of squares
    of many rows is finite in float32.

    Args:
      logprob_RC: log π of the drawn tokens, nats.
      base_logprob_RC: log b of the same tokens.
      mask_RC: True at tokens of the completion.
    """
    assert_shapes(logprob_RC=logprob_RC, base_logprob_RC=base_logprob_RC, mask_RC=mask_RC)
    log_RC = select(logprob_RC, mask_RC) - select(base_logprob_RC, mask_RC)
    return jnp.exp(jnp.clip(masked_sum(log_RC, mask_RC, dim=1), -MAX_LOG, MAX_LOG))


def staleness_figures(
    proximal_logprob_BC: Array, behavior_logprob_BC: Array, mask_BC: Array
) -> dict[str, Array]:
    """Figures of how far the trainer of a round is from the policy that drew its samples, one
    number each.

    Returns, with ξ the proximal policy and μ the behavior: the mean and the largest |log ξ − log μ|
    of a token; the estimates k1, k2 and k3 of KL(μ ‖ ξ), means over tokens in nats; χ² and the
    effective share of the weights ξ / μ, of tokens and of rows.

    Args:
      proximal_logprob_BC: log-probabilities under the trainer's params at the start of the round.
      behavior_logprob_BC: those under the params that drew the tokens, as the sampler computed them.
      mask_BC: True at tokens of the completion.
    """
    arrays = (behavior_logprob_BC, proximal_logprob_BC, mask_BC)
    log_BC = -k1(*arrays)
    token_BC = jnp.exp(jnp.clip(log_BC, -MAX_LOG, MAX_LOG))
    row_B = row_ratio(proximal_logprob_BC, behavior_logprob_BC, mask_BC)
    every_B = jnp.ones_like(row_B, bool)
    return {
        "sampler_trainer_logprob_diff_mean": masked_mean(jnp.abs(log_BC), mask_BC),
        "sampler_trainer_logprob_diff_max": jnp.maximum(masked_max(jnp.abs(log_BC), mask_BC), 0.0),
        "staleness_kl_k1": masked_mean(k1(*arrays), mask_BC),
        "staleness_kl_k2": masked_mean(k2(*arrays), mask_BC),
        "staleness_kl_k3": masked_mean(k3(*arrays), mask_BC),
        "staleness_chi2_token": masked_mean(jnp.square(token_BC), mask_BC) - 1.0,
        "staleness_chi2_row": jnp.mean(jnp.square(row_B)) - 1.0,
        "staleness_ess_share_token": _effective_share(token_BC, mask_BC),
        "staleness_ess_share_row": _effective_share(row_B, every_B),
    }


def _effective_share(weight: Array, mask: Array) -> Array:
    mean = masked_mean(weight, mask)
    return jnp.square(mean) / jnp.maximum(masked_mean(jnp.square(weight), mask), 1e-30)
