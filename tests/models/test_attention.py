"""The other ways to compute attention against the one written here; what they cannot do is refused
by name.

The cudnn kernel needs a GPU: what it is called with is looked at here, and computed by XLA in its
place.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import registry
from rlhf_jax.models.common import blocks
from rlhf_jax.ops.masked import positions_from_mask

from .families import config_of, quick_jit

OWN = {"gemma2": {"score_cap": 0.0}, "mistral": {"sliding_window": 3}}  # a cap is refused


def heads(num_queries: int, num_columns: int) -> list[jax.Array]:
    """Queries of 6 heads, keys and values of 2."""
    random = np.random.default_rng(0)
    shapes = ((2, 6, num_queries, 8), (2, 2, num_columns, 8), (2, 2, num_columns, 8))
    return [jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes]


def hide(num_queries: int, num_columns: int, window: int = 0) -> jax.Array:
    """The last queries of as many columns, of which the second row's first 4 are pads."""
    position_BM = jnp.arange(num_columns)[None] - jnp.array([0, 4])[:, None]  # of a pad below 0
    return blocks.hide_columns(position_BM, position_BM[:, num_columns - num_queries :], window)


@pytest.fixture
def calls(monkeypatch) -> list[dict]:
    """What the cudnn kernel is called with; XLA computes it."""
    asked, real = [], jax.nn.dot_product_attention

    def on_any_device(query, key, value, **settings):
        asked.append(settings | {"queries": query.shape, "keys": key.shape})
        return real(query, key, value, **(settings | {"implementation": None}))

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_any_device)
    return asked


