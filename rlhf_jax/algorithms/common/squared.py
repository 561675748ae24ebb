"""Squares of a completion's log ratio against its advantage: the shared part of OAPL, PMD and A*-PO.

With S the sum of log π − log b over a completion's tokens, b the policy that drew it or the
reference, A its advantage, τ a temperature, and n a length:

    ℓ = w (τ S − A)² / n        loss = mean of ℓ over completions        ∂ℓ / ∂log π_t = 2 w τ (τ S − A) / n

The least value is where S = A / τ: the policy that maximises the score less τ times the KL to b.
There is no ratio and no clip, whoever drew the samples. w is 1 ("temperature") or 1 / (2 τ)
("unit": the gradient on samples of b itself is −A / n, that of a policy gradient). With "temperature" it is
2 τ times that, so that a small τ asks for another epsilon of Adam, or a larger rate of SGD.

A group whose scores are equal has A = 0, and still moves where S ≠ 0: the square pulls it back to
b.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms.api import (
    REFERENCE_SCORES,
    STORED_SCORE,
    drift_metrics,
    flat_groups,
    grouped_scores,
    make_batch,
)
from rlhf_jax.algorithms.common.shapes import check_shapes
from rlhf_jax.ops import advantages
from rlhf_jax.ops.masked import masked_count, masked_sum, select
from rlhf_jax.ops.policy_gradient.soft_values import leave_one_out_soft_value, soft_value
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Algorithm, Array, Batch, Mean, Metrics, Outputs, Samples, Scores

Base = Literal["behavior", "reference"]
Baseline = Literal["soft_value", "leave_one_out", "leave_one_out_soft_value"]
Length = Literal["none", "tokens", "constant"]
Failed = Literal["keep", "leave_out"]
BASELINES: dict[str, Callable[[Array, float], Array]] = {
    "soft_value": lambda score_PG, beta: score_PG - soft_value(score_PG, beta),
    "leave_one_out": lambda score_PG, beta: advantages.leave_one_out(score_PG),
    "leave_one_out_soft_value": lambda score_PG, beta: (
        score_PG - leave_one_out_soft_value(score_PG, beta)
    ),
}
"""(scores `[P, G]`, β) -> advantages `[P, G]`."""
ACCEPTED = {
    "base": ("behavior", "reference"),
    "baseline": tuple(BASELINES),
    "length": ("none", "tokens", "constant"),
    "failed_prompts": ("keep", "leave_out"),
}


@dataclass(frozen=True)
class Given:
    """A baseline from stored scores of the reference policy's samples: their soft value.

    Attributes:
      failed: of prompts whose stored samples all fail: kept, or without gradient and place in the
        denominator.
      fail_score: all have failed where they have one score and it is at most this.
    """

    failed: Failed
    fail_score: float


@dataclass(frozen=True)
class Square:
    """A square, with the letters of the module.

    Attributes:
      base: b.
      baseline: what a score is measured against, to give A: from the group's own scores, or from
        stored ones.
      baseline_temperature: β of a soft value, in the unit of the score.
      temperature: τ, in the unit of the score.
      length: n is 1, a completion's tokens, or the completion positions.
      scale: w is 1 ("temperature"), or 1 / (2 τ) ("unit").
    """

    base: Base
    baseline: Baseline | Given
    baseline_temperature: float
    temperature: float
    length: Length
    scale: Literal["temperature", "unit"]


def squared(name: str, square: Square) -> Algorithm:
    """The algorithm of a square; rows are samples.

    Args:
      name: of the algorithm.
      square: its loss and its advantage.

    Raises Refusal for a base, baseline or length that there is not.
    """
    given = square.baseline if isinstance(square.baseline, Given) else None
    chosen = {"base": square.base, "baseline": square.baseline, "length": square.length}
    if given is not None:
        chosen["baseline"], chosen["failed_prompts"] = "soft_value", given.failed
    for field, value in chosen.items():
        if value not in ACCEPTED[field]:
            raise Refusal(f"{name}.{field} is {value!r}; accepted: {', '.join(ACCEPTED[field])}")
    min_samples_per_prompt = 2 if given is None else 1

    def credit(samples: Samples, scores: Scores) -> Batch:
        score_PG = grouped_scores(samples, scores, min_samples_per_prompt, name)
        fields: dict[str, Array] = {}
        if isinstance(square.baseline, Given):
            stored_PS = stored_scores(samples, scores)
            value_P1 = soft_value(stored_PS, square.baseline_temperature)
            advantage_PG = score_PG - value_P1
            best_P = jnp.max(stored_PS, axis=1)
            has_failed_P = best_P <= square.baseline.fail_score
            has_failed_P &= best_P == jnp.min(stored_PS, axis=1)
            has_failed_R = jnp.repeat(has_failed_P.astype(jnp.float32), score_PG.shape[1])
            figures = {
                "prompt_value": jnp.repeat(value_P1[:, 0], score_PG.shape[1]),
                "failed_prompt_share": has_failed_R,
            }
            if square.baseline.failed == "leave_out":
                fields = {"counted_R": 1.0 - has_failed_R}
                advantage_PG = select(advantage_PG, ~has_failed_P[:, None])
        else:
            advantage_PG = BASELINES[square.baseline](score_PG, square.baseline_temperature)
            figures = {"flat_group_share": flat_groups(score_PG)}
        return make_batch(
            samples,
            scores,
            advantage_RC=select(advantage_PG.reshape(-1, 1), samples.mask_BC),
            figures=figures,
            **fields,
        )

    def loss(outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        log_ratio_R = completion_log_ratio(outputs, batch, square.base)
        assert batch.advantage_RC is not None
        # The first column of a row is never masked, and all tokens of a row have one advantage.
        residual_R = square.temperature * log_ratio_R - batch.advantage_RC[:, 0]
        loss_R = jnp.square(residual_R) / _lengths(batch, square.length)
        if square.scale == "unit":
            loss_R /= 2 * square.temperature
        measured = {
            "residual": jnp.abs(residual_R),
            "log_ratio": log_ratio_R,
            "advantage_magnitude": jnp.abs(batch.advantage_RC[:, 0]),
        }
        num_rows = jnp.float32(log_ratio_R.size)
        if batch.counted_R is not None:  # the update leaves such rows out of the denominator alone
            loss_R = select(loss_R, batch.counted_R > 0)
            measured = {name: select(of_R, batch.counted_R > 0) for name, of_R in measured.items()}
            num_rows = jnp.sum(batch.counted_R, dtype=jnp.float32)
        metrics = {name: Mean(jnp.sum(of_R), num_rows) for name, of_R in measured.items()}
        return jnp.sum(loss_R), {**metrics, **drift_metrics(outputs, batch)}

    needs = {"reference": square.base == "reference", REFERENCE_SCORES: given is not None}
    return check_shapes(
        Algorithm(
            name=name,
            needs=frozenset(need for need, is_needed in needs.items() if is_needed),
            unit=1,
            aggregation="sequence",
            credit=credit,
            losses={"policy": loss},
            min_samples_per_prompt=min_samples_per_prompt,
        )
    )


def stored_scores(samples: Samples, scores: Scores) -> Array:
    """The stored scores of each prompt, `[P, S]`, without gradient.

    Args:
      samples: B rows.
      scores: of the samples; every row of a prompt has the prompt's stored scores.
    """
    stored_BS = scores.extra[STORED_SCORE]
    return jax.lax.stop_gradient(stored_BS[:: samples.samples_per_prompt])


def completion_log_ratio(outputs: Outputs, batch: Batch, base: Base) -> Array:
    """S of each completion, nats `[R]`.

    Args:
      outputs: log-probabilities `[R, C]`, nats.
      batch: R rows.
      base: the policy that the ratio is taken to.
    """
    base_RC = batch.behavior_logprob_RC if base == "behavior" else batch.reference_logprob_RC
    assert base_RC is not None
    mask_RC = batch.mask_RC
    return masked_sum(select(outputs.logprob_RC, mask_RC) - select(base_RC, mask_RC), mask_RC, 1)


def _lengths(batch: Batch, length: str) -> Array | float:
    """n of each completion."""
    if length == "tokens":
        return jnp.maximum(masked_count(batch.mask_RC, dim=1), 1.0)
    return float(batch.mask_RC.shape[1]) if length == "constant" else 1.0
