"""GPT-NeoX against a naive float64 forward pass and the published numbers of params."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import gpt_neox
from rlhf_jax.ops.masked import positions_from_mask

# "total params" of each model in the README of EleutherAI/pythia.
PUBLISHED = {
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
}


@pytest.mark.parametrize("preset", sorted(PUBLISHED))
def test_published_number_of_params(preset):
    shapes = jax.eval_shape(gpt_neox.make(gpt_neox.PRESETS[preset]).init, jax.random.key(0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == PUBLISHED[preset]


def layer_norm(x, p):
    return (x - x.mean()) / math.sqrt(x.var() + 1e-5) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def turn(head, position, rotary_dims):
    """Pairs (i, i + half) of the first `rotary_dims` turned by position * 10000^(-2i /
    rotary_dims).
    """
    head, half = head.copy(), rotary_dims // 2
    for i in range(half):
        angle = position * 10_000 ** (-2 * i / rotary_dims)
        a, b = head[i], head[i + half]
        head[i], head[i + half] = (
            a * math.cos(angle) - b * math.sin(angle),
            b * math.cos(angle) + a * math.sin(angle),
        )
    return head


def naive_logits(params, tokens, first, config):
    """float64 logits `[L, V]` of one row whose tokens begin at column `first`; rows before it are
    left 0.
    """
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    num_heads, head_width = config.num_heads, config.width // config.num_heads
    rotary_dims = int(head_width * config.rotary_fraction)
    out, layer = np.zeros((len(tokens), config.vocab_size)), p["layer_0"]
    fused = {}
    for i in range(first, len(tokens)):
        x = p["embed_in"]["embedding"][tokens[i]]
        normed = layer_norm(x, layer["input_layernorm"])
        fused[i] = dense(normed, layer["query_key_value"]).reshape(num_heads, 3, head_width)
        mixed = []
        for h in range(num_heads):
            query = turn(fused[i][h, 0], i - first, rotary_dims)
            keys = [turn(fused[j][h, 1], j - first, rotary_dims) for j in range(first, i + 1)]
            weights = np.exp([query @ key / math.sqrt(head_width) for key in keys])
            weights /= weights.sum()
            mixed.append(sum(w * fused[first + j][h, 2] for j, w in enumerate(weights)))
        attended = dense(np.concatenate(mixed), layer["dense"])
        inner = dense(layer_norm(x, layer["post_attention_layernorm"]), layer["dense_h_to_4h"])
        inner = np.array([y * 0.5 * (1 + math.erf(y / math.sqrt(2))) for y in inner])
        x = x + attended + dense(inner, layer["dense_4h_to_h"])
        out[i] = layer_norm(x, p["final_layer_norm"]) @ p["embed_out"]["kernel"]
    return out


def test_forward_is_the_naive_one():
    config = gpt_neox.Config(
        vocab_size=11, width=24, num_layers=1, num_heads=3, ffn_width=13, rotary_fraction=0.5
    )
    model = gpt_neox.make(config)
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(
        lambda x: (x.ndim == 1) + 0.4 * random.standard_normal(x.shape, np.float32), shapes
    )
    tokens_BL, pads = random.integers(0, 11, (2, 5)), (0, 2)
    mask_BL = jnp.arange(5)[None, :] >= jnp.array(pads)[:, None]
    hidden, _ = jax.jit(model.apply)(
        params, jnp.asarray(tokens_BL), positions_from_mask(mask_BL), mask_BL
    )
    actual = np.asarray(model.head(params, hidden))
    for row, first in enumerate(pads):
        expected = naive_logits(params, tokens_BL[row], first, config)
        np.testing.assert_allclose(actual[row, first:], expected[first:], atol=2e-5, rtol=2e-5)
