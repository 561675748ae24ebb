"""Surrogates of policy-gradient losses: one table of coefficients.

A policy-gradient loss ℓ of tokens has ∂Σℓ / ∂log π_t = −A_t · c_t. Losses differ in the coefficient c
and in their value, which is for logs. With l = log π − log b the log ratio of the drawn token to the
base b (behavior or proximal policy), T the tokens of a row, and

    level   token           r = e^l of each token
            sequence        r = e^(Σ l) of the row
            sequence_mean   r = e^(Σ l / T) of the row

the coefficient of a token, before floor and cap, is

    gate              c                                                    source
    none              r                                                    importance sampling
    clip              r where r < 1 + high (A > 0), r > 1 − low (A < 0)    PPO, arXiv 1707.06347, eq. 7; GSPO at level
                                                                           sequence_mean, arXiv 2507.18071, eq. 5
    band              r where floor ≤ r ≤ cap, for either sign of A        IcePop
    total_variation   r unless A > 0 and π − b > high, or A < 0 and        DPPO, arXiv 2602.04879
                      π − b < −low
    binary_kl         the same with KL(Bernoulli(b) ‖ Bernoulli(π)) above  DPPO
                      high or low, and π on that side of b
    variation_band    r where −low ≤ π − b ≤ high, for either sign of A    prime-rl, its loss "ipo"
    soft              4 σ (1 − σ) r, σ = sigmoid(τ (r − 1)), τ by sign     SAPO, arXiv 2511.20347
    log_clip          exp(mean of l, clipped on the side of A's sign),     GMPO, arXiv 2507.20673
                      where l < high (A > 0), l > −low (A < 0)
    gamma             exp(λ + k log r − λ r), (k, λ) by sign               VESPO

    far > 0           and, for A < 0, 0 where r > far                      dual clip, arXiv 1912.09729, §4; two-sided,
                                                                           arXiv 2505.07291
    positive="one"    1 for A > 0                                          TOPR, arXiv 2503.14286

The gradient flows through the ratio (`flow="ratio"`: ℓ = −A f(r), c = r f′(r)) or through the
log-probability (`flow="logprob"`: ℓ = −A sg(c) log π, sg the stopped gradient). In the second form c is
held within [floor, cap] (truncated importance sampling and CISPO, arXiv 2506.13585, eq. 4); the band
zeroes what is outside of them. Sequence levels use the straight-through ratio of GSPO-token, so that
each token's own advantage is its own factor.

On samples of the base itself (l = 0) c is 1 for every gate, with floor ≤ 1 ≤ cap.
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from rlhf_jax.config import NonNegative
from rlhf_jax.ops.corrections import MAX_LOG
from rlhf_jax.ops.losses import clipped_surrogate
from rlhf_jax.ops.masked import masked_count, masked_sum, select
from rlhf_jax.ops.scalars import is_zero
from rlhf_jax.ops.shapes import assert_shapes
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array

Level = Literal["token", "sequence", "sequence_mean"]
Gate = Literal[
    "none",
    "clip",
    "band",
    "total_variation",
    "variation_band",
    "binary_kl",
    "soft",
    "log_clip",
    "gamma",
]
FLOWS: dict[Gate, tuple[str, ...]] = {
    "none": ("ratio", "logprob"),
    "clip": ("ratio",),
    "band": ("ratio", "logprob"),
    "total_variation": ("ratio", "logprob"),
    "variation_band": ("ratio", "logprob"),
    "binary_kl": ("ratio", "logprob"),
    "soft": ("ratio",),
    "log_clip": ("ratio",),
    "gamma": ("logprob",),
}
"""The flows of each gate. The value of clip, soft and log_clip is their objective."""
LEVELS: dict[Gate, tuple[str, ...]] = {
    "total_variation": ("token",),
    "variation_band": ("token",),
    "binary_kl": ("token",),
    "log_clip": ("token",),
    "gamma": ("sequence",),
}
"""The levels of a gate that has not all of them."""
TINY = 1e-8  # added inside the logarithms of the binary KL, as the DPPO authors' code does

Pair = tuple[NonNegative, NonNegative]


@dataclass(frozen=True)
class Surrogate:
    """The coefficient of a token's gradient: see the module."""

    level: Level = "token"  # of the log ratio
    # where the gradient flows: through the ratio, or through log π with a constant coefficient
    flow: Literal["ratio", "logprob"] = "ratio"
    gate: Gate = "clip"  # which ratios keep their gradient, or how they are damped
    # clip: 1 - low; log_clip and the gates on π - b and on the KL: bound below
    low: NonNegative = 0.2
    high: NonNegative = 0.2  # clip: 1 + high; the others: bound above
    far: NonNegative = 0.0  # largest ratio with a gradient where the advantage is negative; 0: none
    floor: NonNegative = 0.0  # least coefficient of flow="logprob", or of the band
    cap: NonNegative = 0.0  # largest coefficient of flow="logprob", or of the band; 0: none
    positive: Literal["same", "one"] = "same"  # "one": 1 for positive advantages
    shape_positive: Pair = (1.0, 0.0)  # for positive advantages; soft: (τ, not used); gamma: (k, λ)
    shape_negative: Pair = (1.05, 0.0)  # the same for the other advantages

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise Refusal(f"surrogate.{problem}")

    def _problem(self) -> str:
        """A combination that has no meaning, with what is accepted; "" where there is none."""
        if self.gate not in FLOWS:
            return f"gate is {self.gate!r}; accepted: {', '.join(FLOWS)}"
        if self.flow not in FLOWS[self.gate]:
            accepted = " or ".join(FLOWS[self.gate])
            return f"flow is {self.flow!r} with gate {self.gate!r}; accepted: {accepted}"
        levels = LEVELS.get(self.gate, ("token", "sequence", "sequence_mean"))
        if self.level not in levels:
            accepted = ", ".join(levels)
            return f"level is {self.level!r} with gate {self.gate!r}; accepted: {accepted}"
        if self.far and (self.gate != "clip" or self.far <= 1 + self.high):
            return (
                f"far is {self.far} with gate {self.gate!r} and high {self.high}; accepted: 0, or "
                'more than 1 + high with gate "clip"'
            )
        bounded = self.flow == "logprob" or self.gate == "band"
        if (self.floor or self.cap) and not bounded:
            return (
                f"floor is {self.floor} and cap {self.cap} with flow {self.flow!r}; accepted: 0, "
                'or bounds of flow "logprob" or of gate "band"'
            )
        if self.floor > 1 or 0 < self.cap < 1:
            return (
                f"floor is {self.floor} and cap {self.cap}; accepted: floor <= 1 <= cap, or cap 0: "
                "samples of the policy itself have coefficient 1"
            )
        if self.gate == "band" and not self.cap:
            return f"cap is {self.cap} with gate 'band'; accepted: the upper end of the band"
        if self.positive == "one" and self.flow != "logprob":
            return (
                f"positive is {self.positive!r} with flow {self.flow!r}; accepted: flow 'logprob'"
            )
        return ""


