"""A decoder family: GPT-NeoX whose feed-forward has a power of the rectifier in the place of the
gelu.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
from flax import linen as nn

from rlhf_jax.config import Count
from rlhf_jax.models import gpt_neox
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import blocks, decoder
from rlhf_jax.types import Array


@dataclass(frozen=True)
class Config(gpt_neox.Config):
    """The shape of a decoder.

    So et al. 2021 (arXiv 2109.08668) find that the square of the rectifier learns best.
    """

    power: Count = 2


PRESETS = {
    "nano": Config(0, 32, 1, 2, ffn_width=64, rotary_fraction=1.0),
    "micro": Config(0, 64, 2, 4, ffn_width=256, rotary_fraction=1.0),
}


class Layer(gpt_neox.Layer):
    """A layer of GPT-NeoX with another feed-forward."""

    config: Config  # pyright: ignore[reportIncompatibleVariableOverride]

    def feed_forward(self, x_AD: Array) -> Array:
        return self.dense_4h_to_h(jax.nn.relu(self.dense_h_to_4h(x_AD)) ** self.config.power)


class Network(gpt_neox.Network):
    """The network of GPT-NeoX, of these layers."""

    config: Config  # pyright: ignore[reportIncompatibleVariableOverride]

    def setup(self) -> None:
        config = self.config
        init = decoder.small_init(config.width, config.init_scale)
        self.embed_in = nn.Embed(
            config.vocab_size, config.width, dtype=config.dtype, embedding_init=init
        )
        self.layer = [Layer(config) for _ in range(config.num_layers)]
        self.final_layer_norm = blocks.LayerNorm(config.norm_eps)
        if not config.tie_embeddings:
            self.embed_out = blocks.Head(config.vocab_size, init)


@dataclass(frozen=True)
class PowerNeoX(decoder.Decoder):
    """`Model` of this family."""

    network: ClassVar[type[nn.Module]] = Network
    axes: ClassVar = gpt_neox.LOGICAL_AXES


def make(config: Config) -> Model:
    """The model of a shape. Raises Refusal where the numbers do not fit together."""
    decoder.check_shape(config)
    return PowerNeoX(config)
