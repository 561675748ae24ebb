"""Sums, means and indices under a mask: what the mask hides reaches neither a result nor a
gradient, NaN included.

With m the mask:

    sum = Σ m·x    mean = Σ m·x / Σ m    variance = Σ m·(x − mean)² / Σ m    whitened = (x − mean) / √(variance + ε)

The mask selects with `where` before anything is computed: multiplying by 0 would keep a NaN or an
infinity, in the result or in its gradient. `dim` is an array dimension, or None for all of them.
"""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.ops.shapes import assert_shapes
from rlhf_jax.types import Array


def select(values: Array, mask: Array) -> Array:
    """Returns `values` where the mask is true, and exactly 0 elsewhere.

    Args:
      values: any numeric dtype, which the result keeps.
      mask: bool, of the same rank. Dimensions of size 1 are repeated, in either array.

    Raises AssertionError for two ranks.
    """
    chex.assert_equal_rank([values, mask], custom_message="values, mask")
    return jnp.where(mask, values, jnp.zeros_like(values))


def masked_sum(values: Array, mask: Array, dim: int | None = None) -> Array:
    """Sum of the unmasked values; 0 where no value is unmasked.

    Args:
      values: any shape.
      mask: bool, of the same rank; see `select`.
      dim: the dimension that is summed; None sums over all of them.
    """
    return jnp.sum(select(values, mask), axis=dim)


def masked_count(mask: Array, dim: int | None = None) -> Array:
    """Number of unmasked positions, float32.

    Args:
      mask: bool, any shape. Its own entries are counted: dimensions of size 1 are not repeated.
      dim: the dimension that is counted over; None counts over all of them.
    """
    return jnp.sum(mask, axis=dim, dtype=jnp.float32)


def masked_mean(values: Array, mask: Array, dim: int | None = None) -> Array:
    """Mean of the unmasked values; 0 where no value is unmasked.

    Args:
      values: any shape.
      mask: bool, of the same shape: the denominator is `masked_count(mask, dim)`.
      dim: the dimension of the mean; None takes the mean over all of them.
    """
    return masked_sum(values, mask, dim) / jnp.maximum(masked_count(mask, dim), 1.0)


def masked_max(values: Array, mask: Array, dim: int | None = None) -> Array:
    """Largest of the unmasked values; -inf where no value is unmasked.

    Args:
      values: floating point, any shape.
      mask: bool, of the same rank; dimensions of size 1 are repeated.
      dim: the dimension of the maximum; None takes it over all of them.

    Raises AssertionError for two ranks.
    """
    chex.assert_equal_rank([values, mask], custom_message="values, mask")
    return jnp.max(jnp.where(mask, values, -jnp.inf), axis=dim)


def masked_moments(values: Array, mask: Array) -> tuple[Array, Array]:
    """Mean and population variance of the unmasked values, two scalars; (0, 0) without any.

    The variance is divided by the count, not by the count less one.

    Args:
      values: floating point, any shape.
      mask: bool, of the same shape.
    """
    mean = masked_mean(values, mask)
    return mean, masked_mean(jnp.square(select(values, mask) - mean), mask)


def masked_whiten(
    values: Array, mask: Array, *, keep_mean: bool = False, epsilon: float = 1e-8
) -> Array:
    """Unmasked values with mean 0 and variance 1; 0 where the mask is false.

    The statistics are those of the whole array. The caller decides whether that is a round or a
    minibatch.

    Args:
      values: floating point, any shape.
      mask: bool, of the same shape.
      keep_mean: the values keep their own mean, and only the variance becomes 1.
      epsilon: is added to the variance before its square root is taken.
    """
    mean, variance = masked_moments(values, mask)
    whitened = (select(values, mask) - mean) * jax.lax.rsqrt(variance + epsilon)
    return select(whitened + mean if keep_mean else whitened, mask)


def positions_from_mask(mask_BL: Array) -> Array:
    """Position of each token among its row's unmasked ones, int32 `[B, L]`, so that left padding
    moves no position.

    Example: mask [F, F, T, T, T, F] gives [0, 0, 0, 1, 2, 2]; entries under the mask only need to
    be in range.
    """
    assert_shapes(mask_BL=mask_BL)
    return jnp.maximum(jnp.cumsum(mask_BL, axis=-1, dtype=jnp.int32) - 1, 0)


def last_index(mask_BC: Array) -> Array:
    """Column of each row's last unmasked entry, int32 `[B]`; -1 for a row that has none."""
    assert_shapes(mask_BC=mask_BC)
    columns_C = jnp.arange(mask_BC.shape[-1], dtype=jnp.int32)
    return jnp.max(jnp.where(mask_BC, columns_C[None, :], -1), axis=-1)
