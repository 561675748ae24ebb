"""Soft values of a prompt: the smooth maximum of the scores of its samples.

With r_i the scores of G samples of the prompt and β a temperature:

    V = β log (1/G) Σ_i e^(r_i / β)        the largest score as β → 0, their mean as β → ∞

V is the value of the best policy at KL weight β, on samples of the policy that the KL is taken to
(A*-PO, arXiv 2505.20686, eq. 5; OAPL, arXiv 2602.19362). The leave-one-out value of sample i is
that of the other G − 1 (the partition of PMD, arXiv 2602.05933).

Scores are measured from the largest one, and small exponents are not rounded to 1: no exponential
underflows to a value of 0, at any temperature. A sum of exponentials with a floor below it would
give the only winner of [1, 0, 0, 0] at β = 0.01 an advantage of 0.184 in place of 1.
"""

import jax.numpy as jnp

from rlhf_jax.ops.shapes import assert_shapes
from rlhf_jax.types import Array


def soft_value(score_PG: Array, temperature: float | Array) -> Array:
    """V of each prompt, `[P, 1]`, in the unit of the score.

    Args:
      score_PG: scores of P groups.
      temperature: β, above 0, in the unit of the score.
    """
    assert_shapes(score_PG=score_PG)
    return _soft_mean(score_PG, jnp.ones_like(score_PG, bool), temperature)[:, None]


def leave_one_out_soft_value(score_PG: Array, temperature: float | Array) -> Array:
    """V of the group's other samples, `[P, G]`, in the unit of the score; G ≥ 2.

    Args:
      score_PG: scores of P groups.
      temperature: β, above 0, in the unit of the score.
    """
    assert_shapes(score_PG=score_PG)
    others_GG = ~jnp.eye(score_PG.shape[1], dtype=bool)
    return _soft_mean(score_PG[:, None, :], others_GG[None], temperature)


def _soft_mean(scores: Array, counted: Array, temperature: float | Array) -> Array:
    """β log mean e^(r / β) over the entries of the last dimension that count."""
    largest = jnp.max(jnp.where(counted, scores, -jnp.inf), axis=-1, keepdims=True)
    # At the largest score the term is 0, so that the mean is above −1 and its log1p finite.
    terms = jnp.where(counted, jnp.expm1((scores - largest) / temperature), 0.0)
    mean = jnp.sum(terms, axis=-1) / jnp.sum(counted, axis=-1)
    return largest[..., 0] + temperature * jnp.log1p(mean)
