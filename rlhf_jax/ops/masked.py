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
    """`values` where the mask is true, exactly 0 elsewhere; of one rank, dimensions of 1 are
    repeated.

    Args:
      values: of any rank.
      mask: bool, of the same rank; dimensions of 1 are repeated.
    """
    chex.assert_equal_rank([values, mask], custom_message="values, mask")
    return jnp.where(mask, values, jnp.zeros_like(values))


def masked_sum(values: Array, mask: Array, dim: int | None = None) -> Array:
    """Sum of the unmasked values.

    Args:
      values: of any rank.
      mask: bool, of the same rank; dimensions of 1 are repeated.
      dim: dimension that is reduced; None: all of them.
    """
    return jnp.sum(select(values, mask), axis=dim)


def masked_count(mask: Array, dim: int | None = None) -> Array:
    """Number of unmasked positions, float32.

    Args:
      mask: bool, of any rank.
      dim: dimension that is reduced; None: all of them.
    """
    return jnp.sum(mask, axis=dim, dtype=jnp.float32)


def masked_mean(values: Array, mask: Array, dim: int | None = None) -> Array:
    """Mean of the unmasked values; 0 where there are none.

    Args:
      values: of any rank.
      mask: bool, of the same rank; dimensions of 1 are repeated.
      dim: dimension that is reduced; None: all of them.
    """
    return masked_sum(values, mask, dim) / jnp.maximum(masked_count(mask, dim), 1.0)


def masked_max(values: Array, mask: Array, dim: int | None = None) -> Array:
    """Largest of the unmasked values; -inf where there are none.

    Args:
      values: of any rank.
      mask: bool, of the same rank; dimensions of 1 are repeated.
      dim: dimension that is reduced; None: all of them.
    """
    chex.assert_equal_rank([values, mask], custom_message="values, mask")
    return jnp.max(jnp.where(mask, values, -jnp.inf), axis=dim)


def masked_moments(values: Array, mask: Array) -> tuple[Array, Array]:
    """Mean and population variance (divided by the count, not the count - 1) of the unmasked
    values, two scalars.

    Args:
      values: of any rank.
      mask: bool, of the same rank; dimensions of 1 are repeated.
    """
    mean = masked_mean(values, mask)
    return mean, masked_mean(jnp.square(select(values, mask) - mean), mask)


def masked_whiten(
    values: Array, mask: Array, *, keep_mean: bool = False, epsilon: float = 1e-8
) -> Array:
    """Unmasked values with variance 1 and mean 0 (or their own mean, with `keep_mean`); 0 where the
    mask is false.

    The statistics are those of the whole array given: the caller chooses whether that is a round or
    a minibatch.

    Args:
      values: of any rank.
      mask: bool, of the same rank; dimensions of 1 are repeated.
      keep_mean: True adds the mean again.
      epsilon: added to the variance.
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
