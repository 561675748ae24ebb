"""Online DPO: the best of a prompt's fresh samples is preferred to the worst, by the reward's
order.

Guo et al. 2024, *Direct Language Model Alignment from Online AI Feedback*, arXiv 2402.04792; in the
form that Noukhovitch et al. 2024, *Asynchronous RLHF*, arXiv 2410.18252, §2 use: G samples a
prompt, of which y+ has the highest and y− the lowest score.

    loss = −log σ( β [ (S(y+) − S_ref(y+)) − (S(y−) − S_ref(y−)) ] ),      S(y) = Σ_t log π(y_t | x, y_<t)

S sums over the sampled tokens, the EOS included, at the sampling temperature, without normalising
by length. Where all of a prompt's samples score the same there is no order to learn: the pair keeps
its place in the denominator, with gradient 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp

from rlhf_jax.algorithms.api import drift_metrics, grouped_scores, make_batch
from rlhf_jax.algorithms.common.shapes import check_shapes
from rlhf_jax.config import Positive
from rlhf_jax.ops.losses import dpo
from rlhf_jax.ops.masked import masked_sum, select
from rlhf_jax.types import Algorithm, Array, Batch, Mean, Metrics, Outputs, Samples, Scores

SCALARS = ("beta",)


@dataclass(frozen=True)
class Config:
    """Settings of Online DPO."""

    # arXiv 2410.18252, hyperparameters of TL;DR Online DPO (0.03 there for the chat experiment)
    beta: Positive = 0.1


def online_dpo(config: Config) -> Algorithm:
    """The algorithm; rows are pairs, chosen then rejected."""

    return best_against_worst("online_dpo", lambda margin_U: dpo(margin_U, config.beta))


def best_against_worst(name: str, margin_loss: Callable[[Array], Array]) -> Algorithm:
    """The algorithm on best-against-worst pairs whose loss is `margin_loss(margin_U)` of each, `[U]`.

    Args:
      name: of the algorithm.
      margin_loss: maps margins `[U]` to losses `[U]`.
    """

    def loss(outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        return pair_loss(outputs, batch, margin_loss)

    return check_shapes(
        Algorithm(
            name=name,
            needs=frozenset({"reference"}),
            unit=2,
            aggregation="pair",
            credit=credit,
            losses={"policy": loss},
            rows_per_prompt=lambda samples_per_prompt: 2,
            min_samples_per_prompt=2,
            pair=True,
        )
    )


def credit(samples: Samples, scores: Scores) -> Batch:
    """Two rows per prompt: its best sample, then its worst; the first of equals.

    If all samples of a prompt score the same, its rows have weight 0.

    Args:
      samples: P*G rows.
      scores: of the same rows.

    Returns a batch of 2 P rows.

    Raises Refusal for fewer than two samples per prompt.
    """
    score_PG = grouped_scores(samples, scores, 2, "online_dpo")
    num_prompts, per_prompt = score_PG.shape
    index_P2 = jnp.stack([jnp.argmax(score_PG, axis=1), jnp.argmin(score_PG, axis=1)], axis=1)
    first_row_P = per_prompt * jnp.arange(num_prompts, dtype=jnp.int32)
    ordered_P = jnp.max(score_PG, axis=1) > jnp.min(score_PG, axis=1)
    return make_batch(
        samples,
        scores,
        rows_R=(first_row_P[:, None] + index_P2).reshape(-1),
        weight_R=jnp.repeat(ordered_P.astype(jnp.float32), 2),
    )


def pair_loss(
    outputs: Outputs, batch: Batch, margin_loss: Callable[[Array], Array]
) -> tuple[Array, Metrics]:
    """Sum over pairs of `margin_loss(margin_U)`, and metrics.

    `accuracy`, `margin` and the log-probabilities of completions are means over the pairs that are
    not ties.

    Args:
      outputs: of the policy on the rows.
      batch: pairs of rows, chosen then rejected, with reference log-probabilities.
      margin_loss: margins `[U]`, in nats, to losses `[U]`.

    Returns the sum, to be divided by the number of all pairs, ties included; and the metrics.
    """
    assert batch.reference_logprob_RC is not None
    assert batch.weight_R is not None
    logprob_U2 = masked_sum(outputs.logprob_RC, batch.mask_RC, dim=1).reshape(-1, 2)
    reference_U2 = masked_sum(batch.reference_logprob_RC, batch.mask_RC, dim=1).reshape(-1, 2)
    weight_U = batch.weight_R.reshape(-1, 2)[:, 0]
    ordered_U = weight_U > 0
    implicit_U2 = select(logprob_U2 - reference_U2, ordered_U[:, None])
    margin_U = implicit_U2[:, 0] - implicit_U2[:, 1]
    loss_U = weight_U * margin_loss(margin_U)
    loss_sum, num_pairs = jnp.sum(loss_U), jnp.float32(loss_U.shape[0])
    num_ordered = jnp.sum(ordered_U, dtype=jnp.float32)
    accurate_U = select((margin_U > 0).astype(jnp.float32), ordered_U)
    return loss_sum, {
        "accuracy": Mean(jnp.sum(accurate_U), num_ordered),
        "margin": Mean(jnp.sum(margin_U), num_ordered),
        "chosen_logprob": Mean(masked_sum(logprob_U2[:, 0], ordered_U), num_ordered),
        "rejected_logprob": Mean(masked_sum(logprob_U2[:, 1], ordered_U), num_ordered),
        "tie_share": Mean(num_pairs - num_ordered, num_pairs),
        **drift_metrics(outputs, batch),
    }
