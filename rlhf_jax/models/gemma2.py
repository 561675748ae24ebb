"""Gemma 2 (Gemma Team 2024, arXiv 2408.00118): Llama's decoder with norms around each half of a
layer, caps and windows.

    x <- sqrt(D) embedding
    x <- x + norm_2(attention(norm_1(x)));   x <- x + norm_4(down(gelu(gate(y)) * up(y))),  y = norm_3(x)
    score <- cap tanh(query key^T / sqrt(query_scalar) / cap);   logit likewise with a cap of its own

where norms multiply by 1 + weight, and layers 0, 2, 4, ... see a sliding window.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from rlhf_jax.config import Count, Natural, NonNegative, Positive
from rlhf_jax.models import llama
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import blocks
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array


@dataclass(frozen=True)
class Config(llama.Config):
    """The shape of a decoder.

    Defaults are those of the published `config.json` files; a cap or window of 0 is none.
    """

    head_width: Natural = 256  # of one query, key or value
    query_scalar: Count = 256  # scores are divided by its root
    score_cap: NonNegative = 50.0  # attention scores are capped smoothly at it
    logit_cap: NonNegative = 30.0  # logits, too
    sliding_window: Natural = 4096  # columns that a query sees at most, its own among them
    rope_theta: Positive = 10_000.0
    norm_eps: Positive = 1e-6
    tie_embeddings: bool = True

    def window(self, layer: int) -> int:
        return 0 if layer % 2 else self.sliding_window


# vocab_size 0 is to be replaced by the tokenizer's. Published shapes: the paper's table 1 and
# config.json.
PRESETS: dict[str, Config] = {
    "quickstart": Config(0, 64, 2, 4, 2, 192, head_width=24, query_scalar=24, sliding_window=32),
    "tiny": Config(512, 128, 4, 4, 2, 384, head_width=48, query_scalar=48, sliding_window=64),
    "gemma-2-2b": Config(256000, 2304, 26, 8, 4, 9216),
    "gemma-2-9b": Config(256000, 3584, 42, 16, 8, 14336),
    "gemma-2-27b": Config(256000, 4608, 46, 32, 16, 36864, head_width=128, query_scalar=144),
}

LOGICAL_AXES = llama.LOGICAL_AXES | {
    "input_layernorm/weight": (None,),
    "post_attention_layernorm/weight": (None,),
    "pre_feedforward_layernorm/weight": (None,),
    "post_feedforward_layernorm/weight": (None,),
    "norm/weight": (None,),
}


class Norm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * (1 + weight) over the last dimension; kept as published, so that
    no bit is rounded away.
    """

    eps: float

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        weight = self.param("weight", nn.initializers.zeros, (inputs.shape[-1],))
        x = inputs.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        scale = jnp.expand_dims(1.0 + weight, range(x.ndim - 1))
        return (x * jax.lax.rsqrt(mean_square + self.eps) * scale).astype(inputs.dtype)


class Layer(llama.Layer):
    """Attention and feed-forward, each with a norm before and a norm after it."""

    norm_type: ClassVar[type[nn.Module]] = Norm

    def setup(self) -> None:
        super().setup()
        self.pre_feedforward_layernorm = Norm(self.config.norm_eps)
        self.post_feedforward_layernorm = Norm(self.config.norm_eps)

    def attend(
        self, queries_BHLK: Array, keys_BJMK: Array, values_BJMK: Array, hide_BLM: Array
    ) -> Array:
        scale = 1 / math.sqrt(self.config.query_scalar)
        config = self.config
        return blocks.attend(
            queries_BHLK,
            keys_BJMK,
            values_BJMK,
            hide_BLM,
            scale,
            config.score_cap,
            how=config.attention,
        )

    def join(self, x_AD: Array, mixed_AD: Array) -> Array:
        x_AD = x_AD + self.post_attention_layernorm(self.o_proj(mixed_AD))
        return x_AD + self.post_feedforward_layernorm(
            self.feed_forward(self.pre_feedforward_layernorm(x_AD))
        )

    def activation(self, x_AF: Array) -> Array:
        return jax.nn.gelu(x_AF, approximate=True)


class Network(llama.Network):
    """The decoder of these layers, its embeddings scaled and its logits capped."""

    layer_type: ClassVar[type[llama.Layer]] = Layer

    def embed(self, tokens_A: Array) -> Array:
        x_AD = super().embed(tokens_A)
        return x_AD * jnp.asarray(
            math.sqrt(self.config.width), x_AD.dtype
        )  # rounded to it, as the models were trained

    def head(self, hidden: Array) -> Array:
        return blocks.soft_cap(super().head(hidden), self.config.logit_cap)


@dataclass(frozen=True)
class Gemma2(llama.Llama):
    """`Model` of this family."""

    network: ClassVar[type[nn.Module]] = Network
    axes: ClassVar = LOGICAL_AXES


def check(config: Config) -> None:
    """Raises Refusal, naming the value, where the numbers do not fit together."""
    llama.check(config)
    if config.attention != "xla" and config.score_cap:
        raise Refusal(
            f"attention is {config.attention!r}, which cannot cap scores; accepted with score_cap: "
            "xla"
        )


def make(config: Config) -> Model:
    """The model of a shape; frozen and hashable.

    Raises Refusal where the numbers do not fit together.
    """
    check(config)
    return Gemma2(config)
