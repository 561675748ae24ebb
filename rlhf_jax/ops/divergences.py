"""Kullback-Leibler divergence of the policy from the reference: three estimators from samples, and
the exact sum.

Schulman, *Approximating KL Divergence* (2020, joschu.net/blog/kl-approx.html). For a token a drawn
from p (the policy), with r = q(a) / p(a) and q the reference:

    k1 = −log r            unbiased, may be negative           k3 = (r − 1) − log r     unbiased, never negative
    k2 = ½ (log r)²        biased, low variance                exact: KL(p ‖ q) = Σ_v p(v) (log p(v) − log q(v))

The estimators hold for tokens drawn from p. On samples of another (older) policy they are figures
of *those* samples, and are named `behavior_kl_*` wherever they are reported.
"""

import jax
import jax.numpy as jnp

from rlhf_jax.ops.masked import select
from rlhf_jax.ops.shapes import assert_shapes
from rlhf_jax.types import Array


def k1(logprob_BC: Array, reference_logprob_BC: Array, mask_BC: Array) -> Array:
    """−log r at each token, nats `[B, C]`; 0 under the mask.

    Args:
      logprob_BC: log-probabilities of the policy, float32 nats.
      reference_logprob_BC: those of the reference.
      mask_BC: True at tokens of the completion.
    """
    assert_shapes(logprob_BC=logprob_BC, reference_logprob_BC=reference_logprob_BC, mask_BC=mask_BC)
    return select(logprob_BC, mask_BC) - select(reference_logprob_BC, mask_BC)


def k2(logprob_BC: Array, reference_logprob_BC: Array, mask_BC: Array) -> Array:
    """½ (log r)² at each token, nats `[B, C]`; 0 under the mask.

    Args:
      logprob_BC: log-probabilities of the policy, float32 nats.
      reference_logprob_BC: those of the reference.
      mask_BC: True at tokens of the completion.
    """
    return 0.5 * jnp.square(k1(logprob_BC, reference_logprob_BC, mask_BC))


def k3(logprob_BC: Array, reference_logprob_BC: Array, mask_BC: Array) -> Array:
    """(r − 1) − log r at each token, nats `[B, C]`; 0 under the mask.

    Args:
      logprob_BC: log-probabilities of the policy, float32 nats.
      reference_logprob_BC: those of the reference.
      mask_BC: True at tokens of the completion.
    """
    log_ratio_BC = -k1(logprob_BC, reference_logprob_BC, mask_BC)
    return jnp.expm1(log_ratio_BC) - log_ratio_BC


def full_kl(logits_NV: Array, reference_logits_NV: Array) -> Array:
    """Exact KL(p ‖ q) over the whole vocabulary at each row, float32 nats `[N]`.

    Both are the logits of the laws compared (divided by the temperature, where it is not 1). A word
    that p cannot draw (logit -inf) contributes nothing; one that only q cannot draw makes the
    divergence infinite.

    Args:
      logits_NV: of p.
      reference_logits_NV: of q.
    """
    assert_shapes(logits_NV=logits_NV, reference_logits_NV=reference_logits_NV)
    logprob_NV = jax.nn.log_softmax(logits_NV.astype(jnp.float32), axis=-1)
    reference_NV = jax.nn.log_softmax(reference_logits_NV.astype(jnp.float32), axis=-1)
    drawable_NV = logprob_NV > -jnp.inf
    difference_NV = jnp.where(drawable_NV, logprob_NV, 0.0) - jnp.where(
        drawable_NV, reference_NV, 0.0
    )
    return jnp.sum(jnp.exp(logprob_NV) * difference_NV, axis=-1)
