"""Rotary positions and attention, against numbers worked by hand and naive float64 loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models.common import blocks
from rlhf_jax.ops.masked import positions_from_mask


def test_rotary_frequencies_by_hand():
    """theta 100, 4 dimensions: 100^0 = 1 and 100^(-2/4) = 0.1 radians a position."""
    np.testing.assert_allclose(blocks.rotary_frequencies(4, 100.0), [1.0, 0.1])


def test_rotate_by_hand():
    """Frequencies 1 and 0.1 at position 3: pairs (x0, x2) and (x1, x3) turn by 3 and 0.3; dimension
    4 is left alone.

    (1, 0) by 3 is (cos 3, sin 3); (0, 1) by 0.3 is (-sin 0.3, cos 0.3).
    """
    tables = blocks.rotary_tables(jnp.array([[3]]), np.array([1.0, 0.1]))
    turned = blocks.rotate(jnp.array([1.0, 0.0, 0.0, 1.0, 5.0]).reshape(1, 1, 1, 5), tables)
    expected = [math.cos(3), -math.sin(0.3), math.sin(3), math.cos(0.3), 5.0]
    np.testing.assert_allclose(turned[0, 0, 0], expected, atol=1e-6)


def test_positions_of_ragged_left_padding_turn_from_the_first_token():
    """Position ids must be absolute within a row: with 0 and 2 pads the last of 4 columns stands at
    3 and at 1.

    Hidden states cannot show this (only differences of positions enter them); the turned vectors
    do. (1, 0) at frequency 1: (cos 3, sin 3) = (-0.98999, 0.14112) and (cos 1, sin 1) = (0.54030,
    0.84147).
    """
    mask_BL = jnp.arange(4)[None, :] >= jnp.array([0, 2])[:, None]
    tables = blocks.rotary_tables(positions_from_mask(mask_BL), np.array([1.0]))
    ones = jnp.broadcast_to(jnp.array([1.0, 0.0]), (2, 1, 4, 2))
    turned = blocks.rotate(ones, tables)[:, 0, -1]
    np.testing.assert_allclose(turned, [[-0.98999, 0.14112], [0.54030, 0.84147]], atol=1e-5)


def test_rotated_products_depend_on_the_difference_of_positions():
    random = np.random.default_rng(0)
    query, key = (jnp.asarray(random.standard_normal((1, 1, 1, 6)), jnp.float32) for _ in range(2))
    frequencies = blocks.rotary_frequencies(4, 10.0)

    def product(query_position: int, key_position: int) -> float:
        turned = [
            blocks.rotate(x, blocks.rotary_tables(jnp.array([[position]]), frequencies))
            for x, position in ((query, query_position), (key, key_position))
        ]
        return float(jnp.sum(turned[0] * turned[1]))

    assert product(7, 4) == pytest.approx(product(103, 100), abs=1e-4)
    assert abs(product(7, 4) - product(7, 5)) > 1e-2


def hide(visible) -> jax.Array:
    return jnp.where(jnp.asarray(visible), 0.0, blocks.HIDDEN_SCORE)


def naive_attention(queries, keys, values, visible) -> np.ndarray:
    """One query head at a time, float64; query head h reads key-value head h // (H / J)."""
    num_rows, num_heads, length, width = queries.shape
    out = np.zeros((num_rows, length, num_heads, width))
    for b, h, i in np.ndindex(num_rows, num_heads, length):
        j = h // (num_heads // keys.shape[1])
        seen = np.flatnonzero(visible[b, i])
        scores = np.array([queries[b, h, i] @ keys[b, j, m] / math.sqrt(width) for m in seen])
        weights = np.exp(scores - scores.max())
        out[b, i, h] = (weights / weights.sum()) @ values[b, j, seen]
    return out.reshape(num_rows, length, num_heads * width)


@pytest.mark.parametrize("num_kv_heads", [1, 3, 6])
@pytest.mark.parametrize("length", [1, 5])
def test_attention_is_the_naive_loop(num_kv_heads, length):
    random = np.random.default_rng(1)
    queries = random.standard_normal((2, 6, length, 4))
    keys, values = (random.standard_normal((2, num_kv_heads, 7, 4)) for _ in range(2))
    visible = random.random((2, length, 7)) < 0.6
    visible[..., 0] = True
    actual = blocks.attend(
        *(jnp.asarray(x, jnp.float32) for x in (queries, keys, values)), hide(visible)
    )
    expected = naive_attention(queries, keys, values, visible)
    np.testing.assert_allclose(actual.reshape(2, length, 24), expected, atol=1e-5)


