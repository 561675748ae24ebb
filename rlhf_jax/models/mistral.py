"""Mistral (Jiang et al. 2023, arXiv 2310.06825): Llama's decoder, each query of which sees a
sliding window of columns.
"""

from dataclasses import dataclass

from rlhf_jax.config import Natural, Positive
from rlhf_jax.models import llama
from rlhf_jax.models.api import Model


@dataclass(frozen=True)
class Config(llama.Config):
    """The shape of a decoder.

    Defaults are of version 0.3's published `config.json`, which has no window.
    """

    rope_theta: Positive = 1_000_000.0
    sliding_window: Natural = 0  # columns that a query sees at most, its own among them; 0: all

    def window(self, layer: int) -> int:
        return self.sliding_window


# vocab_size 0 is to be replaced by the tokenizer's. Published shapes: config.json of
# mistralai/Mistral-7B-v0.1 and v0.3.
PRESETS: dict[str, Config] = {
    "quickstart": Config(0, 64, 2, 4, 2, 192),
    "tiny": Config(512, 128, 4, 4, 2, 384),
    "mistral-7b-v0.1": Config(
        32000, 4096, 32, 32, 8, 14336, rope_theta=10_000.0, sliding_window=4096
    ),
    "mistral-7b-v0.3": Config(32768, 4096, 32, 32, 8, 14336),
}

LOGICAL_AXES = llama.LOGICAL_AXES


@dataclass(frozen=True)
class Mistral(llama.Llama):
    """`Model` of this family: Llama's network, whose windows the config gives."""


def make(config: Config) -> Model:
    """The model of a shape; frozen and hashable.

    Raises Refusal where the numbers do not fit together.
    """
    llama.check(config)
    return Mistral(config)
