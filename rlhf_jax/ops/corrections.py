"""Corrections for staleness: what a ratio is taken to, and the weight of a token that an older
policy drew.

Three policies meet in an asynchronous round: the *behavior* that drew the tokens, the *proximal*
one (the trainer's params at the start of the round), and the one being trained. With log ρ = log
π_proximal − log π_behavior of a token (or summed over a completion, `level` "sequence", or its mean
over the completion's tokens, "sequence_mean"):

    ratio_to      correction      weight                         source
    behavior      none            1                              Schulman et al. 2017, arXiv 1707.06347: π / π_behavior
    behavior      second_moment   1 while Σ (log ρ)² / n ≤ m     M2PO, Zheng et al. 2025, arXiv 2510.01161
    proximal      none            1                              what Async RLHF's own code does, arXiv 2410.18252
    proximal      truncate        min(ρ, cap)                    decoupled PPO, Hilton et al. 2022, arXiv 2110.00641, as
                                                                 AReaL uses it (arXiv 2505.24298); truncated importance sampling
    proximal      mask            ρ, or 0 outside [floor, cap]   masked importance sampling (IcePop)

Truncation is biased where it cuts and finite in variance; with a large cap it is unbiased for a
loss linear in π / π_proximal. The second moment's scope is the round: the tokens with the largest
(log ρ)² are left out until the mean over those that stay is at most `second_moment`; what stays
then has a ratio to the behavior policy that is not clipped. (The paper's log ratio is that of the
policy being trained: the same in a round's first update.) A token left out keeps its place in the
denominator.

`normalise` divides truncated weights by their mean over the minibatch of an update, so that a cap does not
shorten the step: see `ops/policy_gradient/minibatches.py`.
"""

from dataclasses import dataclass
from typing import Literal

import chex
import jax.numpy as jnp

from rlhf_jax.config import NonNegative, Positive
from rlhf_jax.ops.masked import masked_count, masked_sum, select
from rlhf_jax.ops.scalars import with_values
from rlhf_jax.ops.shapes import assert_shapes
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array

RATIOS = ("auto", "behavior", "proximal")
CORRECTIONS = {"behavior": ("none", "second_moment"), "proximal": ("none", "truncate", "mask")}
LEVELS = ("token", "sequence", "sequence_mean")
MAX_LOG = 20.0  # e^20; a ratio beyond it is a token that one of two policies would never draw


@dataclass(frozen=True)
class Correction:
    """The denominator of the importance ratio, and the off-policy correction. "auto" is resolved by
    the schedule: see `resolve`.
    """

    # denominator of the importance ratio
    ratio_to: Literal["auto", "behavior", "proximal"] = "auto"
    # weight of a token that an older policy drew
    correction: Literal["auto", "none", "second_moment", "truncate", "mask"] = "auto"
    # one weight per token, one per completion, or one of a completion's mean log ratio
    level: Literal["token", "sequence", "sequence_mean"] = "token"
    cap: Positive = 2.0  # 2 to 8 are used with truncated importance sampling
    floor: NonNegative = 0.5  # of "mask"; IcePop's band is 0.5 to 5 in OpenRLHF
    second_moment: Positive = 0.04  # arXiv 2510.01161
    # truncated weights over their mean of the minibatch; no effect where no weight is truncated
    normalise: bool = False

    def __post_init__(self) -> None:
        if self.ratio_to not in RATIOS:
            raise Refusal(
                f"correction.ratio_to is {self.ratio_to!r}; accepted: {', '.join(RATIOS)}"
            )
        accepted = CORRECTIONS.get(self.ratio_to, ("none", "second_moment", "truncate", "mask"))
        if self.correction not in ("auto", *accepted):
            raise Refusal(
                f"correction.correction is {self.correction!r} with ratio_to {self.ratio_to!r}; "
                "accepted: auto, "
                f"{', '.join(accepted)}"
            )
        if self.level not in LEVELS:
            raise Refusal(f"correction.level is {self.level!r}; accepted: {', '.join(LEVELS)}")
        may_truncate = self.correction == "truncate" or (
            self.correction == "auto" and self.ratio_to != "behavior"
        )
        if self.normalise and not may_truncate:
            raise Refusal(
                f"correction.normalise is True with correction {self.correction!r} and ratio_to "
                f"{self.ratio_to!r}; accepted: False, or correction 'truncate', whose weights have a "
                "mean"
            )
        if not 0 <= self.floor < self.cap or self.second_moment <= 0:
            raise Refusal(
                f"correction has floor {self.floor}, cap {self.cap}, second_moment "
                f"{self.second_moment}; accepted: "
                "0 <= floor < cap, and a positive second_moment"
            )

    @property
    def needs_proximal(self) -> bool:
        """True where log-probabilities of the trainer's params at the start of a round are needed."""
        return self.ratio_to == "proximal" or self.correction == "second_moment"

    @property
    def clips(self) -> bool:
        """True where the ratio is clipped: not where the second moment has chosen the tokens."""
        return self.correction != "second_moment"