@pytest.mark.parametrize("length", [193, 515])
def test_blocks_of_queries_are_one_attention(length):
    """Long rows are cut into blocks that leave out the columns after them (2 and 4 of them, of
    unequal lengths here).
    """
    random = np.random.default_rng(5)
    queries, keys, values = (
        jnp.asarray(random.standard_normal((1, 1, length, 2)), jnp.float32) for _ in range(3)
    )
    column_1M = jnp.arange(length)[None]
    hidden = blocks.hide_columns(jnp.where(column_1M >= 7, column_1M, -1), column_1M)
    scores = (
        np.asarray(queries)[0, 0] @ np.asarray(keys)[0, 0].T / math.sqrt(2) + np.asarray(hidden)[0]
    )
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights @ np.asarray(values)[0, 0] / weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(
        jax.jit(blocks.attend)(queries, keys, values, hidden)[7:], expected[7:], atol=1e-5
    )


def test_grouped_queries_are_repeated_keys_and_values():
    random = np.random.default_rng(2)
    queries = jnp.asarray(random.standard_normal((2, 6, 5, 4)), jnp.float32)
    keys, values = (
        jnp.asarray(random.standard_normal((2, 2, 5, 4)), jnp.float32) for _ in range(2)
    )
    visible = jnp.tril(jnp.ones((5, 5), bool))[None].repeat(2, axis=0)
    grouped = blocks.attend(queries, keys, values, hide(visible))
    repeated = blocks.attend(
        queries, jnp.repeat(keys, 3, axis=1), jnp.repeat(values, 3, axis=1), hide(visible)
    )
    np.testing.assert_allclose(grouped, repeated, atol=1e-6)


def test_attention_gradient_is_that_of_finite_differences():
    random = np.random.default_rng(3)
    queries, keys, values = (random.standard_normal((1, 2, 3, 4)) for _ in range(3))
    visible = np.tril(np.ones((1, 3, 3), bool))
    probe = random.standard_normal((1, 3, 8))

    def loss(*arrays: jax.Array) -> jax.Array:
        return jnp.sum(
            blocks.attend(*arrays, hide(visible)).reshape(1, 3, 8) * jnp.asarray(probe, jnp.float32)
        )

    arrays = (queries, keys, values)
    gradients = jax.grad(loss, argnums=(0, 1, 2))(*(jnp.asarray(x, jnp.float32) for x in arrays))
    for place, gradient in enumerate(gradients):
        direction = random.standard_normal(arrays[place].shape)
        ends = []
        for step in (1e-5, -1e-5):
            moved = [
                x + step * direction if index == place else x for index, x in enumerate(arrays)
            ]
            ends.append((naive_attention(*moved, visible) * probe).sum())
        assert float(np.sum(np.asarray(gradient) * direction)) == pytest.approx(
            (ends[0] - ends[1]) / 2e-5, rel=1e-3
        )


def test_attention_of_large_scores_is_finite():
    big = jnp.full((1, 1, 3, 4), 1e4)
    attended = blocks.attend(
        big, big, jnp.ones((1, 1, 3, 4)), hide(np.tril(np.ones((1, 3, 3), bool)))
    )
    np.testing.assert_allclose(attended, np.ones((3, 4)), rtol=1e-6)


def test_hidden_columns_by_hand():
    """Two queries at positions 0 and 1 of a cache of 4 columns, the first of which is a pad."""
    hidden = (
        blocks.hide_columns(jnp.array([[-1, 0, 1, -1]]), jnp.array([[0, 1]])) == blocks.HIDDEN_SCORE
    )
    np.testing.assert_array_equal(hidden, [[[True, False, True, True], [True, False, False, True]]])


def test_hidden_columns_of_a_ring_by_hand():
    """Columns of a ring that has wrapped: positions 4 and 5, then a column of no token, then 2
    and 3. The query at position 4 sees neither 5 nor, with a window of 2, what is before 3. A pad,
    of position -1, sees nothing.
    """
    position_BM, query_BL = jnp.array([[4, 5, -1, 2, 3]]), jnp.array([[4, -1]])
    everything = blocks.hide_columns(position_BM, query_BL) == 0
    np.testing.assert_array_equal(everything, [[[True, False, False, True, True], [False] * 5]])
    windowed = blocks.hide_columns(position_BM, query_BL, 2) == 0
    np.testing.assert_array_equal(windowed, [[[True, False, False, False, True], [False] * 5]])


