"""The value head: a linear map of the backbone's hidden states, in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import gpt_neox
from rlhf_jax.models.common import value_head
from rlhf_jax.ops.masked import positions_from_mask


@pytest.fixture(scope="module")
def backbone():
    return gpt_neox.make(
        dataclasses.replace(gpt_neox.PRESETS["quickstart"], vocab_size=11, num_layers=1)
    )


def test_values_are_the_linear_map_of_hidden_states(backbone):
    model = value_head.make(backbone)
    params = jax.jit(model.init)(jax.random.key(0))
    params["value_head"]["bias"] = jnp.array([0.5])
    tokens, mask = jnp.arange(6).reshape(2, 3), jnp.ones((2, 3), bool)
    hidden, cache = jax.jit(model.apply)(params, tokens, positions_from_mask(mask), mask)
    assert cache is None
    expected, _ = jax.jit(backbone.apply)(
        params["backbone"], tokens, positions_from_mask(mask), mask
    )
    np.testing.assert_array_equal(hidden, expected)
    linear = (
        np.asarray(hidden, np.float64) @ np.asarray(params["value_head"]["kernel"], np.float64)
        + 0.5
    )
    np.testing.assert_allclose(model.value(params, hidden), linear[..., 0], atol=1e-5)
    assert model.value(params, hidden[:, -1]).shape == (2,)
    assert model.value(params, hidden.astype(jnp.bfloat16)).dtype == jnp.float32


def test_init_from_takes_the_backbone_as_it_is(backbone):
    params = jax.jit(backbone.init)(jax.random.key(1))
    made = value_head.make(backbone).init_from(params, jax.random.key(2))
    assert made["backbone"] is params
    assert float(made["value_head"]["bias"][0]) == 0.0
    # 65 draws of deviation 1/sqrt(65): their mean square is within a factor of 2 of 1/65
    assert 0.5 / 65 < float(jnp.mean(jnp.square(made["value_head"]["kernel"]))) < 2 / 65


def test_cache_and_axes_are_those_of_the_backbone(backbone):
    model = value_head.make(backbone)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    axes = model.logical_axes(shapes)
    assert axes["value_head"] == {"kernel": ("embed", None), "bias": (None,)}
    assert axes["backbone"] == backbone.logical_axes(shapes["backbone"])
    assert jax.tree.map(jnp.shape, model.init_cache(2, 5)) == jax.tree.map(
        jnp.shape, backbone.init_cache(2, 5)
    )
    assert model == value_head.make(backbone)
    assert hash(model) == hash(value_head.make(backbone))
