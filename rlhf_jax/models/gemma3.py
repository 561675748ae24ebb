"""Gemma 3 (Gemma Team 2025, arXiv 2503.19786): Gemma 2's decoder without caps, whose queries and
keys are normed.

    query_h <- rotate(norm_q(query_h));   key_j <- rotate(norm_k(key_j))

with Gemma's norm (1 + weight) on each head. Every `full_attention_interval`-th layer sees all
columns, with positions of `rope_theta`, stretched for long contexts. The others see a sliding
window, with positions of `rope_local_theta`. The published `model_type` is gemma3_text; the larger
models are published with a vision tower, which is not computed.
"""

from dataclasses import dataclass
from typing import ClassVar

from flax import linen as nn

from rlhf_jax.config import Natural, NonNegative, Positive
from rlhf_jax.models import gemma2, llama
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import decoder, rope
from rlhf_jax.types import Array


@dataclass(frozen=True)
class Config(gemma2.Config):
    """The shape of a decoder.

    Defaults are those of the published `config.json` files; a cap or window of 0 is none.
    """

    score_cap: NonNegative = 0.0  # attention scores are capped smoothly at it
    logit_cap: NonNegative = 0.0  # logits, too
    sliding_window: Natural = 512  # columns that a query sees at most, its own among them
    rope_theta: Positive = 1_000_000.0  # of the layers that see all columns
    rope_local_theta: Positive = 10_000.0  # of the layers with a window
    full_attention_interval: Natural = (
        6  # layers 6, 12, ... counted from 1 see all columns; 0: none does
    )

    def sees_all(self, layer: int) -> bool:
        """The layer is one of those without a window."""
        return (
            bool(self.full_attention_interval) and (layer + 1) % self.full_attention_interval == 0
        )

    def window(self, layer: int) -> int:
        return 0 if self.sees_all(layer) else self.sliding_window

    def rotary(self, layer: int) -> rope.Rotary:
        head_width = decoder.head_width(self)
        return (
            super().rotary(layer)
            if self.sees_all(layer)
            else rope.plain(head_width, self.rope_local_theta)
        )


# vocab_size 0 is to be replaced by the tokenizer's. Published shapes: config.json of gemma-3-270m
# and gemma-3-1b.
PRESETS: dict[str, Config] = {
    "quickstart": Config(
        0,
        64,
        2,
        4,
        2,
        192,
        head_width=24,
        query_scalar=24,
        sliding_window=32,
        full_attention_interval=2,
    ),
    "tiny": Config(
        512,
        128,
        4,
        4,
        2,
        384,
        head_width=48,
        query_scalar=48,
        sliding_window=64,
        full_attention_interval=2,
    ),
    "gemma-3-270m": Config(262144, 640, 18, 4, 1, 2048),
    "gemma-3-1b": Config(262144, 1152, 26, 4, 1, 6912),
}

LOGICAL_AXES = gemma2.LOGICAL_AXES | {"q_norm/weight": (None,), "k_norm/weight": (None,)}


class Layer(gemma2.Layer):
    """Attention between normed queries and keys and feed-forward, each with a norm before and a
    norm after it.
    """

    def setup(self) -> None:
        super().setup()
        self.q_norm = gemma2.Norm(self.config.norm_eps)
        self.k_norm = gemma2.Norm(self.config.norm_eps)

    def norm_heads(self, queries_BHLK: Array, keys_BJLK: Array) -> tuple[Array, Array]:
        return self.q_norm(queries_BHLK), self.k_norm(keys_BJLK)


class Network(gemma2.Network):
    """The decoder of these layers, its embeddings scaled."""

    layer_type: ClassVar[type[llama.Layer]] = Layer


@dataclass(frozen=True)
class Gemma3(gemma2.Gemma2):
    """`Model` of this family."""

    network: ClassVar[type[nn.Module]] = Network
    axes: ClassVar = LOGICAL_AXES


def make(config: Config) -> Model:
    """The model of a shape; frozen and hashable.

    Raises Refusal where the numbers do not fit together.
    """
    gemma2.check(config)
    return Gemma3(config)
