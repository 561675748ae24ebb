"""Tests of what every decoder family computes, on each file of `models/` that has presets."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from rlhf_jax import registry
from rlhf_jax.ops.masked import positions_from_mask

from .families import FAMILIES, Family, V, config_of, quick_jit

B, L = 3, 7
PADS = (0, 2, 5)


def ragged() -> tuple[jax.Array, jax.Array]:
    """Tokens that differ within each row, and masks with 0, 2 and 5 pads on the left."""
    tokens_BL = jnp.stack([jax.random.permutation(jax.random.key(row), V)[:L] for row in range(B)])
    return tokens_BL, jnp.arange(L)[None, :] >= jnp.array(PADS)[:, None]


def hidden_of(family: Family, tokens_BL: jax.Array, mask_BL: jax.Array) -> np.ndarray:
    return np.asarray(
        family.apply(family.params, tokens_BL, positions_from_mask(mask_BL), mask_BL)[0]
    )


def test_walks_all_families():
    older = {"gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma2"}
    assert older | {"gemma3", "olmo2", "olmo3", "smollm3", "phi3"} <= set(FAMILIES)
    assert not {"blocks", "value_head"} & set(FAMILIES)


def test_a_model_knows_its_family():
    """Its file, though families share classes: an export is named by it."""
    assert {
        name: registry.find("models", name).make(config_of(name)).family for name in FAMILIES
    } == {name: name for name in FAMILIES}


def test_prefill_is_the_full_forward(family):
    tokens_BL, mask_BL = ragged()
    cache = family.model.init_cache(B, 13)
    hidden_BLD, cache = family.apply(
        family.params, tokens_BL, positions_from_mask(mask_BL), mask_BL, cache
    )
    np.testing.assert_allclose(
        np.asarray(hidden_BLD)[mask_BL], hidden_of(family, tokens_BL, mask_BL)[mask_BL], atol=1e-5
    )
    assert int(cache.column) == L
    positions_BL = np.where(mask_BL, positions_from_mask(mask_BL), -1)
    expected = np.pad(positions_BL, ((0, 0), (0, 13 - L)), constant_values=-1)
    np.testing.assert_array_equal(cache.position_BM, expected)


def test_prefill_traced_with_its_empty_cache_is_the_full_forward(family):
    """A cache that is known to be empty is not read; what is kept must be the same."""
    tokens_BL, mask_BL = ragged()
    inputs = (family.params, tokens_BL, positions_from_mask(mask_BL), mask_BL)
    together = quick_jit(
        lambda *inputs: family.model.apply(*inputs, family.model.init_cache(B, 13))
    )
    hidden_BLD, cache = together(*inputs)
    np.testing.assert_allclose(
        np.asarray(hidden_BLD)[mask_BL], hidden_of(family, tokens_BL, mask_BL)[mask_BL], atol=1e-5
    )
    _, expected = family.apply(*inputs, jax.tree.map(jnp.asarray, family.model.init_cache(B, 13)))
    for ours, theirs in zip(
        cache.keys + cache.values, expected.keys + expected.values, strict=True
    ):
        # Deeper layers of a pad row attend to whatever columns there are, so that pads may differ.
        seen = np.pad(mask_BL, ((0, 0), (0, 13 - L)))[:, None, :, None]
        np.testing.assert_allclose(np.where(seen, ours, 0), np.where(seen, theirs, 0), atol=1e-5)
    np.testing.assert_array_equal(cache.position_BM, expected.position_BM)
    assert int(cache.column) == int(expected.column) == L


@pytest.mark.parametrize("prefilled", [1, 3])
def test_decoding_a_token_at_a_time_is_the_full_forward(family, prefilled):
    tokens_BL, mask_BL = ragged()
    positions_BL = positions_from_mask(mask_BL)
    expected = hidden_of(family, tokens_BL, mask_BL)
    cache, pieces = family.model.init_cache(B, 13), []
    for start, stop in [(0, prefilled)] + [(column, column + 1) for column in range(prefilled, L)]:
        piece = (x[:, start:stop] for x in (tokens_BL, positions_BL, mask_BL))
        hidden, cache = family.apply(family.params, *piece, cache)
        pieces.append(hidden)
    actual = np.concatenate(pieces, axis=1)
    np.testing.assert_allclose(actual[mask_BL], expected[mask_BL], atol=1e-4)
    logprobs = [
        np.asarray(family.logprobs(family.params, hidden))[mask_BL] for hidden in (actual, expected)
    ]
    np.testing.assert_allclose(logprobs[0], logprobs[1], atol=1e-4)


def test_a_prompt_in_two_pieces_is_the_full_forward(family):
    tokens_BL, mask_BL = ragged()
    positions_BL = positions_from_mask(mask_BL)
    cache = family.model.init_cache(B, 13)
    _, cache = family.apply(
        family.params, tokens_BL[:, :3], positions_BL[:, :3], mask_BL[:, :3], cache
    )
    hidden, _ = family.apply(
        family.params, tokens_BL[:, 3:], positions_BL[:, 3:], mask_BL[:, 3:], cache
    )
    expected = hidden_of(family, tokens_BL, mask_BL)[:, 3:]
    np.testing.assert_allclose(
        np.asarray(hidden)[mask_BL[:, 3:]], expected[mask_BL[:, 3:]], atol=1e-5
    )


@pytest.mark.parametrize("pads", [1, 17])
def test_left_padding_changes_nothing(family, pads):
    tokens_BL, everything = ragged()[0], jnp.ones((B, L), bool)
    padded, mask = (jnp.pad(x, ((0, 0), (pads, 0))) for x in (tokens_BL, everything))
    expected = hidden_of(family, tokens_BL, everything)
    np.testing.assert_allclose(hidden_of(family, padded, mask)[:, pads:], expected, atol=1e-5)


def test_left_padding_moves_no_cached_key(family):
    """Relative distances hide wrong positions from hidden states; the rotated keys themselves do
    not.
    """
    tokens_BL, everything = ragged()[0], jnp.ones((B, L), bool)
    padded, mask = (jnp.pad(x, ((0, 0), (2, 0))) for x in (tokens_BL, everything))
    caches = [
        family.apply(family.params, x, positions_from_mask(m), m, family.model.init_cache(B, 13))[1]
        for x, m in ((tokens_BL, everything), (padded, mask))
    ]
    for plain, shifted in zip(caches[0].keys, caches[1].keys, strict=True):
        np.testing.assert_allclose(shifted[:, :, 2 : L + 2], plain[:, :, :L], atol=1e-5)


def test_positions_enter_by_their_differences_alone(family):
    tokens_BL, everything = ragged()[0], jnp.ones((B, L), bool)
    positions_BL = positions_from_mask(everything)
    plain, shifted, stretched = (
        np.asarray(family.apply(family.params, tokens_BL, x, everything)[0])
        for x in (positions_BL, positions_BL + 5, positions_BL * 3)
    )
    np.testing.assert_allclose(shifted, plain, atol=1e-5)
    assert np.abs(stretched - plain).max() > 0.01


@pytest.mark.parametrize("side", ["left", "right"])
def test_garbage_under_the_mask_changes_nothing(family, side):
    tokens_BL, mask_BL = ragged()
    mask_BL = mask_BL if side == "left" else mask_BL[:, ::-1]
    garbage = jnp.where(mask_BL, tokens_BL, (tokens_BL * 7 + 3) % V)
    assert (garbage != tokens_BL).any()
    expected = hidden_of(family, tokens_BL, mask_BL)
    np.testing.assert_array_equal(hidden_of(family, garbage, mask_BL)[mask_BL], expected[mask_BL])


def test_gradients_are_causal_and_stop_at_the_mask(family):
    """Column i's hidden state depends on the embedding of column j's token where j <= i is
    unmasked, nowhere else.
    """
    tokens_BL, _ = ragged()
    mask_BL = (jnp.arange(L) >= 2)[None]
    probe_D = jax.random.normal(jax.random.key(1), (family.model.width,))
    axes = flatten_dict(family.model.logical_axes(family.params))
    path = next(path for path, names in axes.items() if names == ("vocab", "embed"))
    flat = flatten_dict(family.params)

    def projection(embedding: jax.Array, column: int) -> jax.Array:
        params = unflatten_dict(flat | {path: embedding})
        hidden, _ = family.model.apply(params, tokens_BL[:1], positions_from_mask(mask_BL), mask_BL)
        return hidden[0, column] @ probe_D

    gradient = quick_jit(jax.grad(projection))
    rows = [gradient(flat[path], column)[tokens_BL[0]] for column in range(L)]
    reaches_LL = np.abs(np.stack(rows)).max(-1) > 0
    expected_LL = np.tril(np.ones((L, L), bool)) & np.asarray(mask_BL)
    np.testing.assert_array_equal(reaches_LL[2:], expected_LL[2:])


def test_rows_without_a_token_are_finite(family):
    """Their values and gradients too, should a loss read them."""
    tokens_BL, mask_BL = ragged()
    mask_BL = mask_BL.at[1].set(False)
    value, gradient = family.gradient(family.params, tokens_BL, mask_BL, jnp.ones((B, L)))
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("left", [1, 3])
def test_gradients_do_not_see_padding(family, left):
    """4 tokens with 0 pads on the left and 3 on the right give the gradient that 1 and 2, and 3 and
    0 give.
    """
    tokens_B4 = ragged()[0][:, :4]

    def gradient(left: int) -> tuple[jax.Array, dict]:
        tokens = jnp.pad(tokens_B4, ((0, 0), (left, 3 - left)), constant_values=left)
        column_L = jnp.arange(L)
        mask = jnp.broadcast_to((column_L >= left) & (column_L < left + 4), (B, L))
        return family.gradient(family.params, tokens, mask, mask.astype(jnp.float32))

    (value, plain), (other_value, other) = gradient(0), gradient(left)
    np.testing.assert_allclose(other_value, value, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(other), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_bfloat16_compute_is_near_and_logits_are_float32(family):
    tokens_BL, mask_BL = ragged()
    model = family.module.make(dataclasses.replace(family.model.config, dtype="bfloat16"))
    cache = model.init_cache(B, L)
    hidden, cache = quick_jit(model.apply)(
        family.params, tokens_BL, positions_from_mask(mask_BL), mask_BL, cache
    )
    assert hidden.dtype == jnp.bfloat16
    assert all(x.dtype == jnp.bfloat16 for x in cache.keys + cache.values)
    assert model.head(family.params, hidden).dtype == jnp.float32
    expected = np.asarray(family.logprobs(family.params, hidden_of(family, tokens_BL, mask_BL)))
    actual = np.asarray(jax.nn.log_softmax(model.head(family.params, hidden)))
    difference = np.abs(actual - expected)[mask_BL]
    assert 0 < difference.max() < 0.2
    assert difference.mean() < 0.03


def test_head_takes_any_leading_dimensions(family):
    hidden = jax.random.normal(jax.random.key(3), (B, L, family.model.width))
    whole = family.logprobs(family.params, hidden)
    assert whole.shape == (B, L, V)
    np.testing.assert_allclose(family.logprobs(family.params, hidden[1, 2]), whole[1, 2], atol=1e-5)
