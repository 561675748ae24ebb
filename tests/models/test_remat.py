"""A layer that is computed again in the backward pass gives the gradient that it gave, and keeps
less for it: nothing but its input, or its products too.
"""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import scoring
from rlhf_jax.models import gpt_neox, llama
from rlhf_jax.ops.masked import positions_from_mask
from rlhf_jax.refusal import Refusal

from .families import QUICK, config_of, quick_jit

P, G, Q, C, V = 2, 3, 29, 31, 11
# On a CPU XLA takes the barriers out that keep the second computation apart from the first, before
# it plans memory; on accelerators it leaves them in. With this it does so here, and the plan is
# what `remat` makes of it.
KEEP_BARRIERS = QUICK | {"xla_disable_hlo_passes": "cse_barrier_expander"}
SHAPE = {"vocab_size": V, "width": 16, "ffn_width": 64}


def test_gradients_and_values_are_those_without(family):
    """Ragged left padding, one row without a token; float32 rounding is all that may differ."""
    tokens_BL = jax.random.randint(jax.random.key(0), (3, 7), 0, V)
    mask_BL = jnp.arange(7)[None] >= jnp.array([0, 2, 7])[:, None]
    model = family.module.make(dataclasses.replace(family.model.config, remat=True))

    def weighted(params: dict) -> jax.Array:
        hidden, _ = model.apply(params, tokens_BL, positions_from_mask(mask_BL), mask_BL)
        logprobs = jax.nn.log_softmax(model.head(params, hidden))
        return jnp.sum(mask_BL[..., None] * jnp.square(logprobs))

    text = jax.jit(jax.grad(weighted)).lower(family.params).as_text()
    assert text.count("optimization_barrier") >= 1 + model.config.num_layers, (
        "each layer, and the rotary tables"
    )
    value, gradient = quick_jit(jax.value_and_grad(weighted))(family.params)
    expected, plain = family.gradient(
        family.params, tokens_BL, mask_BL, mask_BL.astype(jnp.float32)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(theirs).max())


def test_params_are_those_without(family):
    model = family.module.make(dataclasses.replace(family.model.config, remat=True))
    made, plain = (jax.eval_shape(m.init, jax.random.key(0)) for m in (model, family.model))
    assert made == plain


def test_an_empty_cache_is_still_known_to_be_empty():
    """A prefill attends to its own columns alone: 5 and not the cache's 97 appear in what is
    compiled.
    """
    model = llama.make(dataclasses.replace(config_of("llama"), remat=True))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((2, 5), jnp.int32)

    def prefill(params: dict, tokens_BL: jax.Array) -> jax.Array:
        mask_BL = tokens_BL >= 0
        return model.apply(
            params, tokens_BL, positions_from_mask(mask_BL), mask_BL, model.init_cache(2, 97)
        )[0]

    text = jax.jit(prefill).lower(shapes, tokens).as_text()
    scores = ["x".join(map(str, (2, 2, 10, columns))) for columns in (5, 97)]  # B, J, H / J * L, M
    assert scores[0] in text
    assert scores[1] not in text


def rows() -> tuple[jax.Array, ...]:
    """Ragged prompts, each of G rows, and ragged completions."""
    random = np.random.default_rng(0)
    prompt_PQ = random.integers(0, V, (P, Q), dtype=np.int32)
    mask_PQ = np.arange(Q)[None] >= np.array([0, 5])[:, None]
    tokens_RC = random.integers(0, V, (P * G, C), dtype=np.int32)
    mask_RC = np.arange(C)[None] < np.array([31, 20, 7, 1, 30, 31])[:, None]
    return tuple(
        map(jnp.asarray, (np.repeat(prompt_PQ, G, 0), np.repeat(mask_PQ, G, 0), tokens_RC, mask_RC))
    )


@pytest.mark.parametrize(
    ("family", "num_layers", "rows_per_prompt", "scan_layers", "policies"),
    [
        (gpt_neox, 4, 1, 0, (None, "dots", "full")),
        (gpt_neox, 8, 1, 2, (None, "dots", "full")),
        (llama, 2, G, 0, (None, "full")),
    ],
    ids=["four layers", "eight layers in a scan", "the prompt run once, through a cache"],
)
def test_an_update_keeps_less(family, num_layers, rows_per_prompt, scan_layers, policies):
    """Memory beyond arguments and results of the gradient, as XLA plans it: least with a layer's
    inputs alone, more with its products, most with all. The gradient is the same, to rounding.
    """
    changes = SHAPE | {"num_layers": num_layers, "scan_layers": scan_layers}
    config = dataclasses.replace(family.PRESETS["quickstart"], **changes)
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(family.make(config).init, jax.random.key(0))
    params = jax.tree.map(
        lambda x: (x.ndim == 1) + 0.1 * random.standard_normal(x.shape, np.float32), shapes
    )

    def total(params: dict, model: object) -> jax.Array:
        outputs = scoring.policy_outputs(
            params, *rows(), jnp.float32(0.7), model=model, rows_per_prompt=rows_per_prompt
        )
        return jnp.sum(outputs.logprob_RC + 0.3 * outputs.entropy_RC)

    kept, gradients = [], []
    for policy in policies:
        remat = {"remat": bool(policy), "remat_policy": policy or "full"}
        model = family.make(dataclasses.replace(config, **remat))
        compiled = (
            jax.jit(jax.grad(partial(total, model=model))).lower(params).compile(KEEP_BARRIERS)
        )
        kept.append(compiled.memory_analysis().temp_size_in_bytes)
        gradients.append(compiled(params))
    print(kept)
    assert all(less < 0.8 * more for more, less in itertools.pairwise(kept)), kept
    assert kept[-1] < 0.6 * kept[0], kept
    plain, *others = map(jax.tree.leaves, gradients)
    for found in others:
        for ours, theirs in zip(found, plain, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(theirs).max())


def test_a_policy_that_there_is_not_is_refused():
    with pytest.raises(Refusal, match=r"remat_policy is 'all'; accepted: full, dots"):
        llama.make(config_of("llama", remat_policy="all"))