def level_ratio(log_ratio_RC: Array, mask_RC: Array, level: Level) -> Array:
    """The log ratio of each token at a level, `[R, C]`, within ±20 and 0 under the mask.

    The derivative of each entry with respect to its own token's log-probability is 1, and 0 with
    respect to the others (GSPO-token, arXiv 2507.18071, eq. 14).

    Args:
      log_ratio_RC: log π − log b of tokens, nats.
      mask_RC: True at tokens of the completion.
      level: token, sequence, or sequence_mean.
    """
    assert_shapes(log_ratio_RC=log_ratio_RC, mask_RC=mask_RC)
    log_RC = select(log_ratio_RC, mask_RC)
    if level == "token":
        return jnp.clip(log_RC, -MAX_LOG, MAX_LOG)
    row_R = masked_sum(log_RC, mask_RC, dim=1)
    if level == "sequence_mean":
        row_R /= jnp.maximum(masked_count(mask_RC, dim=1), 1.0).astype(row_R.dtype)
    fixed_RC = jax.lax.stop_gradient(jnp.clip(row_R, -MAX_LOG, MAX_LOG)[:, None])
    return select(_own_gradient(jnp.broadcast_to(fixed_RC, log_RC.shape), log_RC), mask_RC)


def _own_gradient(value: Array, through: Array) -> Array:
    """`value`, with the derivative of `through`."""
    return value + (through - jax.lax.stop_gradient(through))


