"""Contrastive policy gradient: the contrast of KL-regularised rewards of a group, under the policy
as it is now.

Flet-Berliac et al. 2024, *Contrastive Policy Gradient*, arXiv 2406.19185. With S the
log-probability of a completion:

    R_i = score_i − kl_weight (S(y_i) − S_ref(y_i))        loss = −mean_i [ R_i − mean of the other G − 1 ] S(y_i)

where the bracket carries no gradient. R is taken with the *current* log-probabilities, so the rows
of a group meet in the loss; there is no ratio, whoever drew the samples: summed over two samples
the gradient is that of (R_1 − R_2)² / (2 kl_weight) with R a function of the policy, whose least
value is where the contrast vanishes, whatever the sampling law. With R taken at the samples' own
log-probabilities, on-policy, or with kl_weight 0, it is vanilla RLOO (arXiv 2402.14740).

The level of a ratio has no meaning here, since there is none. Neither has another kind of the KL: S − S_ref
within R is what makes the least value of the loss that of the regularised objective, for samples of any
age.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms.api import drift_metrics, flat_groups, grouped_scores, make_batch
from rlhf_jax.algorithms.common.shapes import check_shapes
from rlhf_jax.config import NonNegative
from rlhf_jax.ops import advantages
from rlhf_jax.ops.masked import masked_sum
from rlhf_jax.types import Algorithm, Array, Batch, Mean, Metrics, Outputs, Samples, Scores

SCALARS = ("kl_weight",)


@dataclass(frozen=True)
class Config:
    """Settings of CoPG."""

    kl_weight: NonNegative = 0.05  # as RLOO here; the paper sweeps it


def copg(config: Config) -> Algorithm:
    """The algorithm; rows are samples, and a prompt's samples are a unit."""

    def loss(outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        assert batch.score_R is not None
        assert batch.reference_logprob_RC is not None
        logprob_R = masked_sum(outputs.logprob_RC, batch.mask_RC, dim=1)
        reference_R = masked_sum(batch.reference_logprob_RC, batch.mask_RC, dim=1)
        regularized_R = batch.score_R - config.kl_weight * (logprob_R - reference_R)
        contrast_PG = advantages.leave_one_out(
            jax.lax.stop_gradient(regularized_R.reshape(-1, batch.group_rows))
        )
        loss_sum = -jnp.sum(contrast_PG.reshape(-1) * logprob_R)
        contrast = Mean(jnp.sum(jnp.abs(contrast_PG)), jnp.float32(contrast_PG.size))
        return loss_sum, {"contrast": contrast, **drift_metrics(outputs, batch)}

    return check_shapes(
        Algorithm(
            name="copg",
            needs=frozenset({"reference"}),
            unit="group",
            aggregation="sequence",
            credit=credit,
            losses={"policy": loss},
            min_samples_per_prompt=2,
            group_baseline=True,
        )
    )


def credit(samples: Samples, scores: Scores) -> Batch:
    """All samples as rows, with their scores.

    Raises Refusal for fewer than two samples a prompt.
    """
    score_PG = grouped_scores(samples, scores, 2, "copg")
    figures = {"flat_group_share": flat_groups(score_PG)}
    return make_batch(
        samples, scores, score_R=score_PG.reshape(-1), figures=figures, group_rows=score_PG.shape[1]
    )