def resolve(
    correction: Correction, *, lag: int = 0, scheduled: bool = False, exact_sampler: bool = True
) -> Correction:
    """The correction with nothing left to "auto"; by default for the schedule of the synchronous
    loop.

    A round whose samples are as old as its trainer (lag 0) has behavior = proximal: the ratio is
    taken to the behavior, uncorrected, and clipping bounds what minibatches and epochs add. A stale
    round (lag > 0, a version schedule, a sampler that is not renewed after every round, or a buffer
    of several rounds) takes it to the proximal policy with a truncated weight, so that clipping
    bounds this round's movement and the weight its age.

    Behavior and proximal policy are equal only as far as sampler and trainer compute the same
    numbers. In bfloat16 the two log-probabilities of a token differ, and the differences add up
    over the tokens of a completion: ratios of long completions leave the clip before the first
    update. "auto" then does as for a stale round.

    "auto" is a choice for small lags. At lag 15 seeds of PPO have collapsed with it:
    `docs/conventions.md`.

    Args:
      correction: as configured.
      lag: rounds that the sampler is behind.
      scheduled: something else makes samples of a round older than its trainer: a version schedule,
        rounds between two versions of the sampler, or a buffer of rounds.
      exact_sampler: the sampler's log-probabilities are the trainer's up to float32 rounding.
    """
    stale = lag > 0 or scheduled or not exact_sampler
    ratio_to, kind = correction.ratio_to, correction.correction
    if ratio_to == "auto":
        fits = {"second_moment": "behavior", "truncate": "proximal", "mask": "proximal"}
        ratio_to = fits.get(kind, "proximal" if stale else "behavior")
    if kind == "auto":
        kind = "truncate" if stale and ratio_to == "proximal" else "none"
    # Not `replace`: its checks cannot read a traced cap, floor or second moment.
    normalise = correction.normalise and kind == "truncate"
    values = {"ratio_to": ratio_to, "correction": kind, "normalise": normalise}
    return with_values(correction, values)


def log_staleness(proximal_BC: Array, behavior_BC: Array, mask_BC: Array, level: str) -> Array:
    """log ρ of each token `[B, C]`, or its row's sum or mean at every token of the row; 0 under the
    mask, bounded by e^±20.

    Args:
      proximal_BC: log-probabilities under the policy at the start of the round, nats.
      behavior_BC: those under the policy that sampled.
      mask_BC: True at tokens of the completion.
      level: "token", "sequence" or "sequence_mean".
    """
    assert_shapes(proximal_BC=proximal_BC, behavior_BC=behavior_BC, mask_BC=mask_BC)
    log_BC = select(proximal_BC, mask_BC) - select(behavior_BC, mask_BC)
    if level != "token":
        row_B1 = jnp.sum(log_BC, axis=1, keepdims=True)
        if level == "sequence_mean":
            row_B1 /= jnp.maximum(masked_count(mask_BC, dim=1), 1.0)[:, None]
        log_BC = select(jnp.broadcast_to(row_B1, log_BC.shape), mask_BC)
    return jnp.clip(log_BC, -MAX_LOG, MAX_LOG)


def staleness_weight(
    correction: Correction, proximal_BC: Array, behavior_BC: Array, mask_BC: Array
) -> Array:
    """The weight of each token's gradient, float32 `[B, C]`, 0 under the mask.

    `correction` is resolved.

    Args:
      correction: resolved, without "auto".
      proximal_BC: log-probabilities under the policy at the start of the round, nats.
      behavior_BC: those under the policy that sampled.
      mask_BC: True at tokens of the completion.
    """
    log_BC = log_staleness(proximal_BC, behavior_BC, mask_BC, correction.level)
    if correction.correction == "truncate":
        return select(jnp.minimum(jnp.exp(log_BC), correction.cap), mask_BC)
    if correction.correction == "mask":
        ratio_BC = jnp.exp(log_BC)
        inside_BC = (ratio_BC >= correction.floor) & (ratio_BC <= correction.cap)
        return select(ratio_BC, mask_BC & inside_BC)
    if correction.correction == "second_moment":
        return within_second_moment(log_BC, mask_BC, correction.second_moment).astype(jnp.float32)
    return mask_BC.astype(jnp.float32)


def within_second_moment(log_BC: Array, mask_BC: Array, limit: float) -> Array:
    """The tokens that stay, bool `[B, C]`: all but the fewest with the largest (log ρ)², so that
    the mean over those that stay is at most `limit`. Equal squares stay or go together, and with
    them the tokens of a completion at level "sequence".

    Args:
      log_BC: log ρ of `log_staleness`.
      mask_BC: True at tokens of the completion.
      limit: largest mean of (log ρ)².
    """
    assert_shapes(log_BC=log_BC, mask_BC=mask_BC)
    square_BC = jnp.where(mask_BC, jnp.square(log_BC), jnp.inf)
    sorted_N = jnp.sort(square_BC.reshape(-1))
    finite_N = sorted_N < jnp.inf
    mean_N = jnp.cumsum(select(sorted_N, finite_N)) / jnp.arange(1, sorted_N.size + 1)
    # Means of ever larger squares never fall: the last one within the limit, of all that equal it,
    # names the largest square that stays.
    last_of_equals_N = jnp.append(sorted_N[1:] > sorted_N[:-1], True)
    fits_N = finite_N & last_of_equals_N & (mean_N <= limit)
    largest = jnp.max(jnp.where(fits_N, sorted_N, -jnp.inf))
    return mask_BC & (square_BC <= largest)


def effective_sums(weight: Array, mask: Array) -> tuple[Array, Array]:
    """Σ w and Σ w² over the unmasked entries, from which an effective sample size is computed.

    Weights and mask have one shape: `[B, C]` for tokens, `[B]` for completions.

    Args:
      weight: `[B, C]` for tokens, `[B]` for completions.
      mask: of the same shape.
    """
    chex.assert_equal_shape([weight, mask], custom_message="weight, mask")
    return masked_sum(weight, mask), masked_sum(jnp.square(weight), mask)
