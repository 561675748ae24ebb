"""Params of roles that no update changes: bfloat16 where the model rounds them before it computes,
and the same bits come out.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhf_jax.models.common import adapters, rounding, value_head
from rlhf_jax.models.common.family import find
from rlhf_jax.refusal import Refusal

from .families import SUBJECTS, config_of, quick_jit, random_params

USUAL = ("gpt_neox", "gemma3")  # norms with and without bias; two programs to compile each


def dtypes(params) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): leaf.dtype.name for path, leaf in leaves}


@pytest.fixture(scope="module")
def half():
    """A decoder that computes in bfloat16, with stacked layers, and its float32 params."""
    model = tiny.make_model(dtype="bfloat16", scan_layers=True)
    return model, random_params(model, 3)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in USUAL else pytest.mark.slow) for name in SUBJECTS],
)
def test_every_family_computes_the_same_bits_from_held_params(name):
    """Logits and values; matrices are held in bfloat16, norms and the value head are not."""
    model = find(name).make(config_of(name, dtype="bfloat16", num_layers=1))
    valued = value_head.make(model)
    params = valued.init_from(random_params(model, 3), jax.random.key(1))
    held = {
        "backbone": rounding.held(model, params["backbone"]),
        "value_head": rounding.held(valued, params)["value_head"],
    }
    tokens_BL = jnp.arange(8).reshape(2, 4) % model.vocab_size
    positions_BL, mask_BL = jnp.tile(jnp.arange(4), (2, 1)), jnp.ones((2, 4), bool)

    def outputs(params):
        hidden, _ = valued.apply(params, tokens_BL, positions_BL, mask_BL)
        return model.head(params["backbone"], hidden), valued.value(params, hidden)

    outputs = quick_jit(outputs)
    for expected, found in zip(outputs(params), outputs(held), strict=True):
        np.testing.assert_array_equal(expected, found)
    for path, dtype in dtypes(held).items():
        assert dtype == ("float32" if "norm" in path or "value_head" in path else "bfloat16"), path


def test_a_value_model_holds_what_its_backbone_does_and_the_head_that_nothing_reads(half):
    model, params = half
    valued = value_head.make(model)
    whole = valued.init_from(params, jax.random.key(0))
    held = rounding.held(valued, whole)
    assert dtypes(held["backbone"]) == dtypes(rounding.held(model, params))
    assert dtypes(held)["backbone/embed_out/kernel"] == "bfloat16"
    assert dtypes(held["value_head"]) == {"kernel": "float32", "bias": "float32"}


def test_holding_again_changes_nothing_and_shapes_are_held_as_arrays_are(half):
    model, params = half
    held = rounding.held(model, params)
    again = rounding.held(model, held)
    assert all(x is y for x, y in zip(*map(jax.tree.leaves, (held, again)), strict=True))
    shapes = jax.eval_shape(lambda: params)
    assert dtypes(rounding.held(model, shapes)) == dtypes(held)
    assert set(dtypes(rounding.as_trained(held)).values()) == {"float32"}
    assert set(dtypes(params).values()) == {"float32"}  # those given are left as they were


def test_a_float32_model_and_params_on_an_adapter_s_base_stay_the_same_arrays(half):
    model, params = half
    whole = tiny.make_model(scan_layers=True)
    assert rounding.held(whole, params) is params
    lora = adapters.Config(rank=2)
    adapted = adapters.Adapted(
        adapters.compact(jax.tree.map(jnp.copy, params), model.dtype),
        adapters.init(model, lora, jax.random.key(0)),
        lora.scale,
    )
    assert rounding.held(model, adapted) is adapted
    assert not rounding.is_rounded(adapted)


@dataclasses.dataclass(frozen=True)
class Routed:
    """A model of one's own that reads a matrix in float32, and another in both ways."""

    dtype: str = "bfloat16"

    def apply(self, params, tokens_BL, positions_BL, mask_BL, cache=None):
        hidden = jnp.take(params["table"].astype(self.dtype), tokens_BL, axis=0)
        routed = hidden.astype(jnp.float32) @ params["router"]

        def layer(x, kernel):
            return jax.checkpoint(lambda x: x @ kernel.T.astype(self.dtype))(x), None

        hidden, _ = jax.lax.scan(layer, hidden, params["layers"])
        return hidden + routed.astype(self.dtype), cache

    def head(self, params, hidden):
        both = params["both"]
        return hidden @ both.astype(self.dtype) + jnp.sum(both)


def test_a_leaf_that_a_product_reads_in_float32_is_not_rounded():
    sizes = {"table": (5, 4), "router": (4, 4), "layers": (2, 4, 4), "both": (4, 5)}
    params = {name: jnp.ones(size) for name, size in sizes.items()}
    assert dtypes(rounding.held(Routed(), params)) == {
        "table": "bfloat16",
        "router": "float32",
        "layers": "bfloat16",
        "both": "float32",
    }


def test_training_does_not_begin_with_rounded_params_or_shapes(half):
    model, params = half
    rounding.check_trainable(params, "policy")
    held = rounding.held(model, params)
    with pytest.raises(Refusal, match="policy's first params are bfloat16, float32; accepted"):
        rounding.check_trainable(held, "policy")
    with pytest.raises(Refusal, match="critic's first params are shapes"):
        rounding.check_trainable(rounding.as_trained(held), "critic")
