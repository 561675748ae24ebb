"""Shapes of models: every family's params, published shapes by name, and what a device of a mesh
holds.
"""

from dataclasses import replace

import jax
import numpy as np
import pytest

from rlhf_jax import registry
from rlhf_jax.devices import sharding
from rlhf_jax.devices.mesh import Config, make_mesh
from rlhf_jax.models import llama
from rlhf_jax.models.common import value_head
from rlhf_jax.planner.costs import shapes

FAMILIES = [
    name for name in registry.names("models") if hasattr(registry.find("models", name), "PRESETS")
]


@pytest.mark.parametrize("family", FAMILIES)
def test_params_of_every_family_are_counted(family):
    module = registry.find("models", family)
    model = module.make(module.PRESETS["tiny"])
    params = jax.eval_shape(model.init, jax.random.key(0))
    shape = shapes.model_shape(model)
    assert shape.num_params == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert shape.num_arrays == len(jax.tree.leaves(params))
    # A layer's products and the head are what a token is multiplied with.
    products = sum(
        leaf.size
        for name in params
        if name.startswith("layer_")
        for leaf in jax.tree.leaves(params[name])
        if leaf.ndim == 2
    )
    assert shape.split(1, 1).layer_products == products
    assert shape.split(1, 1).head_products == model.vocab_size * model.width


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mesh_shape", [(1, 2, 4), (1, 4, 2)])
def test_a_device_holds_what_the_runtime_gives_it(family, mesh_shape):
    module = registry.find("models", family)
    model = module.make(replace(module.PRESETS["tiny"], vocab_size=11))
    abstract = sharding.abstract_params(model, make_mesh(Config(*mesh_shape)))
    held = sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(abstract))
    assert shapes.model_shape(model).split(*mesh_shape[1:]).stored == held


def test_a_value_model_has_its_backbones_params_and_a_head_and_reads_no_logits():
    backbone = llama.make(llama.PRESETS["tiny"])
    value, policy = shapes.model_shape(value_head.make(backbone)), shapes.model_shape(backbone)
    assert value.num_params == policy.num_params + 128 + 1
    assert value.values
    assert value.split(1, 1).head_products == 0
    assert value.split(1, 1).layer_products == policy.split(1, 1).layer_products


def test_tied_embeddings_are_the_head():
    config = llama.Config(11, 16, 2, 4, 2, 24, tie_embeddings=True)
    shape = shapes.model_shape(llama.make(config))
    assert shape.tied
    assert shape.split(1, 1).head_products == 11 * 16


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-2-7b", 6.738),
        ("llama-2-13b", 13.016),
        ("codellama-34b", 33.744),
        ("llama-2-70b", 68.977),
    ],
)
def test_published_shapes_have_the_published_params(name, billions):
    shape = shapes.named(name)
    assert shape.num_params / 1e9 == pytest.approx(billions, abs=5e-4)
    # Two vocabulary matrices, and in a layer q and o of D x D, k and v of D x JK, three of D x F,
    # two norms; the last norm.
    D, F, kept = shape.width, shape.ffn_width, shape.num_kv_heads * shape.head_width
    layer = 2 * D * D + 2 * D * kept + 3 * D * F + 2 * D
    assert shape.num_params == 2 * shape.vocab_size * D + shape.num_layers * layer + D


def test_a_wrong_name_lists_the_names():
    with pytest.raises(ValueError, match="no shape 'llama-5'; there are: llama-2-7b"):
        shapes.named("llama-5")


def test_a_dimension_that_does_not_divide_stays_whole():
    shape = shapes.model_shape(llama.make(llama.Config(11, 16, 2, 4, 2, 24)))
    split = shape.split(3, 4)  # 3 divides neither 16; 4 does not divide a vocabulary of 11
    assert split.vocab == 11
    assert split.stored == split.gathered
    assert split.head_products == 11 * 16
    assert split.layer_products == shape.split(1, 1).layer_products / 4
    assert split.cut_by_fsdp == 0
    assert (split.heads, split.kv_heads) == (1, 1)


def test_a_column_of_the_cache():
    shape = shapes.model_shape(llama.make(llama.Config(11, 16, 3, 4, 2, 24)))
    assert (
        shape.column_bytes == 2 * 3 * 2 * 4 * 4
    )  # keys and values, layers, heads, a head's width, float32
