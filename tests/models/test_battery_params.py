"""Params of every decoder family: axes, draws, shapes of the presets, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import registry
from rlhf_jax.models.common.family import find
from tests import components

from .families import FAMILIES, SUBJECTS, V, config_of, quick_jit

AXIS_NAMES = {"vocab", "embed", "heads", "kv_heads", "mlp", None}


def test_logical_axes_match_the_params(family):
    axes = family.model.logical_axes(family.params)
    is_axes = lambda x: isinstance(x, tuple)  # noqa: E731
    assert jax.tree.structure(axes, is_leaf=is_axes) == jax.tree.structure(family.params)
    named = zip(jax.tree.leaves(axes, is_leaf=is_axes), jax.tree.leaves(family.params), strict=True)
    for names, param in named:
        assert len(names) == param.ndim
        assert set(names) <= AXIS_NAMES
        sizes = {"vocab": V, "embed": family.model.width, "mlp": family.model.config.ffn_width}
        assert all(
            sizes.get(name, size) == size for name, size in zip(names, param.shape, strict=True)
        )


def test_logical_axes_refuses_an_unknown_param(family):
    with pytest.raises(KeyError, match="adapter"):
        family.model.logical_axes(family.params | {"adapter": {"kernel": jnp.zeros((2, 3))}})


def test_params_are_float32_one_entry_a_layer(family):
    assert {leaf.dtype for leaf in jax.tree.leaves(family.params)} == {np.dtype("float32")}
    layers = [name for name in family.params if name.startswith("layer_")]
    assert sorted(layers) == [f"layer_{index}" for index in range(family.model.config.num_layers)]


def test_init_draws_matrices_and_leaves_vectors(family):
    """Each matrix has numbers of its own, of mean 0; deviation 2 / (N sqrt(D)) into the residual,
    sqrt(2 / 5D) elsewhere.
    """
    if components.own("models"):
        pytest.skip("a family of one's own may draw its params otherwise")
    init = quick_jit(family.model.init)
    params, other = init(jax.random.key(0)), init(jax.random.key(1))
    flat, seen = jax.tree_util.tree_leaves_with_path(params), []
    for (path, leaf), another in zip(flat, jax.tree.leaves(other), strict=True):
        if leaf.ndim == 1:
            np.testing.assert_array_equal(leaf, 1.0 if "scale" in str(path[-1]) else 0.0)
            continue
        names = {getattr(part, "key", None) for part in path}
        residual = names & {"dense", "dense_4h_to_h", "o_proj", "down_proj"}
        deviation = (
            2 / (family.model.config.num_layers * np.sqrt(64))
            if residual
            else np.sqrt(2 / (5 * 64))
        )
        assert float(jnp.std(leaf)) == pytest.approx(deviation, rel=0.1)
        assert abs(float(jnp.mean(leaf))) < 5 * deviation / np.sqrt(leaf.size)
        assert not np.isclose(leaf, another).all()
        seen.append(float(leaf[0, 0] / deviation))
    assert len(set(seen)) == len(seen)


def test_is_a_frozen_value_that_jit_may_close_over(family):
    again = family.module.make(family.model.config)
    assert again == family.model
    assert hash(again) == hash(family.model)
    with pytest.raises(dataclasses.FrozenInstanceError):
        again.config = None


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", SUBJECTS)
def test_tied_embeddings_are_one_array(name, tied):
    if not hasattr(config_of(name), "tie_embeddings"):
        pytest.skip("a family of one's own that does not say how its embeddings are tied")
    model = find(name).make(config_of(name, tie_embeddings=tied))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(V in leaf.shape for leaf in jax.tree.leaves(shapes)) == (1 if tied else 2)
    assert jax.eval_shape(
        model.head, shapes, jax.ShapeDtypeStruct((2, model.width), jnp.float32)
    ).shape == (2, V)


@pytest.mark.parametrize(("name", "preset"), [(f, p) for f in SUBJECTS for p in find(f).presets])
def test_presets_have_shapes(name, preset):
    """Without memory: params, hidden states, cache and logits of every size."""
    module = find(name)
    config = dataclasses.replace(
        module.presets[preset], num_layers=1
    )  # all of them: `test_published_number_of_params`
    model = module.make(dataclasses.replace(config, vocab_size=config.vocab_size or V))
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((2, 3), jnp.int32)
    mask = jax.ShapeDtypeStruct((2, 3), jnp.bool_)
    cache = jax.eval_shape(lambda: model.init_cache(2, 5))
    hidden, cache = jax.eval_shape(model.apply, params, tokens, tokens, mask, cache)
    assert hidden.shape == (2, 3, config.width)
    assert len(cache.keys) == config.num_layers
    head_width = config.head_width or config.width // config.num_heads
    assert cache.keys[0].shape == (2, config.num_kv_heads, 5, head_width)
    assert jax.eval_shape(model.head, params, hidden).shape == (2, 3, model.vocab_size)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"width": 65}, "width 65 is not a multiple of num_heads 4"),
        ({"dtype": "float16"}, "dtype is 'float16'; accepted: float32, bfloat16"),
    ],
)
def test_make_names_what_does_not_fit(name, changes, message):
    config = config_of(name)
    if name != "gpt_neox":
        changes = {"head_width": 0} | changes
    with pytest.raises(ValueError, match=message):
        registry.find("models", name).make(dataclasses.replace(config, **changes))