def binary_kl(logprob: Array, base: Array) -> Array:
    """KL of (b, 1 − b) from (π, 1 − π), nats; any one shape.

    Args:
      logprob: log π of the drawn token.
      base: log b of the same token.
    """
    policy, drawn = jnp.exp(logprob), jnp.exp(base)
    return drawn * jnp.log((drawn + TINY) / (policy + TINY)) + (1 - drawn) * jnp.log(
        (1 - drawn + TINY) / (1 - policy + TINY)
    )


@dataclass(frozen=True)
class _Tokens:
    """The arrays of a gate, each `[R, C]`; log is at the surrogate's level."""

    log: Array
    advantage: Array
    logprob: Array
    base: Array
    mask: Array

    @property
    def ratio(self) -> Array:
        return jnp.exp(self.log)

    def by_sign(self, positive: float | Array, negative: float | Array) -> Array:
        return jnp.where(self.advantage > 0, positive, negative)


def _kept(config: Surrogate, at: _Tokens) -> Array:
    """True where the gate leaves a token its gradient."""
    positive, negative = at.advantage > 0, at.advantage < 0
    if config.gate == "clip":
        beyond = (positive & (at.ratio >= 1 + config.high)) | (
            negative & (at.ratio <= 1 - config.low)
        )
        return ~beyond if is_zero(config.far) else ~(beyond | (negative & (at.ratio > config.far)))
    if config.gate == "log_clip":
        return ~((positive & (at.log >= config.high)) | (negative & (at.log <= -config.low)))
    if config.gate == "band":
        return (at.ratio >= config.floor) & (at.ratio <= config.cap)
    moved = jnp.exp(at.logprob) - jnp.exp(at.base)
    if config.gate == "total_variation":
        return ~((positive & (moved > config.high)) | (negative & (moved < -config.low)))
    if config.gate == "variation_band":
        return (moved >= -config.low) & (moved <= config.high)
    if config.gate == "binary_kl":
        distance = binary_kl(at.logprob, at.base)
        above, below = (distance > config.high) & (moved > 0), (distance > config.low) & (moved < 0)
        return ~((positive & above) | (negative & below))
    return jnp.ones_like(at.mask)


def _log_mean(config: Surrogate, at: _Tokens) -> Array:
    """Mean over a row of the log ratios, each clipped on the side of its advantage's sign; the
    derivative of a token is its own.
    """
    clipped = jnp.where(
        at.advantage > 0,
        jnp.minimum(at.log, config.high),
        jnp.where(at.advantage < 0, jnp.maximum(at.log, -config.low), at.log),
    )
    count = jnp.maximum(masked_count(at.mask, dim=1), 1.0).astype(at.log.dtype)
    row = jax.lax.stop_gradient(masked_sum(clipped, at.mask, dim=1) / count)[:, None]
    return _own_gradient(jnp.broadcast_to(row, at.log.shape), clipped)


def _coefficient(config: Surrogate, at: _Tokens) -> Array:
    """c of each token: the table of the module."""
    if config.gate == "soft":
        gate = jax.nn.sigmoid(_soft_scale(config, at) * (at.ratio - 1))
        return 4 * gate * (1 - gate) * at.ratio
    if config.gate == "gamma":
        (k, rate), (k_negative, rate_negative) = config.shape_positive, config.shape_negative
        rates = at.by_sign(rate, rate_negative)
        free = jnp.exp(rates + at.by_sign(k, k_negative) * at.log - rates * at.ratio)
    elif config.gate == "log_clip":
        free = jnp.exp(_log_mean(config, at))
    else:
        free = at.ratio
    if config.flow == "logprob" and config.gate != "band":
        free = jnp.clip(free, config.floor, math.inf if is_zero(config.cap) else config.cap)
    kept = select(free, _kept(config, at))
    return jnp.where(at.advantage > 0, 1.0, kept) if config.positive == "one" else kept