@pytest.mark.parametrize(
    ("num_queries", "num_columns", "window"), [(7, 7, 3), (3, 13, 0), (1, 13, 5)]
)
def test_values_and_gradients_are_the_same(num_queries, num_columns, window, calls):
    """Grouped heads, ragged left padding, windows, a scale of its own; queries of a prefill, after
    a cache, and one alone.
    """
    arrays, hidden = heads(num_queries, num_columns), hide(num_queries, num_columns, window)
    sees_A = (hidden == 0).any(-1).reshape(-1)
    weight_A = jnp.where(sees_A, jnp.cos(jnp.arange(sees_A.size, dtype=jnp.float32)), 0.0)

    def weighted(arrays: list[jax.Array], how: str) -> tuple[jax.Array, jax.Array]:
        mixed = blocks.attend(*arrays, hidden, 0.3, how=how)
        return jnp.sum(weight_A[:, None] * jnp.sin(mixed)), mixed

    gradient = jax.grad(weighted, has_aux=True)
    found = quick_jit(lambda arrays: {how: gradient(arrays, how) for how in blocks.ATTENTIONS})(
        arrays
    )
    plain, expected = found.pop("xla")
    assert np.abs(expected).max() > 0.5
    assert set(found) == {"dot_product", "cudnn"}
    for gradients, mixed in found.values():
        np.testing.assert_allclose(mixed[sees_A], expected[sees_A], atol=1e-5)
        for ours, theirs in zip(gradients, plain, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
            assert np.abs(theirs).max() > 0.01


@pytest.mark.parametrize("how", ["dot_product", "cudnn"])
def test_a_query_that_sees_nothing_is_finite(how, calls):
    """Left pads, and their gradients, should a loss read them; whatever an implementation does with
    a softmax of nothing.
    """
    arrays, hidden = heads(7, 7), hide(7, 7)
    assert not (hidden == 0).any(-1).all()
    mixed, gradients = quick_jit(
        jax.value_and_grad(lambda arrays: blocks.attend(*arrays, hidden, how=how).sum())
    )(arrays)
    assert all(np.isfinite(x).all() for x in [mixed, *gradients])
    assert all(call["mask"] is not None for call in calls)


def test_no_query_is_without_a_column(monkeypatch):
    """An implementation that hides by minus infinity would give such a query nan."""
    masks = []
    monkeypatch.setattr(
        jax.nn,
        "dot_product_attention",
        lambda query, *_, mask, **__: masks.append(mask) or jnp.zeros(query.shape),
    )
    for how in ("dot_product", "cudnn"):
        blocks.attend(*heads(7, 7), hide(7, 7), how=how)
    assert len(masks) == 2
    for mask_B1LM in masks:
        assert mask_B1LM.any(-1).all()
        column = np.arange(7)
        for row, pads in enumerate((0, 4)):
            expected_LM = (column[None] <= column[:, None]) & (column[None] >= pads)
            np.testing.assert_array_equal(mask_B1LM[row, 0, pads:7, :7], expected_LM[pads:])


def test_cudnn_is_asked_for_even_lengths(calls):
    """Its gradient refuses a mask of odd ones. One query alone it is not given:
    columns before heads, as it wants them, would be a copy of the cache for every token."""
    for num_queries, num_columns in ((7, 7), (3, 12), (2, 13), (1, 13)):
        arrays = (*heads(num_queries, num_columns), hide(num_queries, num_columns))
        jax.eval_shape(partial(blocks.attend, how="cudnn"), *arrays)
    assert [(call["queries"][1], call["keys"][1]) for call in calls] == [(8, 8), (4, 12), (2, 14)]
    assert all(call["implementation"] == "cudnn" for call in calls)


@pytest.mark.skipif("gpu" not in jax.default_backend(), reason="the cudnn kernel needs a GPU")
def test_cudnn_itself_gives_the_same():
    """Ragged left padding, odd lengths, grouped heads; values and gradients to bfloat16's rounding."""
    arrays, hidden = [x.astype(jnp.bfloat16) for x in heads(7, 13)], hide(7, 13, 5)
    sees_A = (hidden == 0).any(-1).reshape(-1, 1)

    def weighted(arrays: list[jax.Array], how: str) -> tuple[jax.Array, jax.Array]:
        mixed = blocks.attend(*arrays, hidden, how=how).astype(jnp.float32)
        return jnp.sum(jnp.where(sees_A, jnp.sin(mixed), 0.0)), mixed

    gradient = jax.jit(jax.grad(weighted, has_aux=True), static_argnums=1)
    (ours, mixed), (theirs, expected) = gradient(arrays, "cudnn"), gradient(arrays, "xla")
    for one, other in zip(
        [jnp.where(sees_A, mixed, 0), *ours], [jnp.where(sees_A, expected, 0), *theirs], strict=True
    ):
        np.testing.assert_allclose(one.astype(jnp.float32), other.astype(jnp.float32), atol=0.05)


@pytest.mark.parametrize(
    "name", ["gpt_neox", "mistral", "gemma2"]
)  # those that mix values each in its own way
def test_families_compute_the_same(name):
    """Prefill into a cache, a token after it, and both at once without one; ragged left padding."""
    module, own = registry.find("models", name), OWN.get(name, {})
    models = [
        module.make(dataclasses.replace(config_of(name), attention=how, **own))
        for how in ("xla", "dot_product")
    ]
    shapes = jax.eval_shape(models[0].init, jax.random.key(0))
    random = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: jnp.asarray((x.ndim == 1) + 0.2 * random.standard_normal(x.shape, np.float32)),
        shapes,
    )
    tokens_BL = jnp.asarray(random.integers(0, 11, (3, 7)))
    mask_BL = jnp.arange(7)[None] >= jnp.array([0, 2, 5])[:, None]
    positions_BL = positions_from_mask(mask_BL)

    def states(model) -> list[jax.Array]:
        def run(params: dict) -> tuple[jax.Array, ...]:
            inputs = (tokens_BL, positions_BL, mask_BL)
            first, cache = model.apply(params, *(x[:, :5] for x in inputs), model.init_cache(3, 11))
            second, _ = model.apply(params, *(x[:, 5:] for x in inputs), cache)
            return jnp.concatenate([first, second], axis=1), model.apply(params, *inputs)[0]

        return [np.asarray(hidden)[mask_BL] for hidden in quick_jit(run)(params)]

    for ours, theirs in zip(states(models[1]), states(models[0]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_what_is_written_here_is_not_jax_s(calls):
    blocks.attend(*heads(7, 7), hide(7, 7))
    assert not calls


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "llama",
            {"attention": "flash"},
            "attention is 'flash'; accepted: xla, dot_product, cudnn",
        ),
        (
            "llama",
            {"attention": "cudnn"},
            "attention is 'cudnn' and dtype 'float32'; accepted with it: bfloat16",
        ),
        (
            "gpt_neox",
            {"attention": "cudnn", "dtype": "bfloat16", "num_heads": 16},
            "a head's width 4; accepted with it",
        ),
        (
            "qwen3",
            {"attention": "cudnn", "dtype": "bfloat16", "head_width": 264},
            "a head's width 264; accepted with it",
        ),
        (
            "gemma2",
            {"attention": "cudnn", "dtype": "bfloat16"},
            "attention is 'cudnn', which cannot cap scores",
        ),
        (
            "gemma2",
            {"attention": "dot_product"},
            "attention is 'dot_product', which cannot cap scores",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(family, changes, message):
    with pytest.raises(ValueError, match=message):
        registry.find("models", family).make(dataclasses.replace(config_of(family), **changes))


def test_cudnn_is_accepted_in_bfloat16():
    model = registry.find("models", "gpt_neox").make(
        dataclasses.replace(config_of("gpt_neox"), attention="cudnn", dtype="bfloat16")
    )
    assert model.config.attention == "cudnn"
