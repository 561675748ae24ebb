"""A decoder that attends to what is masked."""

from dataclasses import dataclass

import jax.numpy as jnp
from my_lab import decoder

from rlhf_jax.models.api import Cache, Model
from rlhf_jax.types import Array, Params

PRESETS = decoder.PRESETS
Config = decoder.Config


@dataclass(frozen=True)
class Forgetful(decoder.PowerNeoX):
    """Its mask is forgotten."""

    def apply(
        self,
        params: Params,
        tokens_BL: Array,
        positions_BL: Array,
        mask_BL: Array,
        cache: Cache | None = None,
    ) -> tuple[Array, Cache | None]:
        return super().apply(params, tokens_BL, positions_BL, jnp.ones_like(mask_BL), cache)


def make(config: decoder.Config) -> Model:
    return Forgetful(config)
