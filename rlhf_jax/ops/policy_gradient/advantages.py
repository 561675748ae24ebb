"""Advantages of a policy gradient as data: a baseline, a shift, and a power of the deviation.

With r_i the scores of a prompt's G samples, r̄ their mean, s their deviation and ε = 1e-6

    A_i = (r_i − b − shift) / (s^power + ε)        power 0 is a branch: A_i = r_i − b − shift

    baseline        b                                   source
    mean            r̄                                   GRPO, arXiv 2402.03300, §4.1.2, with power 1; Dr. GRPO, arXiv
                                                        2503.20783, with power 0; powers between, arXiv 2607.00152
    leave_one_out   the mean of the other G − 1         RLOO, arXiv 2402.14740, eq. 6
    minimum_variance  Σ e_j r_j / Σ e_j                 VCPO, arXiv 2602.17616, with power 1: e_j = w² ‖∇ log π‖² of the
                                                        completion, w = π / μ, by the proxy of `scoring.py`. (The
                                                        authors' code weighs by w² once more.)
    leave_one_out_minimum_variance                      the same of the other G − 1: unbiased
    none            0                                   REINFORCE

A shift below 0 raises every advantage: AsymRE, arXiv 2506.20520, whose V is b + shift. `deviation`
"bessel" divides the squares by G − 1 in place of G. `whiten="tokens"` then makes the mean of the
advantages over all tokens of the round 0 and their unbiased variance 1 (REINFORCE++, arXiv
2501.03262): long completions count more, and no group keeps a mean of 0.

`noise` adds to each score a normal number of that deviation before anything else, also in groups whose
scores are equal (ReDit, arXiv 2506.18631). It is a function of `noise_seed`, the prompt's index in the stream
and the sample's in its group: the same in every loop, after a restart, and however rows are batched.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from rlhf_jax import randomness
from rlhf_jax.config import LARGEST, Bounds, Fraction, NonNegative, Unbounded
from rlhf_jax.ops import advantages
from rlhf_jax.ops.masked import masked_count, masked_moments, select
from rlhf_jax.ops.scalars import is_zero
from rlhf_jax.ops.shapes import assert_shapes
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array

LEAST_VARIANCE = {
    "minimum_variance": advantages.minimum_variance,
    "leave_one_out_minimum_variance": advantages.leave_one_out_minimum_variance,
}
"""Baselines that read the energy of gradients."""
BASELINES = ("mean", "leave_one_out", *LEAST_VARIANCE, "none")
NOISE = 0x6E6F6973  # purpose of the noise's key: other uses of a seed have other numbers
RUN_SEED = -1
"""The `noise_seed` that a run replaces by its own seed."""
EPSILON = 1e-6  # added to the power of the deviation, as `ops/advantages.py` adds it
WHITENING_EPSILON = 1e-8  # added to the variance over tokens, as verl adds it


@dataclass(frozen=True)
class Advantage:
    """Steps from a score to an advantage: see the module."""

    # subtracted from each score
    baseline: Literal[
        "mean", "leave_one_out", "minimum_variance", "leave_one_out_minimum_variance", "none"
    ] = "mean"
    power: Fraction = 1.0  # of the group's deviation, by which the difference is divided; 0: not
    deviation: Literal["population", "bessel"] = "population"  # squares over G, or over G - 1
    # added to the baseline, in units of the score; AsymRE has -0.1
    shift: Annotated[float, Unbounded("a score has no bounds")] = 0.0
    # "tokens": mean 0 and variance 1 over all tokens of the round
    whiten: Literal["none", "tokens"] = "none"
    noise: NonNegative = (
        0.0  # deviation of what is added to each score, in its unit; ReDit has 0.05
    )
    # of the noise; -1: the seed of the run, or 0 outside of a run
    noise_seed: Annotated[int, Bounds(least=0, most=LARGEST, also=(-1,))] = RUN_SEED

    def __post_init__(self) -> None:
        if self.baseline not in BASELINES:
            raise Refusal(
                f"advantage.baseline is {self.baseline!r}; accepted: {', '.join(BASELINES)}"
            )
        if self.power and (self.shift or self.baseline == "none"):
            given = f"shift {self.shift}" if self.shift else "baseline 'none'"
            raise Refusal(
                f"advantage.power is {self.power} with {given}; accepted: power 0, since equal "
                "scores would be divided by a deviation of 0"
            )

    @property
    def compares(self) -> bool:
        """True where an advantage needs the other samples of its prompt."""
        return self.baseline != "none" or not is_zero(self.power)

    @property
    def reads_energy(self) -> bool:
        """True where a baseline reads the energy of the samples' gradients."""
        return self.baseline in LEAST_VARIANCE

    @property
    def is_flat_in_flat_groups(self) -> bool:
        """True where equal scores give advantage 0."""
        return (
            self.baseline != "none"
            and is_zero(self.shift)
            and self.whiten == "none"
            and is_zero(self.noise)
        )


