"""Advantages: how much better a completion, or a token, is than what was expected of it.

With r_i the scores of a prompt's G samples, their mean r̄ and deviation s (population, about the
mean):

    leave_one_out    r_i − mean of the other G − 1        Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740, eq. 6
    centered         r_i − r̄                              Liu et al. 2025, arXiv 2503.20783 (Dr. GRPO)
    standardized     (r_i − r̄) / (s + ε)                  Shao et al. 2024, arXiv 2402.03300, §4.1.2 (GRPO)
    bessel           the same with √(G / (G − 1)) s       as TRL, verl and torch's std compute the deviation
    minimum_variance r_i − Σ e_j r_j / Σ e_j              VCPO, arXiv 2602.17616: e_i the squared norm of w ∇ log π, w a ratio
    leave_one_out_minimum_variance                        the same with the sums over j ≠ i
    rank             2 − 4 (rank_i − 1) / (G − 1)         GOPO, arXiv 2602.03876: from the best; equal scores share a rank
    best_of_group    1[i best] − share of the best        the best of equals share 1
    gae              A_t = Σ_l (γλ)^l δ_{t+l},  δ_t = r_t + γ V_{t+1} − V_t    Schulman et al. 2016, arXiv 1506.02438, eq. 16

In all but the last a group whose scores are equal has advantage exactly 0: scores are measured from
the group's first, so that no rounding of a common offset is left for a division to blow up.
"""

import jax
import jax.numpy as jnp

from rlhf_jax.ops.masked import select
from rlhf_jax.ops.shapes import assert_shapes
from rlhf_jax.types import Array


def from_first(score_PG: Array) -> Array:
    """Scores less the group's first, `[P, G]`: exactly 0 in a flat group, whatever its level."""
    assert_shapes(score_PG=score_PG)
    return score_PG - score_PG[:, :1]


def leave_one_out(score_PG: Array) -> Array:
    """Score less the mean of the group's others, `[P, G]`; G ≥ 2.

    Example: 1 for 3 of 8, else 0: +5/7 and −3/7.
    """
    assert_shapes(score_PG=score_PG)
    num_samples = score_PG.shape[1]
    return centered(score_PG) * (num_samples / (num_samples - 1))


def centered(score_PG: Array) -> Array:
    """Score less the group's mean, `[P, G]`."""
    above_PG = from_first(score_PG)
    return above_PG - jnp.mean(above_PG, axis=1, keepdims=True)


def minimum_variance(score_PG: Array, energy_PG: Array) -> Array:
    """Score less the constant of the group for which the mean of e (r − b)² is least, `[P, G]`.

    A sample is a part of its own baseline: a rare sample has much energy, and where it alone is
    good its advantage is small. A group without any energy has its mean in place of b.

    Args:
      score_PG: scores of P groups.
      energy_PG: e ≥ 0, the squared norm of each sample's weighted gradient, in any unit.

    Example: scores (1, 0, 0, 1) with energies (16, 1/4, 9, 1/8) have b = 0.635468.
    """
    return _above_weighted_mean(score_PG, energy_PG, jnp.ones((1, score_PG.shape[1]), bool))


def leave_one_out_minimum_variance(score_PG: Array, energy_PG: Array) -> Array:
    """Score less the same constant of the group's other samples, `[P, G]`; G ≥ 2.

    The baseline does not depend on the sample, so that the gradient is unbiased.

    Args:
      score_PG: scores of P groups.
      energy_PG: as in `minimum_variance`.

    Example: scores (1, 0, 0, 1) with energies (1, 2, 1, 1): 1 − 1/4, −2/3, −1/2, 1 − 1/4.
    """
    return _above_weighted_mean(score_PG, energy_PG, ~jnp.eye(score_PG.shape[1], dtype=bool))


