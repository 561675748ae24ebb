"""Adapters of every decoder family: a fresh one changes no bit, and gradients are the chain rule's."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from rlhf_jax import randomness
from rlhf_jax.models.common import adapters
from rlhf_jax.models.common.adapters import Adapted, Config
from rlhf_jax.models.common.family import find
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.ops.masked import positions_from_mask
from rlhf_jax.refusal import Refusal

from .families import FAMILIES, QUICK, V, config_of, quick_jit, random_params

B, L, R = 3, 7, 5

LORA = Config(rank=R, alpha=15.0)  # a scale of 3
LLAMA_LIKE = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
NEOX = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}


def rows() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens, positions and mask of rows with 0, 2 and 5 pads."""
    tokens_BL = jax.random.randint(jax.random.key(3), (B, L), 0, V)
    mask_BL = jnp.arange(L)[None, :] >= jnp.array((0, 2, 5))[:, None]
    return tokens_BL, positions_from_mask(mask_BL), mask_BL


def adapted(model, seed: int = 0, b_deviation: float = 0.2) -> Adapted:
    """Random params of a model with an adapter, whose B is random too."""
    adapter = adapters.init(model, LORA, randomness.key(seed))
    random = np.random.default_rng(seed)
    adapter = jax.tree_util.tree_map_with_path(
        lambda path, x: (
            x
            if path[-1].key == "a"
            else jnp.asarray(b_deviation * random.standard_normal(x.shape, np.float32))
        ),
        adapter,
    )
    return Adapted(random_params(model, seed), adapter, LORA.scale)


def make(name: str, **changes):
    return find(name).make(config_of(name, **changes))


def weighted_loss(model):
    """A function of params: a sum of the logits of `rows`, no two of which count alike."""
    weight = jax.random.normal(jax.random.key(5), (B, L, V))

    def loss(params):
        hidden, _ = model.apply(params, *rows())
        return jnp.sum(weight * jnp.sin(model.head(params, hidden)))

    return loss


@pytest.mark.parametrize("name", FAMILIES)
def test_all_linear_layers_are_adapted_but_for_the_head(name):
    model = make(name)
    layers = adapters.targets(model, LORA)
    assert {path[-1] for path in layers} == (NEOX if name == "gpt_neox" else LLAMA_LIKE)
    kernels = {
        path[:-1]: array.shape
        for path, array in flatten_dict(jax.eval_shape(model.init, jax.random.key(0))).items()
        if path[-1] == "kernel" and path[0] not in ("lm_head", "embed_out")
    }
    assert layers == kernels


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_fresh_adapter_is_bitwise_the_base(name, dtype):
    """In a pass over whole rows, in a prefill and in a decode step.

    By default XLA on a CPU leaves out some of bfloat16's roundings, and others once there is one
    more sum; here it rounds where the model says so.
    """
    model = make(name, dtype=dtype)
    fresh = Adapted(
        random_params(model, 1), adapters.init(model, LORA, randomness.key(0)), LORA.scale
    )

    @partial(jax.jit, compiler_options=QUICK | {"xla_allow_excess_precision": False})
    def outputs(params):
        tokens, positions, mask = rows()
        whole, _ = model.apply(params, tokens, positions, mask)
        empty = model.init_cache(B, L + 1)
        prefilled, cache = model.apply(params, tokens, positions, mask, empty)
        step, cache = model.apply(
            params, tokens[:, :1], positions[:, -1:] + 1, jnp.ones((B, 1), bool), cache
        )
        return whole, prefilled, step, cache.keys, cache.values, model.head(params, step)

    plain, with_adapter = outputs(fresh.base), outputs(fresh)
    jax.tree.map(np.testing.assert_array_equal, plain, with_adapter)
    other = outputs(adapted(model, 1))
    assert float(jnp.max(jnp.abs(other[0].astype(jnp.float32) - plain[0]))) > 1e-2


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_gradient_is_the_chain_rule_from_the_merged_kernels(name, remat):
    """Of W' = W + s A B:  dA = s dW' B^T,  dB = s A^T dW'."""
    model = make(name, remat=remat)
    params = adapted(model)
    loss = weighted_loss(model)
    merged = adapters.merged(params)
    np.testing.assert_allclose(quick_jit(loss)(params), loss(merged), rtol=1e-4)
    full = flatten_dict(quick_jit(jax.grad(loss))(merged))
    trained, rest = adapters.split(params)
    gradient = quick_jit(jax.grad(lambda t, rest: loss(adapters.join(t, rest))))(trained, rest)
    scale, flat = LORA.scale, flatten_dict(params.adapter)
    for path, grad in flatten_dict(gradient).items():
        kernel = full[(*path[:-1], "kernel")]
        a, b = flat[(*path[:-1], "a")], flat[(*path[:-1], "b")]
        expected = scale * (kernel @ b.T if path[-1] == "a" else a.T @ kernel)
        np.testing.assert_allclose(
            grad, expected, rtol=1e-3, atol=2e-4 * float(jnp.abs(expected).max()), err_msg=str(path)
        )


