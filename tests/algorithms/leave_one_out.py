"""A policy gradient with a group baseline and a ratio: a second subject, so that the checks of
groups and ratios run.

loss = −Σ_rows A · exp(Σ_t log π − log behavior),      A = score − mean of the group's other scores
"""

import jax.numpy as jnp

from rlhf_jax.algorithms.api import drift_metrics, grouped_scores, make_batch
from rlhf_jax.ops.masked import masked_sum, select
from rlhf_jax.types import Algorithm, Array, Batch, Mean, Metrics, Outputs, Samples, Scores


def leave_one_out() -> Algorithm:
    return Algorithm(
        name="leave_one_out",
        needs=frozenset(),
        unit="group",
        aggregation="sequence",
        credit=credit,
        losses={"policy": loss},
        rows_per_prompt=lambda samples_per_prompt: samples_per_prompt,
        min_samples_per_prompt=2,
        group_baseline=True,
        ratio=True,
    )


def credit(samples: Samples, scores: Scores) -> Batch:
    score_PG = grouped_scores(samples, scores, 2, "leave_one_out")
    others_PG = (jnp.sum(score_PG, axis=1, keepdims=True) - score_PG) / (score_PG.shape[1] - 1)
    advantage_B = (score_PG - others_PG).reshape(-1)
    return make_batch(samples, scores, advantage_RC=select(advantage_B[:, None], samples.mask_BC))


def loss(outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
    assert batch.advantage_RC is not None
    assert batch.behavior_logprob_RC is not None
    log_ratio_R = masked_sum(outputs.logprob_RC, batch.mask_RC, 1) - masked_sum(
        batch.behavior_logprob_RC, batch.mask_RC, 1
    )
    ratio_R = jnp.exp(log_ratio_R)
    loss_sum = -jnp.sum(batch.advantage_RC[:, 0] * ratio_R)
    return loss_sum, {
        "ratio": Mean(jnp.sum(ratio_R), jnp.float32(len(ratio_R))),
        **drift_metrics(outputs, batch),
    }
