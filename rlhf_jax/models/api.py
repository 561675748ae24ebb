"""What a decoder family provides: pure functions of plain params, with an explicit cache."""

from typing import Any, Protocol

import numpy as np
from flax import struct

from rlhf_jax.types import Array, Params


@struct.dataclass
class Cache:
    """Keys and values of the positions seen so far; all rows share one physical write column.

    `column` is a scalar, so that a write is a `dynamic_update_slice` and never a scatter; left-padded prompts make the columns
    of a batch meet. A cache from `init_cache` has a numpy 0 here: a prefill that is traced with it attends to its own L
    columns alone, not to all M.
    """

    keys: tuple[Array, ...]  # one a layer, each [B, J, M, K]
    values: tuple[Array, ...]
    mask_BM: Array  # bool, columns that hold a real token
    column: Array | np.ndarray  # int32 scalar, where the next token is written


class Model(Protocol):
    """A decoder. Params are a nested dict of plain float32 arrays with one entry a layer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def width(self) -> int: ...

    def init(self, key: Array) -> Params:
        """Fresh float32 params."""
        ...

    def apply(
        self, params: Params, tokens_BL: Array, positions_BL: Array, mask_BL: Array, cache: Cache | None = None
    ) -> tuple[Array, Cache | None]:
        """Final-normed hidden states `[B, L, D]` in the compute dtype.

        A query attends to unmasked columns at or before its own. With a cache, the L tokens are written at
        `cache.column` onwards and the cache returned has moved on by L; without one, None is returned.
        """
        ...

    def head(self, params: Params, hidden: Array) -> Array:
        """`[..., D] -> [..., V]` float32 logits, accumulated in float32."""
        ...

    def init_cache(self, batch_size: int, max_columns: int) -> Cache:
        """An empty cache for `max_columns` positions."""
        ...

    def logical_axes(self, params: Params) -> Any:
        """A tree like params, with a tuple of logical axis names (or None) for each array's dimensions.

        Names: vocab, embed, heads, kv_heads, mlp. `runtime/sharding.py` maps them to mesh axes.
        """
        ...
