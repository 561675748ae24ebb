"""Penalties on the divergence from the reference, of tokens that an older policy may have drawn.

With r = π / b the ratio to the policy b that drew the token, q the reference, and k2 and k3 of
`ops/divergences`, the penalty of a token and its derivative with respect to log π:

    name           penalty        derivative                  source
    k2             k2             log π − log q               unbiased on samples of π itself
    k3             k3             1 − q / π                   GRPO, arXiv 2402.03300, eq. 4
    k3_weighted    r · k3         r (log π − log q)           DeepSeek-V3.2, arXiv 2512.02556, §3.1: the gradient flows
                                                              through both factors, and is unbiased on samples of b
    k3_detached    sg(r) · k3     r (1 − q / π)               the value of k3_weighted, without the ratio's gradient
    drift          (log r)²       2 log r                     prime-rl: movement from b, no reference
"""

from typing import Literal

import jax
import jax.numpy as jnp

from rlhf_jax.ops.corrections import log_staleness
from rlhf_jax.ops.divergences import k2, k3
from rlhf_jax.types import Array

KL = Literal["none", "k2", "k3", "k3_weighted", "k3_detached"]


def kl_penalty(
    kind: KL,
    logprob_RC: Array,
    base_logprob_RC: Array,
    reference_logprob_RC: Array,
    mask_RC: Array,
) -> Array:
    """The penalty of each token, nats `[R, C]`; 0 under the mask.

    The ratio is that of the token itself, whatever the level of the surrogate's.

    Args:
      kind: a name of the module's table, without drift.
      logprob_RC: log π of the drawn tokens.
      base_logprob_RC: log b of them, of the policy that drew them.
      reference_logprob_RC: log q of them.
      mask_RC: True at tokens of the completion.
    """
    if kind == "none":
        return jnp.zeros_like(logprob_RC)
    if kind == "k2":
        return k2(logprob_RC, reference_logprob_RC, mask_RC)
    penalty_RC = k3(logprob_RC, reference_logprob_RC, mask_RC)
    if kind == "k3":
        return penalty_RC
    ratio_RC = jnp.exp(log_staleness(logprob_RC, base_logprob_RC, mask_RC, "token"))
    if kind == "k3_detached":
        ratio_RC = jax.lax.stop_gradient(ratio_RC)
    return ratio_RC * penalty_RC


def drift(logprob_RC: Array, base_logprob_RC: Array, mask_RC: Array) -> Array:
    """(log r)² of each token, nats² `[R, C]`; 0 under the mask.

    Args:
      logprob_RC: log π of the drawn tokens.
      base_logprob_RC: log b of them.
      mask_RC: True at tokens of the completion.
    """
    return jnp.square(log_staleness(logprob_RC, base_logprob_RC, mask_RC, "token"))
