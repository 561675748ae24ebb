"""Gemma 2 against a naive float64 forward pass: four norms, scaled embeddings, caps, a window on
the first layer of two.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models import gemma2
from rlhf_jax.ops.masked import positions_from_mask

SMALL = gemma2.Config(
    vocab_size=11,
    width=12,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    ffn_width=13,
    head_width=6,
    query_scalar=5,
    score_cap=2.0,
    logit_cap=3.0,
    sliding_window=2,
    rope_theta=100.0,
)


def norm(x, p):
    return x / math.sqrt((x**2).mean() + SMALL.norm_eps) * (1 + p["weight"])


def turn(head, position):
    head, half = head.copy(), len(head) // 2
    for i in range(half):
        angle, a, b = position * SMALL.rope_theta ** (-2 * i / len(head)), head[i], head[i + half]
        head[i], head[i + half] = (
            a * math.cos(angle) - b * math.sin(angle),
            b * math.cos(angle) + a * math.sin(angle),
        )
    return head


def cap(x, limit):
    return limit * np.tanh(x / limit)


def naive_layer(x_LD, layer, window):
    """float64 residuals after a layer; a query sees the `window` last columns, its own among them."""
    kernel = {
        name: layer[f"{name}_proj"]["kernel"] for name in ("q", "k", "v", "o", "gate", "up", "down")
    }
    normed = [norm(x, layer["input_layernorm"]) for x in x_LD]
    split = {
        name: [(x @ kernel[name]).reshape(-1, SMALL.head_width) for x in normed]
        for name in ("q", "k", "v")
    }
    out = []
    for i, x in enumerate(x_LD):
        mixed, seen = [], range(max(0, i - window + 1), i + 1)
        for h in range(SMALL.num_heads):
            query, j = turn(split["q"][i][h], i), h // (SMALL.num_heads // SMALL.num_kv_heads)
            scores = [
                query @ turn(split["k"][m][j], m) / math.sqrt(SMALL.query_scalar) for m in seen
            ]
            weights = np.exp(cap(np.array(scores), SMALL.score_cap))
            mixed.append(
                sum(
                    w * split["v"][m][j] for w, m in zip(weights / weights.sum(), seen, strict=True)
                )
            )
        x = x + norm(np.concatenate(mixed) @ kernel["o"], layer["post_attention_layernorm"])
        y = norm(x, layer["pre_feedforward_layernorm"])
        gate = y @ kernel["gate"]
        gate = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        out.append(
            x
            + norm(
                (gate * (y @ kernel["up"])) @ kernel["down"], layer["post_feedforward_layernorm"]
            )
        )
    return out


def test_forward_is_the_naive_one():
    model = gemma2.make(SMALL)
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: 0.5 * random.standard_normal(x.shape, np.float32), shapes)
    tokens_BL, pads = random.integers(0, 11, (2, 7)), (0, 2)
    mask_BL = jnp.arange(7)[None, :] >= jnp.array(pads)[:, None]
    hidden, _ = jax.jit(model.apply)(
        params, jnp.asarray(tokens_BL), positions_from_mask(mask_BL), mask_BL
    )
    actual = np.asarray(model.head(params, hidden))
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    embedding = p["embed_tokens"]["embedding"]
    for row, first in enumerate(pads):
        x_LD = list(embedding[tokens_BL[row, first:]] * math.sqrt(SMALL.width))
        x_LD = naive_layer(naive_layer(x_LD, p["layer_0"], SMALL.sliding_window), p["layer_1"], 7)
        expected = [cap(norm(x, p["norm"]) @ embedding.T, SMALL.logit_cap) for x in x_LD]
        np.testing.assert_allclose(actual[row, first:], expected, atol=2e-5, rtol=2e-5)
        assert np.abs(expected).max() > 0.8 * SMALL.logit_cap, "the cap should be felt"


def test_embeddings_are_scaled_by_a_number_of_the_compute_dtype():
    """sqrt(12) = 3.4641016 is 3.46875 in bfloat16. 1.0078125 times that is 3.4958, which rounds to
    3.5; times the root itself it would be 3.4912, which rounds to 3.484375.
    """
    model = gemma2.make(dataclasses.replace(SMALL, dtype="bfloat16"))
    params = jax.tree.map(
        lambda x: jnp.full(x.shape, 1.0078125), jax.eval_shape(model.init, jax.random.key(0))
    )
    embedded = gemma2.Network(model.config).apply(
        {"params": params}, jnp.array([3]), method="embed"
    )
    assert embedded.dtype == jnp.bfloat16
    assert float(embedded[0, 0]) == 3.5
