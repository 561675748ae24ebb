"""Learning-rate scale: updates by stale samples are made smaller where few completions count.

VCPO, arXiv 2602.17616. With w the ratio π / π_behavior of a whole completion, and R rows in a
minibatch of an update:

    share = (Σ w)² / (R Σ w²)        factor = √min(1, share / base)        (linear: no root)

The share is the effective sample size of the rows over their number: 1 for samples of the policy
itself, and about e^(−σ²) where the log of w has the deviation σ. It is of the whole minibatch: that
of a part of it, or of single tokens, is another figure.

With rule `given` the factor of each update is a number of the config, and the share is a metric
alone.

The optimizer's update is multiplied by the factor, so that AdamW's decay of weights is scaled with
it, and after gradients are clipped. The moments of Adam are those of the gradients as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from rlhf_jax.config import Positive
from rlhf_jax.ops.once import once
from rlhf_jax.ops.policy_gradient.row_weights import row_ratio
from rlhf_jax.ops.scalars import scaled, through
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array, Batch, EffectiveShare, Metrics, Outputs

Loss = Callable[[Outputs, Batch], tuple[Array, Metrics]]
Scale = Callable[[EffectiveShare, Array], Array]
"""The factor of an update, of the weights of its rows and of its number, from 0."""
ROW_SHARE = "row_ess_share"
RULES = ("none", "report", "sqrt_ess", "linear_ess", "given")


@dataclass(frozen=True)
class LearningRateScale:
    """Scale of a policy's updates by how evenly the rows of their minibatch count."""

    # none; report: the share is a metric, and no update is scaled; sqrt_ess suits Adam, linear_ess
    # SGD; given: `factors`, a control for a rule, such as what another seed's run was scaled by
    rule: Literal["none", "report", "sqrt_ess", "linear_ess", "given"] = "none"
    base: Positive = 1.0  # the share from which on updates are not scaled
    factors: tuple[Positive, ...] = ()  # of rule=given: one for each update

    def check(self, num_updates: int) -> None:
        """Raises Refusal for another number of factors than updates.

        Args:
          num_updates: of the run.
        """
        wanted = num_updates if self.rule == "given" else 0
        if len(self.factors) != wanted:
            raise Refusal(
                f"rlhf.learning_rate_scale.factors has {len(self.factors)} numbers with rule="
                f"{self.rule}; accepted: {wanted or 'none'}"
                + (", one for each update of the run" if wanted else "; or rule=given")
            )


@once
def scale_of(config: LearningRateScale) -> Scale | None:
    """The factor that `config` gives an update, whose `base` a compiled update takes as argument;
    None where updates are neither scaled nor measured.

    Raises Refusal for a rule that there is not.
    """
    if config.rule not in RULES:
        raise Refusal(f"learning_rate_scale.rule is {config.rule!r}; accepted: {', '.join(RULES)}")
    if config.rule == "none":
        return None

    def scale_of_base(config: LearningRateScale) -> Scale:
        def scale(weights: EffectiveShare, update: Array) -> Array:
            if config.rule == "report":
                return jnp.float32(1.0)
            if config.rule == "given":
                return jnp.asarray(config.factors, jnp.float32)[update]
            share = jnp.square(weights.total) / (weights.squares * weights.count)
            factor = jnp.minimum(1.0, share / config.base)
            return jnp.sqrt(factor) if config.rule == "sqrt_ess" else factor

        return scale

    return scaled(scale_of_base, config, ("base",))


@once
def with_row_share(loss: Loss) -> Loss:
    """A policy's loss that also gives the metric `row_ess_share`, of the ratios π / π_behavior of
    whole completions.

    Args:
      loss: of the algorithm.

    The loss raises Refusal while it is traced for rows without `behavior_logprob_RC`.
    """

    def wrap(loss: Loss) -> Loss:
        def measured(outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
            if batch.behavior_logprob_RC is None:
                raise Refusal(
                    "learning_rate_scale needs the ratio of a row to the policy that drew it, and "
                    "the algorithm's rows have behavior_logprob_RC None; accepted: rule none"
                )
            weight_R = jax.lax.stop_gradient(
                row_ratio(outputs.logprob_RC, batch.behavior_logprob_RC, batch.mask_RC)
            )
            loss_sum, metrics = loss(outputs, batch)
            share = EffectiveShare(
                jnp.sum(weight_R), jnp.sum(jnp.square(weight_R)), jnp.float32(weight_R.size)
            )
            return loss_sum, {**metrics, ROW_SHARE: share}

        return measured

    return through(loss, wrap)
