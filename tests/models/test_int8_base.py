"""A base in int8 of every decoder family: the kernels that are quantized, what is computed on them,
and what programs hold and gather.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from rlhf_jax import randomness
from rlhf_jax.models.common import adapters
from rlhf_jax.models.common.adapters import KERNEL_SCALE, Adapted, Config
from rlhf_jax.ops.linear import int8
from rlhf_jax.refusal import Refusal

from .families import FAMILIES, QUICK, quick_jit, random_params
from .test_adapters import B, L, make, rows, weighted_loss

LORA = Config(rank=3, alpha=6.0, base_dtype="int8")


def on_int8(model, seed: int = 0) -> Adapted:
    """Random params with a random adapter on an int8 base."""
    base = adapters.in_base_dtype(
        model, LORA, random_params(model, seed), lambda _, kernel: int8.quantize(kernel)
    )
    random = np.random.default_rng(seed)
    adapter = jax.tree.map(
        lambda x: jnp.asarray(0.1 * random.standard_normal(x.shape, np.float32)),
        adapters.init(model, LORA, randomness.key(seed)),
    )
    return Adapted(adapters.compact(base, model.dtype), adapter, LORA.scale)


def on_dequantized(model, params: Adapted) -> Adapted:
    """The same params, their base in float32."""
    base = jax.tree.map(jnp.asarray, adapters.dequantized(params.base))
    return Adapted(base, params.adapter, params.scale)


@pytest.mark.parametrize("scan_layers", [0, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_kernels_of_linear_layers_are_int8_and_nothing_else(name, scan_layers):
    model = make(name, scan_layers=scan_layers, dtype="bfloat16")
    held = flatten_dict(adapters.shapes(model, LORA).base)
    num_kernels = 0
    for path, array in held.items():
        if (*path[:-1], KERNEL_SCALE) not in held or path[-1] == "bias":
            vector = array.ndim - any("scanned" in part for part in path) < 2
            assert array.dtype == (jnp.float32 if vector else jnp.bfloat16), path
        elif path[-1] == "kernel":
            num_kernels += 1
            assert array.dtype == jnp.int8, path
            scale = held[(*path[:-1], KERNEL_SCALE)]
            assert scale.shape == (*array.shape[:-2], array.shape[-1])
    plain = flatten_dict(jax.eval_shape(model.init, jax.random.key(0)))
    heads = {path for path in plain if path[0] in ("lm_head", "embed_out")}
    assert num_kernels == sum(path[-1] == "kernel" for path in plain) - len(heads)
    assert {held[path].dtype for path in heads} <= {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_and_gradients_are_those_on_the_dequantized_base(name, remat):
    """Of whole rows; and of a prefill and a decode step."""
    model = make(name, remat=remat)
    params = on_int8(model)
    loss = weighted_loss(model)

    @quick_jit
    def outputs(params):
        tokens, positions, mask = rows()
        empty = model.init_cache(B, L + 1)
        prefilled, cache = model.apply(params, tokens, positions, mask, empty)
        ones = jnp.ones((B, 1), bool)
        step, _ = model.apply(params, tokens[:, :1], positions[:, -1:] + 1, ones, cache)
        trained, rest = adapters.split(params)
        of_adapter = jax.value_and_grad(lambda t, rest: loss(adapters.join(t, rest)))
        return prefilled, step, of_adapter(trained, rest)

    found, expected = outputs(params), outputs(on_dequantized(model, params))

    def close(x, y):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=3e-4 * float(jnp.abs(y).max()))

    jax.tree.map(close, found, expected)
    assert min(float(jnp.abs(x).max()) for x in jax.tree.leaves(found[2][1])) > 0


@pytest.mark.parametrize("name", ["gpt_neox", "llama"])
def test_stacked_layers_compute_the_same(name):
    models = [make(name, scan_layers=scan_layers) for scan_layers in (0, 2)]
    params = on_int8(models[0])

    def outputs(model):
        stacked = Adapted(model.stacked(params.base), model.stacked(params.adapter), params.scale)
        hidden, _ = quick_jit(model.apply)(stacked, *rows())
        return hidden

    found = [outputs(model) for model in models]
    np.testing.assert_allclose(*found, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt_neox", "llama"])
def test_the_merged_export_computes_the_same(name):
    model = make(name)
    params = on_int8(model)
    merged = adapters.merged(params)
    plain = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.structure(merged) == jax.tree.structure(plain)
    assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype("float32")}

    @quick_jit
    def outputs(params):
        hidden, _ = model.apply(params, *rows())
        return model.head(params, hidden)

    np.testing.assert_allclose(outputs(params), outputs(merged), atol=2e-5)


def test_bfloat16_products_round_what_float32_ones_do_not():
    """Between the same kernels the dtype of products changes log-probabilities by its rounding."""
    narrow, wide = make("llama", dtype="bfloat16"), make("llama")
    params = on_int8(wide)

    def logits(model, params):
        hidden, _ = model.apply(params, *rows())
        return model.head(params, hidden)

    difference = jnp.abs(logits(narrow, params) - logits(wide, params))
    assert 0 < float(difference.max()) < 0.1 * float(jnp.abs(logits(wide, params)).max())


def test_int8_without_adapters_is_refused():
    with pytest.raises(Refusal, match=r"lora.base_dtype is 'int8' and lora.rank is 0"):
        Config(base_dtype="int8")


def test_no_pass_holds_a_dequantized_base():
    """The temporaries of a decode loop: those of a float32 base, and one kernel in float32."""
    model = make("llama", num_layers=8, width=64, ffn_width=256)
    params = adapters.shapes(model, LORA)
    kernels = [
        array
        for path, array in flatten_dict(params.base).items()
        if path[-1] == "kernel" and array.dtype == jnp.int8
    ]
    sizes = [x.size for x in kernels]

    def loop(params):
        cache = model.init_cache(2, 16)
        tokens, mask = jnp.zeros((2, 1), jnp.int32), jnp.ones((2, 1), bool)

        def step(carried):
            index, cache, _ = carried
            hidden, cache = model.apply(params, tokens, jnp.full((2, 1), index), mask, cache)
            return index + 1, cache, hidden[:, 0]

        begun = (jnp.int32(0), cache, jnp.zeros((2, 64), jnp.float32))
        return jax.lax.while_loop(lambda carried: carried[0] < 9, step, begun)[2]

    temporaries = (
        jax.jit(loop, compiler_options=QUICK | {}).lower(params).compile().memory_analysis()
    ).temp_size_in_bytes
    cache = sum(
        x.size * 4 for x in jax.tree.leaves(jax.eval_shape(lambda: model.init_cache(2, 16)))
    )
    assert temporaries <= 2 * cache + 4 * max(sizes) + 65536
    assert 4 * sum(sizes) > 4 * temporaries
