"""Llama against a naive float64 forward pass, and the published numbers of params."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import llama, mistral
from rlhf_jax.ops.masked import positions_from_mask

# Sizes of the published safetensors (meta-llama on the Hugging Face hub), embeddings counted once
# where tied. 3.2-1b by hand: 128256*2048 + 16*(2*2048*2048 + 2*2048*512 + 3*2048*8192 + 2*2048) +
# 2048 = 1,235,814,400.
PUBLISHED = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
}


@pytest.mark.parametrize("preset", sorted(PUBLISHED))
def test_published_number_of_params(preset):
    shapes = jax.eval_shape(llama.make(llama.PRESETS[preset]).init, jax.random.key(0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == PUBLISHED[preset]


SMALL = llama.Config(
    vocab_size=11,
    width=24,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    ffn_width=13,
    rope_theta=100.0,
    rope_scaling_factor=8.0,
    rope_original_max_positions=20,
)


def rms_norm(x, p):
    return x / math.sqrt((x**2).mean() + 1e-5) * p["scale"]


def turn(head, position):
    head, half = head.copy(), len(head) // 2
    for i, frequency in enumerate(SMALL.rotary(0).frequencies):
        angle, a, b = position * frequency, head[i], head[i + half]
        head[i], head[i + half] = (
            a * math.cos(angle) - b * math.sin(angle),
            b * math.cos(angle) + a * math.sin(angle),
        )
    return head


def naive_logits(params, tokens, first):
    """float64 logits `[L, V]` of one row whose tokens begin at column `first`; rows before it are
    left 0.
    """
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    layer, head_width = p["layer_0"], SMALL.width // SMALL.num_heads
    kernel = {
        name: layer[f"{name}_proj"]["kernel"] for name in ("q", "k", "v", "o", "gate", "up", "down")
    }
    out, keys, values = np.zeros((len(tokens), SMALL.vocab_size)), [], []
    for i in range(first, len(tokens)):
        x = p["embed_tokens"]["embedding"][tokens[i]]
        normed = rms_norm(x, layer["input_layernorm"])
        queries = [turn(q, i - first) for q in (normed @ kernel["q"]).reshape(-1, head_width)]
        keys.append([turn(k, i - first) for k in (normed @ kernel["k"]).reshape(-1, head_width)])
        values.append((normed @ kernel["v"]).reshape(-1, head_width))
        mixed = []
        for h, query in enumerate(queries):
            j = h // (SMALL.num_heads // SMALL.num_kv_heads)
            weights = np.exp([query @ key[j] / math.sqrt(head_width) for key in keys])
            mixed.append(
                sum(w * value[j] for w, value in zip(weights / weights.sum(), values, strict=True))
            )
        x = x + np.concatenate(mixed) @ kernel["o"]
        normed = rms_norm(x, layer["post_attention_layernorm"])
        gate = normed @ kernel["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (normed @ kernel["up"])) @ kernel["down"]
        out[i] = rms_norm(x, p["norm"]) @ p["lm_head"]["kernel"]
    return out


def test_forward_is_the_naive_one():
    model = llama.make(SMALL)
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
        np.testing.assert_allclose(
            actual[row, first:],
            naive_logits(params, tokens_BL[row], first)[first:],
            atol=2e-5,
            rtol=2e-5,
        )


def test_make_refuses_heads_that_do_not_group():
    with pytest.raises(ValueError, match="num_heads 4 is not a multiple of num_kv_heads 3"):
        llama.make(llama.Config(11, 24, 1, 4, 3, 13))


def test_make_refuses_a_negative_window():
    config = mistral.Config(11, 24, 1, 4, 2, 13, sliding_window=-1)
    with pytest.raises(ValueError, match="sliding_window is -1; accepted: columns, and 0 for none"):
        mistral.make(config)