def test_windows_by_hand():
    """A window of 2 leaves each query its own position and the one before, whether columns begin a
    row or follow a cache.

    With 5 columns, of which the first is a pad; then the last two queries alone, as after a prefill
    of 3.
    """
    position_BM = jnp.array([[-1, 0, 1, 2, 3]])
    expected = [
        [False, False, False, False, False],
        [False, True, False, False, False],
        [False, True, True, False, False],
        [False, False, True, True, False],
        [False, False, False, True, True],
    ]
    found = blocks.hide_columns(position_BM, position_BM, 2)
    np.testing.assert_array_equal(found == 0, [expected])
    last = blocks.hide_columns(position_BM, position_BM[:, 3:], 2)
    np.testing.assert_array_equal(last == 0, [expected[3:]])
    np.testing.assert_array_equal(
        blocks.hide_columns(position_BM, position_BM, 5),
        blocks.hide_columns(position_BM, position_BM),
    )


def test_soft_cap_by_hand():
    """3 tanh(1) = 2.2847825, 3 tanh(100 / 3) = 3; near 0 it is the identity."""
    np.testing.assert_allclose(
        blocks.soft_cap(jnp.array([3.0, -3.0, 100.0]), 3.0), [2.2847825, -2.2847825, 3.0]
    )
    np.testing.assert_allclose(blocks.soft_cap(jnp.array([1e-3]), 3.0), [1e-3], rtol=1e-6)


def test_capped_scores_with_a_scale_by_hand():
    """One query of 2 and keys of 3, -3 and (hidden) 9, scale 1/2: scores 3 and -3, capped at 3 to
    ±2.2847825.

    Weights e^2.2847825 : e^-2.2847825 = 96.453 : 1 of values 1 and 0: 0.98974. A hidden score is
    not capped into sight.
    """
    queries, keys = jnp.full((1, 1, 1, 1), 2.0), jnp.array([3.0, -3.0, 9.0]).reshape(1, 1, 3, 1)
    values = jnp.array([1.0, 0.0, 7.0]).reshape(1, 1, 3, 1)
    mixed = blocks.attend(queries, keys, values, hide([[[True, True, False]]]), scale=0.5, cap=3.0)
    np.testing.assert_allclose(mixed, [[0.98974]], atol=1e-5)


def test_gelu_by_the_formula():
    """x Φ(x) with Φ(x) = (1 + erf(x / sqrt 2)) / 2; bfloat16 is computed in float32 and rounded
    once.
    """
    x = np.linspace(-6, 6, 41, dtype=np.float32)
    expected = np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(float)])
    np.testing.assert_allclose(blocks.gelu(jnp.asarray(x)), expected, atol=1e-6)
    rounded = np.asarray(blocks.gelu(jnp.asarray(x, jnp.bfloat16)), np.float32)
    exact = np.asarray(
        blocks.gelu(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)).astype(jnp.bfloat16),
        np.float32,
    )
    np.testing.assert_array_equal(rounded, exact)


def test_logits_are_summed_and_kept_in_float32():
    """4099 products of 1 and 1/256 are 16.01171875; bfloat16 has 16 and 16.125 next to it."""
    logits = blocks.logits(jnp.ones((2, 4099), jnp.bfloat16), jnp.full((4099, 3), 1 / 256))
    np.testing.assert_allclose(logits, np.full((2, 3), 4099 / 256), rtol=1e-6)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize(("norm", "centered"), [(blocks.LayerNorm, True), (blocks.RMSNorm, False)])
def test_norms_by_the_formula(norm, centered):
    x = np.random.default_rng(4).standard_normal((5, 7)) * 3 + 1
    scale, bias = np.linspace(0.5, 2, 7), np.linspace(-1, 1, 7)
    params = {"scale": jnp.asarray(scale, jnp.float32)} | (
        {"bias": jnp.asarray(bias, jnp.float32)} if centered else {}
    )
    actual = norm(1e-5).apply({"params": params}, jnp.asarray(x, jnp.float32))
    y = x - x.mean(-1, keepdims=True) if centered else x
    expected = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * scale + (
        bias if centered else 0
    )
    np.testing.assert_allclose(actual, expected, atol=1e-5)
