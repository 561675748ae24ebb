"""Policy gradients made of pieces: a surrogate, a correction, a filter, an advantage and penalties.

Most losses that are called algorithms differ in one coefficient, one filter or one mean. With c the
coefficient of `ops/policy_gradient/surrogates`, w the weight of `ops/corrections` and κ the filter of
`ops/policy_gradient/row_filters`, 0 or 1, the gradient of a token's loss is

    ∂ℓ / ∂log π = −κ w c A  +  the derivative of the penalties (`ops/policy_gradient/penalties`)

with A of `ops/policy_gradient/advantages`. `aggregation` names the mean: "token" over all tokens of
the minibatch, "sequence" over those of each completion and then over completions, "constant_length"
over completions of a constant length, "rows" the sum over a completion's tokens and then the mean over
completions.

`interpolation` α above 0 takes the ratio to ξ with log ξ = (1 − α) log μ + α sg(log π), μ the behavior
policy and sg the stopped gradient, and weights it by w = ξ / μ: A-3PO, arXiv 2512.06547, which needs
no log-probabilities of the proximal policy. Its α is (d − 1) / d for a token that is d updates old, and 0
for d = 0: `interpolation_by` "age" takes d at each update from the version that drew the token, "constant"
takes the one α that `interpolation` gives.

The published losses that these pieces make are in `presets/table.py`.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms.api import drift_metrics, flat_groups, grouped_scores
from rlhf_jax.algorithms.common.filters import counted_rows, filtered, kept_share
from rlhf_jax.algorithms.common.interpolation import age_interpolation
from rlhf_jax.algorithms.common.shapes import check_shapes
from rlhf_jax.algorithms.common.surrogate import (
    base_logprob,
    corrected_batch,
    needs_of,
    ratio_logprob,
    ratio_metrics,
    reference_penalty,
)
from rlhf_jax.config import Bounds
from rlhf_jax.ops.corrections import MAX_LOG, Correction, log_staleness, resolve
from rlhf_jax.ops.masked import masked_count, masked_sum, select
from rlhf_jax.ops.policy_gradient.advantages import Advantage, dithered, group_advantages, whitened
from rlhf_jax.ops.policy_gradient.penalties import (
    IN_LOSS,
    WEIGHTED,
    Penalty,
    drift,
    return_penalty,
)
from rlhf_jax.ops.policy_gradient.row_filters import RowFilter, kept_tokens
from rlhf_jax.ops.policy_gradient.surrogates import Surrogate, level_ratio, surrogate
from rlhf_jax.ops.scalars import is_zero
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import (
    Aggregation,
    Algorithm,
    Array,
    Batch,
    Mean,
    Metric,
    Metrics,
    Outputs,
    Samples,
    Scores,
)

SCALARS = (
    *(f"surrogate.{name}" for name in ("low", "high", "far", "floor", "cap")),
    *(f"surrogate.shape_{sign}.{n}" for sign in ("positive", "negative") for n in (0, 1)),
    *(f"correction.{name}" for name in ("cap", "floor", "second_moment")),
    *(f"filter.{name}" for name in ("low", "high", "veto")),
    *(f"advantage.{name}" for name in ("power", "shift", "noise")),
    *(f"penalty.{name}" for name in ("kl_weight", "drift", "entropy")),
    "interpolation",
)
"""Numbers that compiled programs take as arguments: see `ops/scalars.py`."""
AGGREGATIONS: dict[str, Aggregation] = {
    "token": "token",
    "sequence": "sequence",
    "constant_length": "constant_length",
    "rows": "sequence",
}
"""The mean of the config -> the denominator of the update."""
OF_THE_SAMPLER = ("total_variation", "variation_band", "binary_kl")
"""Gates on the distance from the policy that drew the token."""
MASKS = ("mask", "second_moment")
"""Corrections that cut tokens, as a gate does."""
SOFT = ("soft", "gamma")
"""Gates that bound the ratio smoothly, in place of a weight."""


@dataclass(frozen=True)
class Config:
    """Settings of a policy gradient; the defaults are PPO's clip on GRPO's advantage, without KL."""

    surrogate: Surrogate = field(default_factory=Surrogate)
    correction: Correction = field(default_factory=Correction)
    filter: RowFilter = field(default_factory=RowFilter)
    advantage: Advantage = field(default_factory=Advantage)
    penalty: Penalty = field(default_factory=Penalty)
    # the mean over tokens: see the module
    aggregation: Literal["token", "sequence", "constant_length", "rows"] = "token"
    # α of A-3PO, (d - 1) / d for samples that are d updates old; 0: none
    interpolation: Annotated[float, Bounds(least=0, below=1)] = 0.0
    # that one α for all tokens, or each token's (d - 1) / d from its age d
    interpolation_by: Literal["constant", "age"] = "constant"

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise Refusal(problem)

    @property
    def interpolates(self) -> bool:
        """True where the ratio is taken to a policy between behavior and current one."""
        return self.interpolation_by == "age" or not is_zero(self.interpolation)

    def _problem(self) -> str:
        """A combination that has no meaning, with what is accepted; "" where there is none."""
        gate, correction = self.surrogate.gate, self.correction
        if self.aggregation not in AGGREGATIONS:
            return f"aggregation is {self.aggregation!r}; accepted: {', '.join(AGGREGATIONS)}"
        if gate in OF_THE_SAMPLER and correction.ratio_to != "behavior":
            return (
                f"correction.ratio_to is {correction.ratio_to!r} with surrogate.gate {gate!r}; "
                "accepted: behavior, the policy whose distance the gate bounds"
            )
        if gate in SOFT and correction.correction != "none":
            return (
                f"correction.correction is {correction.correction!r} with surrogate.gate {gate!r}; "
                "accepted: none, since the gate bounds the ratio itself"
            )
        level, kl = self.surrogate.level, self.penalty.kl
        if kl in WEIGHTED and level != "token":
            return (
                f"penalty.kl is {kl!r} with surrogate.level {level!r}; accepted: k2 or k3, or level "
                "'token': the ratio of a completion is no weight of a token's divergence"
            )
        if self.interpolation_by not in ("constant", "age"):
            return f"interpolation_by is {self.interpolation_by!r}; accepted: constant, age"
        if self.interpolation and self.interpolation_by == "age":
            return (
                f"interpolation is {self.interpolation} with interpolation_by 'age'; accepted: 0, since "
                "each token's age gives its own"
            )
        if self.interpolates and (correction.ratio_to, correction.correction) != (
            "behavior",
            "none",
        ):
            given = (
                "interpolation_by is 'age'"
                if self.interpolation_by == "age"
                else f"interpolation is {self.interpolation}"
            )
            return (
                f"{given} with correction.ratio_to "
                f"{correction.ratio_to!r} and correction.correction {correction.correction!r}; "
                "accepted: behavior and none, since the interpolation has a weight of its own"
            )
        advantage = self.advantage
        if advantage.noise and advantage.power and self.filter.flat == "leave_out":
            return (
                f"advantage.noise is {advantage.noise} with advantage.power {advantage.power} and "
                "filter.flat 'leave_out'; accepted: noise 0, power 0 or flat 'keep', since the noise "
                "decides how far apart the scores of a group are"
            )
        return ""


def policy_gradient(config: Config, name: str = "policy_gradient") -> Algorithm:
    """The algorithm; rows are samples.

    Args:
      config: of its pieces.
      name: of the algorithm, for reports and messages: that of a preset.
    """
    correction, penalty, rows = resolve(config.correction), config.penalty, config.filter
    penalized = penalty.kl != "none" and not is_zero(penalty.kl_weight)
    fewest = 2 if config.advantage.compares or rows.flat == "leave_out" else 1
    moves = not (is_zero(penalty.drift) and is_zero(penalty.entropy))

    def credit(samples: Samples, scores: Scores) -> Batch:
        score_PG = grouped_scores(samples, scores, fewest, name)
        advantage_BC = _advantages(config, correction, samples, scores, penalized)
        flat_B = flat_groups(score_PG)
        figures, fields = {"flat_group_share": flat_B}, {}
        if rows.counts:
            counted_B = counted_rows(rows, samples, flat_B)
            figures["counted_share"] = counted_B
            fields["counted_R"] = counted_B
        if config.interpolation_by == "age":
            fields["version_RC"] = samples.version_BC
        batch = corrected_batch(correction, samples, scores, advantage_BC, figures, **fields)
        return filtered(rows, batch) if rows.reads == "proximal" else batch

    def loss(outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        loss_RC, metrics = _surrogate(config, correction, outputs, batch)
        if penalized and penalty.kl in IN_LOSS:
            loss_RC += penalty.kl_weight * reference_penalty(penalty.kl, outputs, batch)
        if not is_zero(penalty.drift):
            assert batch.behavior_logprob_RC is not None
            loss_RC += penalty.drift * drift(
                outputs.logprob_RC, batch.behavior_logprob_RC, batch.mask_RC
            )
        if not is_zero(penalty.entropy):
            loss_RC -= penalty.entropy * select(outputs.entropy_RC, batch.mask_RC)
        if batch.counted_R is not None:
            loss_RC = select(loss_RC, batch.counted_R[:, None] > 0)
        if config.aggregation == "sequence":
            loss_RC /= jnp.maximum(masked_count(batch.mask_RC, dim=1), 1.0)[:, None]
        return jnp.sum(loss_RC), {**metrics, **drift_metrics(outputs, batch)}

    extra = ("reference",) if penalized else ()
    extra += ("gradient_energy",) if config.advantage.reads_energy else ()
    return check_shapes(
        Algorithm(
            name=name,
            needs=needs_of(
                correction, *extra, *(("proximal",) if rows.reads == "proximal" else ())
            ),
            unit=1,
            aggregation=AGGREGATIONS[config.aggregation],
            credit=credit,
            losses={"policy": loss},
            min_samples_per_prompt=fewest,
            group_baseline=config.advantage.is_flat_in_flat_groups and not moves,
            ratio=is_zero(config.advantage.shift),
        )
    )


def _advantages(
    config: Config, correction: Correction, samples: Samples, scores: Scores, penalized: bool
) -> Array:
    """A of each token, `[B, C]`, of scores that hold the penalties which are no term of the loss."""
    kind, weight, mask_BC = config.penalty.kl, config.penalty.kl_weight, samples.mask_BC
    score_PG = scores.score_B.reshape(-1, samples.samples_per_prompt)
    penalty_BC = None
    if penalized and kind not in IN_LOSS:
        assert scores.reference_logprob_BC is not None
        drawn_BC = ratio_logprob(correction, samples, scores)
        penalty_BC = return_penalty(kind, drawn_BC, scores.reference_logprob_BC, mask_BC)
    if penalty_BC is not None and kind == "k1_in_score":
        # The first column of a row is never masked.
        score_PG = score_PG - weight * penalty_BC[:, 0].reshape(score_PG.shape)
    energy_PG = None
    if config.advantage.reads_energy:
        energy_B = masked_sum(scores.extra["gradient_energy_BC"], mask_BC, dim=1)
        if config.aggregation == "sequence":  # the gradient of a row is divided by its tokens
            energy_B /= jnp.square(jnp.maximum(masked_count(mask_BC, dim=1), 1.0))
        energy_PG = energy_B.reshape(score_PG.shape)
    score_PG = dithered(config.advantage, score_PG, samples.ordinal_B, samples.sample_index_B)
    advantage_B = group_advantages(config.advantage, score_PG, energy_PG).reshape(-1)
    advantage_BC = select(jnp.broadcast_to(advantage_B[:, None], mask_BC.shape), mask_BC)
    if penalty_BC is not None and kind == "k1_in_return":
        advantage_BC -= weight * penalty_BC
    if config.advantage.whiten == "tokens":
        advantage_BC = whitened(advantage_BC, mask_BC)
    return advantage_BC


def _surrogate(
    config: Config, correction: Correction, outputs: Outputs, batch: Batch
) -> tuple[Array, dict[str, Metric]]:
    """The surrogate of each token with its weights, `[R, C]` and 0 under the mask; and metrics."""
    assert batch.advantage_RC is not None
    assert batch.behavior_logprob_RC is not None
    mask_RC, behavior_RC = batch.mask_RC, batch.behavior_logprob_RC
    weight_RC = mask_RC.astype(jnp.float32) if batch.staleness_RC is None else batch.staleness_RC
    base_RC = base_logprob(batch, correction)
    if config.interpolates:
        log_RC = jax.lax.stop_gradient(select(outputs.logprob_RC, mask_RC) - base_RC)
        alpha = (
            age_interpolation(batch) if config.interpolation_by == "age" else config.interpolation
        )
        moved_RC = alpha * log_RC
        base_RC += moved_RC
        weight_RC = weight_RC * jnp.exp(jnp.clip(moved_RC, -MAX_LOG, MAX_LOG))
    metrics: dict[str, Metric] = {}
    if config.filter.reads == "current":
        log_RC = log_staleness(outputs.logprob_RC, behavior_RC, mask_RC, "token")
        kept_RC = kept_tokens(config.filter, log_RC, batch.advantage_RC, mask_RC)
        kept_R = kept_share(kept_RC, mask_RC)
        metrics["kept_share"] = Mean(jnp.sum(kept_R), jnp.float32(kept_R.shape[0]))
        weight_RC = select(weight_RC, kept_RC)
    loss_RC, coefficient_RC, cut_RC = surrogate(
        config.surrogate, outputs.logprob_RC, base_RC, batch.advantage_RC, mask_RC
    )
    if correction.correction in MASKS and config.filter.reads != "proximal":
        cut_RC |= mask_RC & (batch.staleness_RC == 0) & (batch.advantage_RC != 0)
    log_RC = level_ratio(
        select(outputs.logprob_RC, mask_RC) - base_RC, mask_RC, config.surrogate.level
    )
    metrics |= ratio_metrics(jnp.exp(log_RC), weight_RC, cut_RC, mask_RC)
    for sign, signed_RC in (
        ("positive", batch.advantage_RC > 0),
        ("negative", batch.advantage_RC < 0),
    ):
        among_RC = mask_RC & signed_RC
        if batch.counted_R is not None:
            among_RC &= batch.counted_R[:, None] > 0
        metrics[f"cut_share_{sign}"] = Mean(masked_count(cut_RC & among_RC), masked_count(among_RC))
    metrics["coefficient"] = Mean(
        masked_sum(weight_RC * coefficient_RC, mask_RC), masked_count(mask_RC)
    )
    return select(weight_RC * loss_RC, mask_RC), metrics
