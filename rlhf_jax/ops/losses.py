"""Losses of pairs and of next tokens, one equation a function; U counts pairs.

dpo                −log σ(β · margin)               Rafailov et al. 2023, arXiv 2305.18290, eq. 7
smoothed_dpo       −(1 − ε) log σ(β · margin) − ε log σ(−β · margin)    the same authors' code; Mitchell 2023, eq. 3
pairwise_logistic  −log σ(r_chosen − r_rejected)    Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, eq. 1
ipo                (margin − 1 / (2β))²             Azar et al. 2023, arXiv 2310.12036, eq. 17
clipped_surrogate  −min(ρ A, clip(ρ, 1 − ε, 1 + ε') A)      Schulman et al. 2017, arXiv 1707.06347, eq. 7
clipped_value      ½ max((V − R)², (clip(V, V₀ ± ε) − R)²)  the same authors' code; Huang et al. 2022, detail 9
cross_entropy_sum  −Σ log p(token)
"""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.ops.masked import masked_sum
from rlhf_jax.ops.shapes import assert_shapes
from rlhf_jax.types import Array


def dpo(margin_U: Array, beta: float) -> Array:
    """−log σ(β · margin) of each pair, `[U]`.

    The margin is (log π(chosen) − log π_ref(chosen)) − (log π(rejected) − log π_ref(rejected)),
    each a sum over tokens, in nats. The gradient with respect to it is −β σ(−β · margin).

    Args:
      margin_U: of U pairs, nats.
      beta: strength of the pull to the reference, above 0.
    """
    assert_shapes(margin_U=margin_U)
    return -jax.nn.log_sigmoid(beta * margin_U)


def smoothed_dpo(margin_U: Array, beta: float, label_smoothing: float) -> Array:
    """Conservative DPO of each pair, `[U]`: the loss expected where a share of labels is flipped.

    Mitchell 2023, *A note on DPO with noisy preferences & relationship to IPO*, eq. 3. With
    `label_smoothing` above 0 its least value is at the finite margin log((1 − ε) / ε) / β.

    Args:
      margin_U: of U pairs, nats; that of `dpo`.
      beta: strength of the pull to the reference, above 0.
      label_smoothing: ε, the share of pairs that are taken to be labelled the wrong way round, from
        0 to below 0.5.
    """
    kept_U, flipped_U = dpo(margin_U, beta), dpo(-margin_U, beta)
    return (1 - label_smoothing) * kept_U + label_smoothing * flipped_U


def ipo(margin_U: Array, beta: float) -> Array:
    """(margin − 1 / (2β))² of each pair, `[U]`; the margin is that of `dpo`.

    Its least value is at a finite margin.

    Args:
      margin_U: of U pairs, nats.
      beta: strength of the pull to the reference, above 0.
    """
    assert_shapes(margin_U=margin_U)
    return jnp.square(margin_U - 1 / (2 * beta))


def clipped_surrogate(
    log_ratio: Array, advantage: Array, clip_low: float, clip_high: float
) -> tuple[Array, Array]:
    """−min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A), and whether the clip took the gradient
    away; any one shape.

    Args:
      log_ratio: log ρ, `[B, C]` of tokens or `[B]` of completions.
      advantage: A, of the same shape.
      clip_low: distance of the lower bound from 1.
      clip_high: distance of the upper bound from 1.
    """
    chex.assert_equal_shape([log_ratio, advantage], custom_message="log_ratio, advantage")
    ratio = jnp.exp(log_ratio)
    free, bounded = ratio * advantage, jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantage
    return -jnp.minimum(free, bounded), bounded < free


def clipped_value(
    value: Array, first_value: Array, target: Array, clip: float
) -> tuple[Array, Array]:
    """½ max of the squared errors of a value and of the value held within `clip` of the first one;
    and where that one won.

    Args:
      value: of the critic that is trained.
      first_value: of the critic that judged the round.
      target: return of each token.
      clip: largest distance from `first_value`.
    """
    chex.assert_equal_shape(
        [value, first_value, target], custom_message="value, first_value, target"
    )
    clipped = jnp.clip(
        value, first_value - clip, first_value + clip
    )  # within the bounds the value itself, to the bit
    free_error, clipped_error = jnp.square(value - target), jnp.square(clipped - target)
    return 0.5 * jnp.maximum(free_error, clipped_error), clipped_error > free_error


def pairwise_logistic(chosen_U: Array, rejected_U: Array) -> Array:
    """−log σ(chosen − rejected) of each pair of scores, `[U]`: how a reward model learns from
    comparisons.

    Args:
      chosen_U: scores of the better completions of U pairs.
      rejected_U: scores of the others.
    """
    assert_shapes(chosen_U=chosen_U, rejected_U=rejected_U)
    return -jax.nn.log_sigmoid(chosen_U - rejected_U)


def cross_entropy_sum(logprob_RC: Array, mask_RC: Array) -> Array:
    """−Σ log p(token) over the unmasked tokens, a scalar in nats; its denominator is their number.

    Args:
      logprob_RC: log-probabilities of tokens, nats.
      mask_RC: True at tokens that count.
    """
    assert_shapes(logprob_RC=logprob_RC, mask_RC=mask_RC)
    return -masked_sum(logprob_RC, mask_RC)
