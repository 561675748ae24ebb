"""SmolLM 3 (Hugging Face 2025): Llama's decoder, one layer of four without positions (Yang et al.
2025, arXiv 2501.18795).

Where windows are switched on, the layers without positions are those that see a window.
"""

from dataclasses import dataclass

from rlhf_jax.config import Natural, Positive
from rlhf_jax.models import llama
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import rope


@dataclass(frozen=True)
class Config(llama.Config):
    """The shape of a decoder. Defaults are those of the published `config.json` files."""

    rope_theta: Positive = 5_000_000.0
    norm_eps: Positive = 1e-6
    tie_embeddings: bool = True
    sliding_window: Natural = 0  # columns that a query sees at most, its own among them; 0: all
    no_rope_interval: Natural = (
        4  # layers 4, 8, ... counted from 1 do not turn queries and keys; 0: all do
    )

    def turns(self, layer: int) -> bool:
        """The layer turns its queries and keys."""
        return not self.no_rope_interval or (layer + 1) % self.no_rope_interval != 0

    def window(self, layer: int) -> int:
        return 0 if self.turns(layer) else self.sliding_window

    def rotary(self, layer: int) -> rope.Rotary:
        return super().rotary(layer) if self.turns(layer) else rope.NONE


# vocab_size 0 is to be replaced by the tokenizer's. Published shapes: config.json of SmolLM3-3B.
PRESETS: dict[str, Config] = {
    "quickstart": Config(0, 64, 2, 4, 2, 192, tie_embeddings=False, no_rope_interval=2),
    "tiny": Config(512, 128, 4, 4, 2, 384, tie_embeddings=False),
    "smollm3-3b": Config(128256, 2048, 36, 16, 4, 11008),
}

LOGICAL_AXES = llama.LOGICAL_AXES


@dataclass(frozen=True)
class SmolLM3(llama.Llama):
    """`Model` of this family: Llama's network, whose positions and windows the config gives."""


def make(config: Config) -> Model:
    """The model of a shape; frozen and hashable.

    Raises Refusal where the numbers do not fit together.
    """
    llama.check(config)
    return SmolLM3(config)
