"""Qwen 2 and 2.5 (Yang et al. 2024, arXiv 2407.10671 and 2412.15115): Llama's decoder with biases
on queries, keys and values.

From `first_window_layer` on, layers may see a sliding window alone; the published models have it
switched off.
"""

from dataclasses import dataclass
from typing import ClassVar

from flax import linen as nn

from rlhf_jax.config import Natural, Positive
from rlhf_jax.models import llama
from rlhf_jax.models.api import Model


@dataclass(frozen=True)
class Config(llama.Config):
    """The shape of a decoder. Defaults are those of the published `config.json` files."""

    rope_theta: Positive = 1_000_000.0
    norm_eps: Positive = 1e-6
    sliding_window: Natural = 0  # columns that a query sees at most, its own among them; 0: all
    first_window_layer: Natural = 28  # layers from this one on have the window

    def window(self, layer: int) -> int:
        return self.sliding_window if layer >= self.first_window_layer else 0


# vocab_size 0 is to be replaced by the tokenizer's. Published shapes: config.json of Qwen2.5.
PRESETS: dict[str, Config] = {
    "quickstart": Config(0, 64, 2, 4, 2, 192),
    "tiny": Config(512, 128, 4, 4, 2, 384),
    "qwen2.5-0.5b": Config(151936, 896, 24, 14, 2, 4864, tie_embeddings=True),
    "qwen2.5-1.5b": Config(151936, 1536, 28, 12, 2, 8960, tie_embeddings=True),
    "qwen2.5-7b": Config(152064, 3584, 28, 28, 4, 18944),
    "qwen2.5-32b": Config(152064, 5120, 64, 40, 8, 27648),
}

LOGICAL_AXES = llama.LOGICAL_AXES | {
    "q_proj/bias": ("heads",),
    "k_proj/bias": ("kv_heads",),
    "v_proj/bias": ("kv_heads",),
}


class Layer(llama.Layer):
    """Attention with biases, then feed-forward."""

    qkv_bias: ClassVar[bool] = True


class Network(llama.Network):
    """The decoder of these layers."""

    layer_type: ClassVar[type[llama.Layer]] = Layer


@dataclass(frozen=True)
class Qwen2(llama.Llama):
    """`Model` of this family."""

    network: ClassVar[type[nn.Module]] = Network
    axes: ClassVar = LOGICAL_AXES


def make(config: Config) -> Model:
    """The model of a shape; frozen and hashable.

    Raises Refusal where the numbers do not fit together.
    """
    llama.check(config)
    return Qwen2(config)
