"""A scalar on every hidden state of a decoder: reward models and critics."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rlhf_jax.models.api import Cache, LogicalAxes, Model
from rlhf_jax.types import Array, Params

LOGICAL_AXES = {"kernel": ("embed", None), "bias": (None,)}


@dataclass(frozen=True)
class ValueModel:
    """A backbone with a linear head; params are `{"backbone": ..., "value_head": {"kernel": [D, 1],
    "bias": [1]}}`.

    The backbone's own head stays among the params, untouched by a loss on values, so that a
    policy's params serve as they are.
    """

    backbone: Model

    @property
    def vocab_size(self) -> int:
        return self.backbone.vocab_size

    @property
    def padding_id(self) -> int:
        """The id at which a score is never read; -1: a score is read at any token."""
        return self.backbone.padding_id

    def with_config(self, **changes: object) -> "ValueModel":
        """On a backbone with other values in its config; see `models/api.py`."""
        return ValueModel(self.backbone.with_config(**changes))

    def init(self, key: Array) -> Params:
        """Fresh float32 params."""
        key_backbone, key_head = jax.random.split(key)
        return self.init_from(self.backbone.init(key_backbone), key_head)

    def init_from(self, backbone_params: Params, key: Array) -> Params:
        """Params on a given backbone (the same arrays, not copies), with a fresh head.

        The kernel is normal of deviation 1 / sqrt(D + 1) and the bias 0 (Stiennon et al. 2020,
        arXiv 2009.01325, and Huang et al. 2024, arXiv 2403.17031, on reproducing it).

        Args:
          backbone_params: of the decoder.
          key: of the head's random numbers.
        """
        width = self.backbone.width
        kernel = jax.random.normal(key, (width, 1), jnp.float32) / math.sqrt(width + 1)
        return {
            "backbone": backbone_params,
            "value_head": {"kernel": kernel, "bias": jnp.zeros((1,), jnp.float32)},
        }

    def apply(
        self,
        params: Params,
        tokens_BL: Array,
        positions_BL: Array,
        mask_BL: Array,
        cache: Cache | None = None,
    ) -> tuple[Array, Cache | None]:
        """The backbone's hidden states; see `models/api.py`."""
        return self.backbone.apply(params["backbone"], tokens_BL, positions_BL, mask_BL, cache)

    def value(self, params: Params, hidden: Array) -> Array:
        """Values `[...]`, float32 and computed in float32.

        Args:
          params: of backbone and head.
          hidden: `[..., D]`, as `apply` returns them.
        """
        head = params["value_head"]
        flat_AD = hidden.reshape(-1, hidden.shape[-1]).astype(jnp.float32)
        return (jnp.dot(flat_AD, head["kernel"])[:, 0] + head["bias"]).reshape(hidden.shape[:-1])

    def init_cache(self, batch_size: int, max_columns: int) -> Cache:
        """An empty cache of the backbone."""
        return self.backbone.init_cache(batch_size, max_columns)

    def logical_axes(self, params: Params) -> LogicalAxes:
        """A tree like params of tuples of logical axis names."""
        head = {name: LOGICAL_AXES[name] for name in params["value_head"]}
        return {"backbone": self.backbone.logical_axes(params["backbone"]), "value_head": head}


def make(backbone: Model) -> ValueModel:
    """The value model on a backbone; frozen and hashable."""
    return ValueModel(backbone)
