"""Phi 3, 3.5 and 4 (Abdin et al. 2024, arXiv 2404.14219 and 2412.08905): Llama's decoder with
windows and partial rotation.

The published files hold queries, keys and values as one matrix, and gate and up as another; here
they are apart, as in Llama, so that each is sharded over its own heads (see
`pretrained/layouts.py`). "longrope" divides every frequency by a factor of its own.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from rlhf_jax.config import Bounds, Count, Natural, Positive
from rlhf_jax.models import llama
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import decoder, rope
from rlhf_jax.refusal import Refusal


@dataclass(frozen=True)
class Config(llama.Config):
    """The shape of a decoder. Defaults are of Phi-3-mini-4k's published `config.json`."""

    rope_theta: Positive = 10_000.0
    rope_original_max_positions: Count = 4096
    rotary_fraction: Annotated[float, Bounds(above=0, most=1)] = 1.0  # of the dimensions of a head
    # longrope: numbers apart by spaces, one for each pair of dimensions; one text, so that a config
    # holds plain values.
    rope_short_factors: str = ""  # up to the original context
    rope_long_factors: str = ""  # beyond it; kept for export alone
    sliding_window: Natural = 0  # columns that a query sees at most, its own among them; 0: all

    def window(self, layer: int) -> int:
        return self.sliding_window

    @property
    def rotary_dims(self) -> int:
        """Dimensions of a head that turn."""
        return int(decoder.head_width(self) * self.rotary_fraction)

    def rotary(self, layer: int) -> rope.Rotary:
        return rope.stretched(self, self.rotary_dims)


# vocab_size 0 is to be replaced by the tokenizer's. Published shapes: config.json of Phi-3-mini-4k,
# Phi-3-medium-4k and phi-4.
_MINI = Config(32064, 3072, 32, 32, 32, 8192, sliding_window=2047)
PRESETS: dict[str, Config] = {
    "quickstart": Config(0, 64, 2, 4, 2, 192, rotary_fraction=0.75),
    "tiny": Config(512, 128, 4, 4, 2, 384),
    "phi-3-mini-4k": _MINI,
    "phi-3-medium-4k": replace(
        _MINI, width=5120, num_layers=40, num_heads=40, num_kv_heads=10, ffn_width=17920
    ),
    "phi-4": Config(100352, 5120, 40, 40, 10, 17920, rope_theta=250_000.0),
}

LOGICAL_AXES = llama.LOGICAL_AXES


@dataclass(frozen=True)
class Phi3(llama.Llama):
    """`Model` of this family: Llama's network, whose windows and positions the config gives."""


def make(config: Config) -> Model:
    """The model of a shape; frozen and hashable.

    Raises Refusal where the numbers do not fit together.
    """
    llama.check(config, (*rope.SCALINGS, "longrope"), config.rotary_dims)
    if config.rotary_fraction > 1:
        raise Refusal(f"rotary_fraction is {config.rotary_fraction}; accepted: above 0, at most 1")
    num_factors = len(config.rope_short_factors.split())
    if config.rope_scaling == "longrope" and num_factors != config.rotary_dims // 2:
        raise Refusal(
            f"rope_short_factors has {num_factors} numbers; accepted with longrope: "
            f"{config.rotary_dims // 2}, one for each "
            "pair of dimensions that turn"
        )
    return Phi3(config)