@pytest.mark.parametrize(("name", "scan_layers"), [("gpt_neox", 0), ("llama", 2)])
def test_a_row_has_the_product_of_its_own_version(name, scan_layers):
    """Three versions beside each other, of which one has no row: as each alone."""
    model = make(name, scan_layers=scan_layers)
    several = [adapted(model, seed) for seed in range(3)]
    of_row_B = np.array((2, 0, 2), np.int32)

    @quick_jit
    def outputs(params):
        tokens, positions, mask = rows()
        whole, _ = model.apply(params, tokens, positions, mask)
        empty = model.init_cache(B, L + 1)
        _, cache = model.apply(params, tokens, positions, mask, empty)
        ones = jnp.ones((B, 1), bool)
        step, _ = model.apply(params, tokens[:, :1], positions[:, -1:] + 1, ones, cache)
        return whole, step

    versions = adapters.Versions(
        several[0].base, tuple(params.adapter for params in several), LORA.scale
    )
    found = outputs(adapters.of_rows(versions.joined(), jnp.asarray(of_row_B), 3))
    alone = [outputs(dataclasses.replace(params, base=several[0].base)) for params in several]
    for part, array in enumerate(found):
        for row, version in enumerate(of_row_B):
            np.testing.assert_allclose(array[row], alone[version][part][row], atol=2e-5)
        assert float(jnp.max(jnp.abs(array[0] - alone[0][part][0]))) > 1e-2
    assert adapters.of_rows(several[0], None, 1) is several[0]


def test_parts_of_params_are_put_together_again_with_the_same_arrays():
    model = make("llama")
    value_model = ValueModel(model)
    policy = adapted(model)
    critic = value_model.init_from(policy, jax.random.key(0))
    for params in (policy, critic, policy.base):
        trained, rest = adapters.split(params)
        again = adapters.join(trained, rest)
        assert jax.tree.structure(again) == jax.tree.structure(params)
        assert all(
            one is other
            for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True)
        )
    trained, rest = adapters.split(critic)
    assert set(trained) == {"backbone", "value_head"}
    assert trained["backbone"] is policy.adapter
    assert rest["backbone"].params is policy.base
    assert adapters.split(policy.base)[1] is None


def test_targets_are_those_that_are_named():
    model = make("llama")
    chosen = adapters.targets(model, dataclasses.replace(LORA, targets="q_proj, down_proj"))
    assert {path[-1] for path in chosen} == {"q_proj", "down_proj"}
    assert len(chosen) == 2 * model.config.num_layers
    expected = "lora.targets has 'lm_head'; accepted for llama: all, or some of q_proj,k_proj"
    with pytest.raises(Refusal, match=re.escape(expected)):
        adapters.targets(model, dataclasses.replace(LORA, targets="q_proj,lm_head"))


def test_a_family_without_linear_layers_of_ours_is_refused():
    class Other:
        family = "my_lab.decoders"

    with pytest.raises(Refusal, match=r"lora.rank is 5, but the model family my_lab.decoders"):
        adapters.targets(Other(), LORA)