def _above_weighted_mean(score_PG: Array, energy_PG: Array, counted_gG: Array) -> Array:
    """Scores less the mean of those that count, weighted by energy: of each sample, or of all."""
    assert_shapes(score_PG=score_PG, energy_PG=energy_PG)
    above_PG = from_first(score_PG)
    # A difference of sums over all would lose the others beside a sample of far more energy.
    weight_PgG = jnp.where(counted_gG, energy_PG[:, None, :], 0.0)
    total_Pg1 = jnp.sum(weight_PgG, axis=2, keepdims=True)
    share_PgG = jnp.where(
        total_Pg1 > 0,
        weight_PgG / jnp.where(total_Pg1 > 0, total_Pg1, 1.0),
        counted_gG / jnp.sum(counted_gG, axis=1, keepdims=True),
    )
    return above_PG - jnp.sum(share_PgG * above_PG[:, None, :], axis=2)


def deviation(score_PG: Array) -> Array:
    """Population deviation of each group about its mean, `[P, 1]`."""
    return jnp.sqrt(jnp.mean(jnp.square(centered(score_PG)), axis=1, keepdims=True))


def standardized(score_PG: Array, epsilon: float = 1e-6) -> Array:
    """Score less the group's mean, over its deviation, `[P, G]`.

    Args:
      score_PG: scores of P groups.
      epsilon: added to the deviation.
    """
    return centered(score_PG) / (deviation(score_PG) + epsilon)


def bessel(score_PG: Array, epsilon: float = 1e-6) -> Array:
    """Score less the group's mean, over the unbiased deviation of G − 1 degrees of freedom, `[P,
    G]`; G ≥ 2.

    Args:
      score_PG: scores of P groups.
      epsilon: added to the deviation.
    """
    assert_shapes(score_PG=score_PG)
    num_samples = score_PG.shape[1]
    return centered(score_PG) / (
        deviation(score_PG) * (num_samples / (num_samples - 1)) ** 0.5 + epsilon
    )


def rank(score_PG: Array) -> Array:
    """From +2 for the best to −2 for the worst by rank alone, `[P, G]`; equal scores get their
    mean; G ≥ 2.
    """
    assert_shapes(score_PG=score_PG)
    below_PG = jnp.sum(score_PG[:, None, :] < score_PG[:, :, None], axis=2, dtype=jnp.float32)
    above_PG = jnp.sum(score_PG[:, None, :] > score_PG[:, :, None], axis=2, dtype=jnp.float32)
    return 2.0 * (below_PG - above_PG) / (score_PG.shape[1] - 1)


def best_of_group(score_PG: Array) -> Array:
    """1 for the best (shared by equals), less the group's mean 1 / G, `[P, G]`."""
    assert_shapes(score_PG=score_PG)
    best_PG = (score_PG == jnp.max(score_PG, axis=1, keepdims=True)).astype(jnp.float32)
    return best_PG / jnp.sum(best_PG, axis=1, keepdims=True) - 1.0 / score_PG.shape[1]


def gae(
    reward_BC: Array, value_BC: Array, mask_BC: Array, *, gamma: float, gae_lambda: float
) -> Array:
    """Generalised advantages `[B, C]` of tokens under the mask, 0 elsewhere.

    `value_BC` is of what precedes each token; what follows a row's last unmasked token is worth 0,
    finished or not: the completion is the episode. `gamma` is γ and `gae_lambda` λ, both in [0, 1].

    Args:
      reward_BC: reward of each token.
      value_BC: value of what precedes each token.
      mask_BC: True at tokens of the completion.
      gamma: discount γ per token, in [0, 1].
      gae_lambda: λ, in [0, 1].
    """
    assert_shapes(reward_BC=reward_BC, value_BC=value_BC, mask_BC=mask_BC)
    reward_BC, value_BC = select(reward_BC, mask_BC), select(value_BC, mask_BC)

    def earlier(
        following: tuple[Array, Array], column: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        advantage_B, following_value_B = following
        reward_B, value_B = column
        error_B = reward_B + gamma * following_value_B - value_B
        advantage_B = error_B + gamma * gae_lambda * advantage_B
        return (advantage_B, value_B), advantage_B

    nothing_B = jnp.zeros(reward_BC.shape[0], reward_BC.dtype)
    # Columns after the last token have reward 0 and value 0 and so add nothing: the scan may begin
    # at the end.
    _, advantage_CB = jax.lax.scan(
        earlier, (nothing_B, nothing_B), (reward_BC.T, value_BC.T), reverse=True
    )
    return select(advantage_CB.T, mask_BC)