def dithered(config: Advantage, score_PG: Array, ordinal_B: Array, sample_index_B: Array) -> Array:
    """Scores with the noise of `config`, `[P, G]`.

    Args:
      config: of the advantage.
      score_PG: scores of P groups.
      ordinal_B: int32, indices of the prompts in the stream.
      sample_index_B: int32, 0 ... G-1.
    """
    assert_shapes(score_PG=score_PG, ordinal_B=ordinal_B, sample_index_B=sample_index_B)
    if is_zero(config.noise):
        return score_PG
    key = jax.random.fold_in(randomness.key(max(config.noise_seed, 0)), NOISE)

    def drawn(ordinal: Array, sample_index: Array) -> Array:
        row_key = jax.random.fold_in(jax.random.fold_in(key, ordinal), sample_index)
        return jax.random.normal(row_key, (), jnp.float32)

    noise_B = jax.vmap(drawn)(ordinal_B, sample_index_B)
    return score_PG + config.noise * noise_B.reshape(score_PG.shape)


def group_advantages(config: Advantage, score_PG: Array, energy_PG: Array | None = None) -> Array:
    """The advantages of P groups `[P, G]`, not whitened.

    Args:
      config: of the advantage.
      score_PG: scores of P groups.
      energy_PG: of the samples' gradients, for baselines of least variance.
    """
    assert_shapes(score_PG=score_PG, energy_PG=energy_PG)

    above = {
        "mean": advantages.centered,
        "leave_one_out": advantages.leave_one_out,
        "none": lambda score_PG: score_PG,
    }
    if config.baseline in LEAST_VARIANCE:
        assert energy_PG is not None
        advantage_PG = LEAST_VARIANCE[config.baseline](score_PG, energy_PG)
    else:
        advantage_PG = above[config.baseline](score_PG)
    if not is_zero(config.shift):
        advantage_PG = advantage_PG - config.shift
    if is_zero(config.power):
        return advantage_PG
    deviation_P1 = advantages.deviation(score_PG)
    if config.deviation == "bessel":
        num_samples = score_PG.shape[1]
        deviation_P1 *= (num_samples / (num_samples - 1)) ** 0.5
    return advantage_PG / (deviation_P1**config.power + EPSILON)


def whitened(advantage_BC: Array, mask_BC: Array) -> Array:
    """Advantages with mean 0 and unbiased variance 1 over the tokens of the round, `[B, C]`.

    Args:
      advantage_BC: of each token.
      mask_BC: True at tokens of the completion.
    """
    assert_shapes(advantage_BC=advantage_BC, mask_BC=mask_BC)
    mean, variance = masked_moments(advantage_BC, mask_BC)
    count = masked_count(mask_BC)
    unbiased = variance * count / jnp.maximum(count - 1, 1.0)
    centered_BC = select(advantage_BC, mask_BC) - mean
    return select(centered_BC * jax.lax.rsqrt(unbiased + WHITENING_EPSILON), mask_BC)
