"""Best of n: supervised learning on the best of a prompt's samples, the control beside which the
others stand.

"Best-of-2 SFT" of Noukhovitch et al. 2024, arXiv 2410.18252, §4: loss = −mean over prompts of Σ_t
log π(y_t), y the sample with the highest score, the first of equals. No reference, no KL, no ratio.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from rlhf_jax.algorithms.api import drift_metrics, grouped_scores, make_batch
from rlhf_jax.algorithms.common.shapes import check_shapes
from rlhf_jax.ops.losses import cross_entropy_sum
from rlhf_jax.types import Algorithm, Array, Batch, Metrics, Outputs, Samples, Scores


@dataclass(frozen=True)
class Config:
    """Best of n has no settings: n is `samples_per_prompt`."""


def best_of_n(config: Config) -> Algorithm:
    """The algorithm; a prompt has one row."""
    del config
    return check_shapes(
        Algorithm(
            name="best_of_n",
            needs=frozenset(),
            unit=1,
            aggregation="sequence",
            credit=credit,
            losses={"policy": loss},
            rows_per_prompt=lambda samples_per_prompt: 1,
            min_samples_per_prompt=2,
        )
    )


def credit(samples: Samples, scores: Scores) -> Batch:
    """The row of each prompt's best sample. Raises Refusal for fewer than two samples a prompt."""
    score_PG = grouped_scores(samples, scores, 2, "best_of_n")
    num_prompts, per_prompt = score_PG.shape
    rows_P = per_prompt * jnp.arange(num_prompts, dtype=jnp.int32) + jnp.argmax(score_PG, axis=1)
    return make_batch(samples, scores, rows_P)


def loss(outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
    """−Σ log π of the rows' tokens, to be divided by the number of rows."""
    return cross_entropy_sum(outputs.logprob_RC, batch.mask_RC), drift_metrics(outputs, batch)
