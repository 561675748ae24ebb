"""Filters of rows: which completions lose their gradient because the policy has left them.

With l = log π − log b of a token (b the policy that drew it), T the tokens of a row, and k3(l) = e^l −
1 − l, a row is kept where

    rows         condition                                source
    none         always
    geometric    low ≤ e^(Σ l / T) ≤ high                 Geo-RS, arXiv 2512.23075
    product      low ≤ e^(Σ l) ≤ high                     sequence masks of TRL and verl
    k3_mean      mean of k3(l) ≤ high                     K3-RS, as verl names it
    largest      max |l| ≤ high                           trust-region masking, arXiv 2512.23075
    one_sided    not (A < 0 and mean of −l > high)        DeepSeek-V3.2, arXiv 2512.02556, §3.1

`veto` is of tokens: in a row with A < 0 every token after the first one with l < −veto, and that one,
loses its gradient (μ-GRPO, arXiv 2605.17570).

π is the policy that is trained (`policy="current"`), or the trainer's at the start of the round
("proximal"): the second filter is a constant of the round. What these filters leave out keeps its
place in the denominator of the loss.

Two more filters ask for nothing but the samples, and take a row out of the denominator as well:
`flat="leave_out"` the groups whose scores are all equal (DAPO, arXiv 2503.14476, §3.2), and
`truncated="leave_out"` the completions without an EOS (the same, §3.4).
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from rlhf_jax.config import NonNegative
from rlhf_jax.ops.corrections import MAX_LOG
from rlhf_jax.ops.masked import masked_max, masked_mean, masked_sum, select
from rlhf_jax.ops.scalars import is_zero
from rlhf_jax.ops.shapes import assert_shapes
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array

Rows = Literal["none", "geometric", "product", "k3_mean", "largest", "one_sided"]
KINDS = ("none", "geometric", "product", "k3_mean", "largest", "one_sided")
BANDS = ("geometric", "product")


@dataclass(frozen=True)
class RowFilter:
    """Rows that keep their gradient: see the module."""

    rows: Rows = "none"  # the statistic of a completion that decides
    low: NonNegative = 0.0  # of geometric and product
    high: NonNegative = 0.0  # the other end of the band, or the largest value that is kept
    veto: NonNegative = 0.0  # fall of log π after which a row's tokens are left out; 0: none
    policy: Literal["current", "proximal"] = "current"  # whose log π the filter reads
    flat: Literal["keep", "leave_out"] = "keep"  # groups whose scores are all equal
    truncated: Literal["keep", "leave_out"] = "keep"  # completions without an EOS

    @property
    def reads(self) -> Literal["none", "current", "proximal"]:
        """The policy whose log π decides on rows or tokens; "none" where nothing does."""
        return "none" if self.rows == "none" and is_zero(self.veto) else self.policy

    @property
    def counts(self) -> bool:
        """True where rows may leave the denominator."""
        return "leave_out" in (self.flat, self.truncated)

    def __post_init__(self) -> None:
        if self.rows not in KINDS:
            raise Refusal(f"filter.rows is {self.rows!r}; accepted: {', '.join(KINDS)}")
        if self.rows in BANDS and not self.low < 1 < self.high:
            raise Refusal(
                f"filter has low {self.low} and high {self.high} with rows {self.rows!r}; accepted: "
                "low < 1 < high, since samples of the policy itself have ratio 1"
            )
        if self.rows not in BANDS and self.low:
            raise Refusal(
                f"filter.low is {self.low} with rows {self.rows!r}; accepted: 0, or a band of "
                f"{' or '.join(BANDS)}"
            )
        if self.rows not in ("none", *BANDS) and not self.high:
            raise Refusal(f"filter.high is 0 with rows {self.rows!r}; accepted: above 0")
        if self.rows == "none" and self.high:
            raise Refusal(
                f"filter.high is {self.high} with rows 'none'; accepted: 0, or rows of "
                f"{', '.join(KINDS[1:])}"
            )


def kept_tokens(
    config: RowFilter, log_ratio_RC: Array, advantage_RC: Array, mask_RC: Array
) -> Array:
    """The tokens that keep their gradient, bool `[R, C]`, False under the mask.

    Args:
      config: of the filter.
      log_ratio_RC: log π − log b of tokens, nats. No gradient goes into the filter.
      advantage_RC: A of each token. "one_sided" and veto take a row's mean as its sign.
      mask_RC: True at tokens of the completion.
    """
    assert_shapes(log_ratio_RC=log_ratio_RC, advantage_RC=advantage_RC, mask_RC=mask_RC)
    log_RC = jax.lax.stop_gradient(select(log_ratio_RC, mask_RC))
    log_RC = jnp.clip(log_RC, -MAX_LOG, MAX_LOG)
    negative_R = masked_mean(advantage_RC, mask_RC, dim=1) < 0
    kept_RC = mask_RC & _kept_rows(config, log_RC, negative_R, mask_RC)[:, None]
    if is_zero(config.veto):
        return kept_RC
    fallen_RC = jnp.cumsum(mask_RC & (log_RC < -config.veto), axis=1) > 0
    return kept_RC & ~(fallen_RC & negative_R[:, None])


def _kept_rows(config: RowFilter, log_RC: Array, negative_R: Array, mask_RC: Array) -> Array:
    """Rows that are kept, bool `[R]`."""
    if config.rows in BANDS:
        reduce = masked_mean if config.rows == "geometric" else masked_sum
        level_R = reduce(log_RC, mask_RC, dim=1)
        kept_R = level_R <= jnp.log(config.high)
        return kept_R if is_zero(config.low) else kept_R & (level_R >= jnp.log(config.low))
    if config.rows == "k3_mean":
        return masked_mean(jnp.expm1(log_RC) - log_RC, mask_RC, dim=1) <= config.high
    if config.rows == "largest":
        return masked_max(jnp.abs(log_RC), mask_RC, dim=1) <= config.high
    if config.rows == "one_sided":
        return ~(negative_R & (masked_mean(-log_RC, mask_RC, dim=1) > config.high))
    return jnp.ones(mask_RC.shape[0], bool)
