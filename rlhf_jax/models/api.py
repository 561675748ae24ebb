"""Interface of a decoder family: pure functions of plain params, with an explicit cache."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlhf_jax.types import Array, Params

LogicalAxes = Mapping[str, Any]
"""Nested dicts like params, with a tuple of logical axis names (or None) in place of each array."""


@struct.dataclass
class Cache:
    """Keys and values of the positions seen so far; all rows share one physical write column.

    `column` is a scalar, so that a write is a `dynamic_update_slice` and never a scatter;
    left-padded prompts make the columns of a batch meet. A cache from `init_cache` has a numpy 0
    here: a prefill that is traced with it attends to its own L columns alone, not to all M.
    """

    # one a layer, each [B, J, M, K]; of stacked layers [N // p, B, J, M, K], see `stacking.py`
    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    position_BM: Array  # int32, position of the token in a column; -1: none of this row
    column: Array | np.ndarray  # int32 scalar, where the next token is written


def repeat_rows(array: Array, times: int) -> Array:
    """`[P, ...] -> [P * times, ...]`, group-contiguous.

    It is a broadcast, so that rows stay on the shard of their group.

    Args:
      array: rows first.
      times: copies of each row, next to one another.
    """
    spread = jnp.broadcast_to(array[:, None], (array.shape[0], times, *array.shape[1:]))
    return spread.reshape(-1, *array.shape[1:])


def repeat_cache(cache: Cache, times: int) -> Cache:
    """A cache with `times` equal rows for each row, group-contiguous.

    A prompt that several rows share is so prefilled only once.

    Args:
      cache: of P rows.
      times: rows of each prompt.

    Returns a cache of `P * times` rows at the same column.
    """
    repeated = partial(repeat_rows, times=times)

    def of_layer(array: Array) -> Array:  # of stacked layers: of each
        return repeated(array) if array.ndim == 4 else jax.vmap(repeated)(array)

    return Cache(
        keys=tuple(map(of_layer, cache.keys)),
        values=tuple(map(of_layer, cache.values)),
        position_BM=repeat_rows(cache.position_BM, times),
        column=cache.column,
    )


class Model(Protocol):
    """A decoder. Params are a nested dict of plain float32 arrays with one entry a layer."""

    @property
    def family(self) -> str:
        """Name of its file in `models/`, which says how published folders name its params."""
        ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def dtype(self) -> str:
        """Dtype of products and hidden states: float32 or bfloat16."""
        ...

    @property
    def remat(self) -> bool:
        """True where layers are computed again in the backward pass."""
        ...

    @property
    def padding_id(self) -> int:
        """The id at which a score is never read (see `rewards/learned.py`); -1: a score is read at
        any token.
        """
        ...

    def with_config(self, **changes: object) -> "Model":
        """The same model but for some values of its config: another number of layers, or `remat`."""
        ...

    def init(self, key: Array) -> Params:
        """Fresh float32 params."""
        ...

    def apply(
        self,
        params: Params,
        tokens_BL: Array,
        positions_BL: Array,
        mask_BL: Array,
        cache: Cache | None = None,
    ) -> tuple[Array, Cache | None]:
        """Hidden states after the final norm, `[B, L, D]` in the compute dtype.

        A query attends to unmasked tokens of its row at or before its own position. Without a cache
        the tokens of a row are contiguous, and columns are compared.

        Args:
          params: as `init` returns them.
          tokens_BL: int32 ids.
          positions_BL: int32 positions of the tokens, such as `positions_from_mask` returns.
          mask_BL: bool, true on real tokens.
          cache: of B rows. The L tokens are written from `cache.column` on.

        Returns the hidden states, and the cache after L more columns; None without a cache.
        """
        ...

    def head(self, params: Params, hidden: Array) -> Array:
        """Logits `[..., V]`, float32 and accumulated in float32.

        Args:
          params: as `init` returns them.
          hidden: `[..., D]`, as `apply` returns them.
        """
        ...

    def init_cache(self, batch_size: int, max_columns: int) -> Cache:
        """An empty cache.

        Args:
          batch_size: rows, B.
          max_columns: positions of each row, M: the prompt's and the completion's.
        """
        ...

    def logical_axes(self, params: Params) -> LogicalAxes:
        """A tree like params, with a tuple of logical axis names (or None) for each array's
        dimensions.

        Names: vocab, embed, heads, kv_heads, mlp. `devices/sharding.py` maps them to mesh axes.
        """
        ...
