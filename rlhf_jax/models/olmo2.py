"""OLMo 2 (OLMo Team 2024, arXiv 2501.00656): Llama's decoder whose norms stand after each half of a
layer, not before it.

    x <- x + norm_1(attention(x));   x <- x + norm_2(down(silu(gate(x)) * up(x)))
    query <- rotate(norm_q(query));   key <- rotate(norm_k(key))

where norm_q runs over all query heads together, and norm_k over all key heads.
"""

from dataclasses import dataclass
from typing import ClassVar

from flax import linen as nn

from rlhf_jax.config import Positive
from rlhf_jax.models import llama
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import blocks
from rlhf_jax.types import Array


@dataclass(frozen=True)
class Config(llama.Config):
    """The shape of a decoder. Defaults are those of the published `config.json` files."""

    norm_eps: Positive = 1e-6


# vocab_size 0 is to be replaced by the tokenizer's. Published shapes: config.json of OLMo-2-0425-1B
# and OLMo-2-1124-7B, -13B.
PRESETS: dict[str, Config] = {
    "quickstart": Config(0, 64, 2, 4, 2, 192),
    "tiny": Config(512, 128, 4, 4, 2, 384),
    "olmo-2-1b": Config(100352, 2048, 16, 16, 16, 8192),
    "olmo-2-7b": Config(100352, 4096, 32, 32, 32, 11008),
    "olmo-2-13b": Config(100352, 5120, 40, 40, 40, 13824),
}

LOGICAL_AXES = {
    axis: names for axis, names in llama.LOGICAL_AXES.items() if axis != "input_layernorm/scale"
} | {
    "post_feedforward_layernorm/scale": (None,),
    "q_norm/scale": (None,),
    "k_norm/scale": (None,),
}


class Layer(llama.Layer):
    """Attention between normed queries and keys, then feed-forward, each with a norm after it."""

    norm_before: ClassVar[bool] = False

    def setup(self) -> None:
        super().setup()
        self.post_feedforward_layernorm = blocks.RMSNorm(self.config.norm_eps)
        self.q_norm = blocks.RMSNorm(self.config.norm_eps)
        self.k_norm = blocks.RMSNorm(self.config.norm_eps)

    def norm_projected(self, queries_AX: Array, keys_AX: Array) -> tuple[Array, Array]:
        return self.q_norm(queries_AX), self.k_norm(keys_AX)

    def join(self, x_AD: Array, mixed_AD: Array) -> Array:
        x_AD = x_AD + self.post_attention_layernorm(self.o_proj(mixed_AD))
        return x_AD + self.post_feedforward_layernorm(self.feed_forward(x_AD))


class Network(llama.Network):
    """The decoder of these layers."""

    layer_type: ClassVar[type[llama.Layer]] = Layer


@dataclass(frozen=True)
class Olmo2(llama.Llama):
    """`Model` of this family."""

    network: ClassVar[type[nn.Module]] = Network
    axes: ClassVar = LOGICAL_AXES


def make(config: Config) -> Model:
    """The model of a shape; frozen and hashable.

    Raises Refusal where the numbers do not fit together.
    """
    llama.check(config)
    return Olmo2(config)
