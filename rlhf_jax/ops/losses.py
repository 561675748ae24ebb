"""Losses of pairs and of next tokens, one equation a function; U counts pairs.

dpo                −log σ(β · margin)               Rafailov et al. 2023, arXiv 2305.18290, eq. 7
pairwise_logistic  −log σ(r_chosen − r_rejected)    Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, eq. 1
cross_entropy_sum  −Σ log p(token)
"""

import jax

from rlhf_jax.ops.masked import masked_sum
from rlhf_jax.types import Array


def dpo(margin_U: Array, beta: float) -> Array:
    """−log σ(β · margin) of each pair, `[U]`.

    The margin is (log π(chosen) − log π_ref(chosen)) − (log π(rejected) − log π_ref(rejected)), each a sum over
    tokens, in nats. The gradient with respect to it is −β σ(−β · margin).
    """
    return -jax.nn.log_sigmoid(beta * margin_U)


def pairwise_logistic(chosen_U: Array, rejected_U: Array) -> Array:
    """−log σ(chosen − rejected) of each pair of scores, `[U]`: how a reward model learns from comparisons."""
    return -jax.nn.log_sigmoid(chosen_U - rejected_U)


def cross_entropy_sum(logprob_RC: Array, mask_RC: Array) -> Array:
    """−Σ log p(token) over the unmasked tokens, a scalar in nats; its denominator is their number."""
    return -masked_sum(logprob_RC, mask_RC)
