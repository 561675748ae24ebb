"""An algorithm: a policy gradient with the ratio of whole completions, against the mean of a
prompt's other samples.

A_i = gain (score_i − mean of the other G − 1)        loss = −Σ_i A_i exp(Σ_t log π − log behavior)
"""

from dataclasses import dataclass

import jax.numpy as jnp

from rlhf_jax.algorithms.api import drift_metrics, grouped_scores, make_batch
from rlhf_jax.config import Positive
from rlhf_jax.ops.advantages import leave_one_out
from rlhf_jax.ops.masked import masked_sum, select
from rlhf_jax.types import Algorithm, Array, Batch, Mean, Metrics, Outputs, Samples, Scores


@dataclass(frozen=True)
class Config:
    """The gain of the advantage."""

    gain: Positive = 1.0


def leave_out(config: Config) -> Algorithm:
    """The algorithm; rows are samples."""

    def credit(samples: Samples, scores: Scores) -> Batch:
        advantage_B = config.gain * leave_one_out(
            grouped_scores(samples, scores, 2, "leave_out")
        ).reshape(-1)
        return make_batch(
            samples, scores, advantage_RC=select(advantage_B[:, None], samples.mask_BC)
        )

    return Algorithm(
        name="leave_out",
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


def loss(outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
    """The sum of the rows' losses, and metrics."""
    assert batch.advantage_RC is not None
    assert batch.behavior_logprob_RC is not None
    ratio_R = jnp.exp(
        masked_sum(outputs.logprob_RC, batch.mask_RC, 1)
        - masked_sum(batch.behavior_logprob_RC, batch.mask_RC, 1)
    )
    metrics = {
        "ratio": Mean(jnp.sum(ratio_R), jnp.float32(len(ratio_R))),
        **drift_metrics(outputs, batch),
    }
    return -jnp.sum(batch.advantage_RC[:, 0] * ratio_R), metrics
