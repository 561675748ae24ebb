"""Qwen 3 (Yang et al. 2025, arXiv 2505.09388): Llama's decoder whose queries and keys are normed,
each head on its own.

    query_h <- rotate(rmsnorm_q(query_h));   key_j <- rotate(rmsnorm_k(key_j))

with one scale of the head's width for all query heads, and one for all key heads. Heads are wider
than width / num_heads.
"""

from dataclasses import dataclass
from typing import ClassVar

from flax import linen as nn

from rlhf_jax.config import Natural
from rlhf_jax.models import llama, qwen2
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import blocks
from rlhf_jax.types import Array


@dataclass(frozen=True)
class Config(qwen2.Config):
    """The shape of a decoder. Defaults are those of the published `config.json` files."""

    head_width: Natural = 128


# vocab_size 0 is to be replaced by the tokenizer's. Published shapes: config.json of Qwen3.
PRESETS: dict[str, Config] = {
    "quickstart": Config(0, 64, 2, 4, 2, 192, head_width=24),
    "tiny": Config(512, 128, 4, 4, 2, 384, head_width=48),
    "qwen3-0.6b": Config(151936, 1024, 28, 16, 8, 3072, tie_embeddings=True),
    "qwen3-1.7b": Config(151936, 2048, 28, 16, 8, 6144, tie_embeddings=True),
    "qwen3-8b": Config(151936, 4096, 36, 32, 8, 12288),
}

LOGICAL_AXES = llama.LOGICAL_AXES | {"q_norm/scale": (None,), "k_norm/scale": (None,)}


class Layer(llama.Layer):
    """Attention between normed queries and keys, then feed-forward."""

    def setup(self) -> None:
        super().setup()
        self.q_norm = blocks.RMSNorm(self.config.norm_eps)
        self.k_norm = blocks.RMSNorm(self.config.norm_eps)

    def norm_heads(self, queries_BHLK: Array, keys_BJLK: Array) -> tuple[Array, Array]:
        return self.q_norm(queries_BHLK), self.k_norm(keys_BJLK)


class Network(llama.Network):
    """The decoder of these layers."""

    layer_type: ClassVar[type[llama.Layer]] = Layer


@dataclass(frozen=True)
class Qwen3(llama.Llama):
    """`Model` of this family."""

    network: ClassVar[type[nn.Module]] = Network
    axes: ClassVar = LOGICAL_AXES


def make(config: Config) -> Model:
    """The model of a shape; frozen and hashable.

    Raises Refusal where the numbers do not fit together.
    """
    llama.check(config)
    return Qwen3(config)
