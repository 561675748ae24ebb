"""Masked sums against hand-worked numbers; what the mask hides, NaN included, reaches neither
results nor gradients.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import masked

T, F = True, False
VALUES = np.array([[1.0, 2.0, np.nan], [5.0, np.inf, 4.0]], np.float32)
MASK = np.array([[T, T, F], [T, F, T]])


def test_sum_and_mean_by_hand():
    # Rows: 1 + 2 = 3 of two values; 5 + 4 = 9 of two values. Together 12 of four.
    np.testing.assert_array_equal(masked.masked_sum(VALUES, MASK, 1), [3.0, 9.0])
    np.testing.assert_array_equal(masked.masked_mean(VALUES, MASK, 1), [1.5, 4.5])
    assert masked.masked_mean(VALUES, MASK) == 3.0
    assert masked.masked_max(VALUES, MASK) == 5.0
    np.testing.assert_array_equal(masked.masked_count(MASK, 0), [2.0, 1.0, 1.0])


def test_nothing_unmasked_gives_zero():
    nothing = np.zeros_like(MASK)
    assert masked.masked_mean(VALUES, nothing) == 0.0
    np.testing.assert_array_equal(masked.masked_whiten(VALUES, nothing), np.zeros_like(VALUES))


def test_moments_and_whitening_by_hand():
    # 1, 2, 5, 4: mean 3, variance (4 + 1 + 4 + 1) / 4 = 2.5.
    mean, variance = masked.masked_moments(VALUES, MASK)
    assert (mean, variance) == (3.0, 2.5)
    expected = np.array([[-2, -1, 0], [2, 0, 1]]) / np.sqrt(2.5)
    np.testing.assert_allclose(masked.masked_whiten(VALUES, MASK), expected, rtol=1e-6)
    kept = masked.masked_whiten(VALUES, MASK, keep_mean=True)
    np.testing.assert_allclose(kept, np.where(MASK, expected + 3, 0), rtol=1e-6)


@pytest.mark.parametrize("name", ["masked_sum", "masked_mean", "masked_max", "masked_whiten"])
def test_gradient_never_meets_what_is_masked(name):
    def scalar(values):
        return jnp.sum(getattr(masked, name)(values, MASK) * 1.5)

    gradients = [
        jax.grad(scalar)(jnp.where(MASK, VALUES, garbage))
        for garbage in (0.0, np.nan, np.inf, 1e30)
    ]
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, gradients[0])
        np.testing.assert_array_equal(gradient[~MASK], [0.0, 0.0])
        assert np.isfinite(gradient).all()


def test_positions_count_unmasked_tokens_only():
    mask_BL = np.array([[F, F, T, T, F], [T, T, T, T, T], [T, F, T, F, T]])
    positions_BL = masked.positions_from_mask(mask_BL)
    np.testing.assert_array_equal(positions_BL, [[0, 0, 0, 1, 1], [0, 1, 2, 3, 4], [0, 0, 1, 1, 2]])
    assert positions_BL.dtype == jnp.int32


def test_last_index_is_of_the_last_unmasked_column():
    mask_BC = np.array([[T, T, F], [T, T, T], [T, F, F], [F, F, F], [F, T, F]])
    np.testing.assert_array_equal(masked.last_index(mask_BC), [1, 2, 0, -1, 1])
