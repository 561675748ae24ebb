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

The entropy H of the whole vocabulary at a token is subtracted with a weight of its own. Two further
kinds are no term of the loss but of the score, k1 = log π' − log q with π' the policy that the ratio
is taken to: `k1_in_score` subtracts the sum over a completion from its score, before the baseline
(RLOO, arXiv 2402.14740); `k1_in_return` subtracts from each token's advantage the sum from this token
on (REINFORCE++, arXiv 2501.03262).
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from rlhf_jax.config import NonNegative
from rlhf_jax.ops.corrections import log_staleness
from rlhf_jax.ops.divergences import k1, k2, k3
from rlhf_jax.ops.masked import select
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array

KL = Literal["none", "k2", "k3", "k3_weighted", "k3_detached", "k1_in_score", "k1_in_return"]
IN_LOSS = ("k2", "k3", "k3_weighted", "k3_detached")
WEIGHTED = ("k3_weighted", "k3_detached")
"""Kinds that the ratio of each token weighs."""
KINDS = ("none", *IN_LOSS, "k1_in_score", "k1_in_return")


@dataclass(frozen=True)
class Penalty:
    """Terms that a policy gradient adds to its surrogate: see the module."""

    kl: KL = "none"  # kind of the penalty for divergence from the reference
    kl_weight: NonNegative = 0.0  # of that penalty; 0: none, and no reference is needed
    drift: NonNegative = 0.0  # weight of (log π - log behavior)² of each token
    entropy: NonNegative = 0.0  # weight of the entropy, which is subtracted from the loss

    def __post_init__(self) -> None:
        if self.kl not in KINDS:
            raise Refusal(f"penalty.kl is {self.kl!r}; accepted: {', '.join(KINDS)}")
        if self.kl == "none" and self.kl_weight:
            raise Refusal(
                f"penalty.kl_weight is {self.kl_weight} with kl 'none'; accepted: 0, or a kl of "
                f"{', '.join(KINDS[1:])}"
            )


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
      kind: a name of the module's table, without drift, or "none".
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


def return_penalty(
    kind: KL, logprob_BC: Array, reference_logprob_BC: Array, mask_BC: Array
) -> Array:
    """The penalty in the score of each token, nats `[B, C]`, without gradient; 0 under the mask.

    Args:
      kind: "k1_in_score": the sum of k1 over the completion, at each of its tokens;
        "k1_in_return": that from the token on.
      logprob_BC: log π' of the drawn tokens, of the policy that the ratio is taken to.
      reference_logprob_BC: log q of them.
      mask_BC: True at tokens of the completion.
    """
    k1_BC = jax.lax.stop_gradient(k1(logprob_BC, reference_logprob_BC, mask_BC))
    to_go_BC = jnp.cumsum(k1_BC[:, ::-1], axis=1)[:, ::-1]
    return select(to_go_BC[:, :1] if kind == "k1_in_score" else to_go_BC, mask_BC)
