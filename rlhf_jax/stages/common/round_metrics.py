"""Metrics of a scored round: rewards, lengths, and how much of it is trained on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp

from rlhf_jax.devices import distributed
from rlhf_jax.ops.masked import masked_mean
from rlhf_jax.ops.policy_gradient.row_weights import staleness_figures
from rlhf_jax.runtime.groups.selection import Selection
from rlhf_jax.types import Algorithm, Array, Batch, Samples, Scores


@dataclass(frozen=True)
class RoundMetrics:
    """Metrics of rounds of one algorithm."""

    algorithm: Algorithm

    def measure(
        self, samples: Samples, scores: Scores, batch: Batch, selection: Selection | None = None
    ) -> dict[str, Array]:
        """Metrics of a round on the device, by name; nobody waits for them here.

        Args:
          samples: B rows.
          scores: of the samples.
          batch: rows that are trained on.
          selection: of the round's groups, where more is sampled than is kept.
        """
        compared = self.algorithm.group_baseline or self.algorithm.pair
        groups = samples.samples_per_prompt if compared else 1
        return {
            "reward": distributed.settled(scores.raw_B.mean()),
            "reward_standardized": distributed.settled(scores.standardized_B.mean()),
            "score": distributed.settled(scores.score_B.mean()),
            "finished": distributed.settled(samples.finished_B.mean()),
            "sampled_length": distributed.settled(samples.mask_BC.sum(-1).mean()),
            **({} if selection is None else selection.figures()),
            **overlong_figures(scores),
            **self._shares(scores, batch, samples.mask_BC, samples_per_prompt=groups),
        }

    def signs(self, batch: Batch, num_samples: int) -> Array | None:
        """Sign of the mean advantage of each sample, int8 `[B]` on the device: 0 for one that is not
        trained on. None where rows have no advantage.

        Args:
          batch: rows that are trained on.
          num_samples: B.
        """
        if batch.advantage_RC is None or batch.sample_R is None:
            return None
        arrays = batch.advantage_RC, batch.mask_RC, batch.sample_R
        return self._signs(*arrays, num_samples=num_samples)

    @cached_property
    def _signs(self) -> Callable[..., Array]:
        return distributed.compiled(signs, static_argnames="num_samples")

    @cached_property
    def _shares(self) -> Callable[..., dict[str, Array]]:
        return distributed.compiled(shares, static_argnames="samples_per_prompt")


def signs(advantage_RC: Array, mask_RC: Array, sample_R: Array, *, num_samples: int) -> Array:
    """Sign of the mean advantage of the samples that rows are made of, int8 `[B]`; 0 for the others.

    Args:
      advantage_RC: of each token.
      mask_RC: true on completion tokens.
      sample_R: the sample of each row.
      num_samples: B.
    """
    sign_R = jnp.sign(masked_mean(advantage_RC, mask_RC, dim=1)).astype(jnp.int8)
    return jnp.zeros(num_samples, jnp.int8).at[sample_R].set(sign_R)


def overlong_figures(scores: Scores) -> dict[str, Array]:
    """Mean of the penalty on long completions, and the share of completions that have one; {} where
    there is no such penalty.
    """
    if scores.overlong_B is None:
        return {}
    return {
        "overlong_penalty": distributed.settled(scores.overlong_B.mean()),
        "overlong_share": distributed.settled((scores.overlong_B < 0).mean()),
    }


def shares(
    scores: Scores, batch: Batch, mask_BC: Array, *, samples_per_prompt: int
) -> dict[str, Array]:
    """Figures of how much of a round is trained on.

    Args:
      mask_BC: true on the completion tokens of the samples.
      samples_per_prompt: 1: the algorithm trains on prompts whose samples have one score, too.

    Returns `flat_group_share`, the share of prompts whose samples all have one score;
    `idle_row_share`, that of rows whose weight or every advantage is zero, where the algorithm has
    such; of a sum of rewards, each term's mean and deviation; `score_*`, the mean of each score in
    `Scores.extra`, over samples or completion tokens; where the rows have proximal
    log-probabilities, the figures of staleness.
    """
    found: dict[str, Array] = {}
    if samples_per_prompt > 1:
        score_PG = scores.score_B.reshape(-1, samples_per_prompt)
        found["flat_group_share"] = jnp.mean(score_PG.max(axis=1) == score_PG.min(axis=1))
    if batch.weight_R is not None:
        found["idle_row_share"] = jnp.mean(batch.weight_R == 0)
    elif batch.advantage_RC is not None:
        found["idle_row_share"] = jnp.mean(
            jnp.all((batch.advantage_RC == 0) | ~batch.mask_RC, axis=1)
        )
    for label, term_B in (scores.terms or {}).items():
        found |= {f"term_{label}": term_B.mean(), f"term_{label}_std": term_B.std()}
    for output, array in scores.extra.items():
        mean = (
            jnp.sum(array * mask_BC) / jnp.maximum(mask_BC.sum(), 1)
            if output.endswith("_BC")
            else array.mean()
        )
        found[f"score_{output.rpartition('_')[0]}"] = mean
    if batch.proximal_logprob_RC is not None and batch.behavior_logprob_RC is not None:
        found |= staleness_figures(
            batch.proximal_logprob_RC, batch.behavior_logprob_RC, batch.mask_RC
        )
    return found