def _soft_scale(config: Surrogate, at: _Tokens) -> Array:
    """τ of each token."""
    return at.by_sign(config.shape_positive[0], config.shape_negative[0])


def _through_ratio(config: Surrogate, at: _Tokens) -> Array:
    """ℓ of each token where the gradient flows through the ratio."""
    if config.gate == "clip":
        loss, _ = clipped_surrogate(at.log, at.advantage, config.low, config.high)
        if is_zero(config.far):
            return loss
        return jnp.where(at.advantage < 0, jnp.minimum(loss, -config.far * at.advantage), loss)
    if config.gate == "soft":
        scale = _soft_scale(config, at)
        return -at.advantage * 4 / scale * jax.nn.sigmoid(scale * (at.ratio - 1))
    if config.gate == "log_clip":
        return -at.advantage * jnp.exp(_log_mean(config, at))
    return -at.advantage * select(at.ratio, _kept(config, at))


def surrogate(
    config: Surrogate,
    logprob_RC: Array,
    base_logprob_RC: Array,
    advantage_RC: Array,
    mask_RC: Array,
) -> tuple[Array, Array, Array]:
    """The loss of each token, before weights of staleness and any mean.

    Args:
      config: of the surrogate.
      logprob_RC: log π of the drawn tokens, nats.
      base_logprob_RC: log b of the same tokens: no gradient goes into it.
      advantage_RC: A of each token.
      mask_RC: True at tokens of the completion.

    Returns: the loss `[R, C]`, 0 under the mask; the coefficient c `[R, C]`, without gradient, of
    ∂Σℓ / ∂log π = −A c; and the tokens that are cut, bool `[R, C]`: whose c a gate or a bound holds
    apart from the ratio, and none where floor and cap are one number, where the advantage is 0, or
    where it is positive and `positive` is "one". A soft gate and gamma cut where c is less than half
    of the ratio.
    """
    assert_shapes(
        logprob_RC=logprob_RC,
        base_logprob_RC=base_logprob_RC,
        advantage_RC=advantage_RC,
        mask_RC=mask_RC,
    )
    logprob_RC = select(logprob_RC, mask_RC)
    base_RC = jax.lax.stop_gradient(select(base_logprob_RC, mask_RC))
    advantage_RC = jax.lax.stop_gradient(select(advantage_RC, mask_RC))
    log_RC = level_ratio(logprob_RC - base_RC, mask_RC, config.level)
    at = _Tokens(log_RC, advantage_RC, logprob_RC, base_RC, mask_RC)
    coefficient_RC = jax.lax.stop_gradient(select(_coefficient(config, at), mask_RC))
    weighted_RC = -coefficient_RC * advantage_RC * logprob_RC
    loss_RC = weighted_RC if config.flow == "logprob" else _through_ratio(config, at)
    ratio_RC = jax.lax.stop_gradient(at.ratio)
    if config.gate in ("soft", "gamma"):
        cut_RC = coefficient_RC < 0.5 * ratio_RC
    elif config.gate == "log_clip":
        cut_RC = ~_kept(config, at)
    else:
        cut_RC = coefficient_RC != ratio_RC
    if config.flow == "logprob":
        # floor = cap: the coefficient is that number, and there is no ratio to cut.
        cut_RC &= jnp.logical_not((config.floor == config.cap) & jnp.not_equal(config.cap, 0.0))
    if config.positive == "one":
        cut_RC &= advantage_RC <= 0  # the others have no ratio to cut
    return select(loss_RC, mask_RC), coefficient_RC, cut_RC & mask_RC & (advantage_RC != 0)
