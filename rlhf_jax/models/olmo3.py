"""OLMo 3 (OLMo Team 2025, arXiv 2512.13961): OLMo 2's decoder, three layers of four with a sliding
window.

Every `full_attention_interval`-th layer sees all columns, and its positions alone are stretched for
long contexts.
"""

from dataclasses import dataclass, replace

from rlhf_jax.config import Natural
from rlhf_jax.models import llama, olmo2
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import decoder, rope


@dataclass(frozen=True)
class Config(olmo2.Config):
    """The shape of a decoder. Defaults are those of the published `config.json` files."""

    sliding_window: Natural = 4096  # columns that a query sees at most, its own among them; 0: all
    full_attention_interval: Natural = (
        4  # layers 4, 8, ... counted from 1 see all columns; 0: none does
    )

    def sees_all(self, layer: int) -> bool:
        """The layer is one of those without a window."""
        return (
            bool(self.full_attention_interval) and (layer + 1) % self.full_attention_interval == 0
        )

    def window(self, layer: int) -> int:
        return 0 if self.sees_all(layer) else self.sliding_window

    def rotary(self, layer: int) -> rope.Rotary:
        return (
            super().rotary(layer)
            if self.sees_all(layer)
            else rope.plain(decoder.head_width(self), self.rope_theta)
        )


# vocab_size 0 is to be replaced by the tokenizer's. Published shapes: config.json of
# Olmo-3-1025-7B, whose later stages are stretched from 8,192 to 65,536 positions.
_BASE = Config(100278, 4096, 32, 32, 32, 11008)
PRESETS: dict[str, Config] = {
    "quickstart": Config(0, 64, 2, 4, 2, 192, sliding_window=32, full_attention_interval=2),
    "tiny": Config(512, 128, 4, 4, 2, 384, sliding_window=64),
    "olmo-3-7b": replace(
        _BASE,
        rope_scaling="yarn",
        rope_scaling_factor=8.0,
        rope_high_frequency_factor=32.0,
        rope_attention_factor=1.2079441541679836,
    ),
}

LOGICAL_AXES = olmo2.LOGICAL_AXES


@dataclass(frozen=True)
class Olmo3(olmo2.Olmo2):
    """`Model` of this family: OLMo 2's network, whose windows and positions the config gives."""


def make(config: Config) -> Model:
    """The model of a shape; frozen and hashable.

    Raises Refusal where the numbers do not fit together.
    """
    llama.check(config)
    return Olmo3(config)
