"""The explicit cache of keys and values, as attention reads and extends it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models.api import Cache
from rlhf_jax.models.common.blocks import hide_columns
from rlhf_jax.types import Array


def _is_empty(cache: Cache) -> bool:
    """True where a cache is known, at trace time, to hold nothing yet."""
    return isinstance(cache.column, np.ndarray) and int(cache.column) == 0


def see(
    mask_BL: Array, positions_BL: Array, cache: Cache | None, window: int = 0
) -> tuple[Array, Array]:
    """The position of every column once L tokens are written, and the addends that hide columns.

    Without a cache, columns stand for positions: the tokens of a row are contiguous there.

    Args:
      mask_BL: bool, of the L new tokens.
      positions_BL: int32, of the L new tokens.
      cache: before they are written.
      window: as in `hide_columns`.

    Returns int32 `[B, M]`, and `hide_columns` on the columns that `remember` gives to attention.
    These are the L new ones alone if there is no cache, or one that is known to be empty.
    """
    if cache is None:
        column_1L = jnp.arange(mask_BL.shape[1], dtype=jnp.int32)[None]
        position_BL = jnp.where(mask_BL, column_1L, -1)
        return position_BL, hide_columns(position_BL, column_1L, window)
    position_BL = jnp.where(mask_BL, positions_BL, -1)
    position_BM = jax.lax.dynamic_update_slice(cache.position_BM, position_BL, (0, cache.column))
    seen = position_BL if _is_empty(cache) else position_BM
    return position_BM, hide_columns(seen, position_BL, window)


def remember(
    cache: Cache | None, layer: int, new: Sequence[Array]
) -> tuple[Sequence[Array], Sequence[Array]]:
    """A layer's keys and values, with L new columns at `cache.column`.

    Args:
      cache: None keeps the new columns alone.
      layer: its index in the cache.
      new: keys and values `[B, J, L, K]`.

    Returns the pair to attend to, and the pair to keep, `[B, J, M, K]` each. They differ for an
    empty cache: attention then needs the new columns alone.
    """
    if cache is None:
        return new, new
    kept = tuple(
        jax.lax.dynamic_update_slice(
            old[layer], fresh.astype(old[layer].dtype), (0, 0, cache.column, 0)
        )
        for old, fresh in zip((cache.keys, cache.values), new, strict=True)
    )
    return (new if _is_empty(cache) else kept), kept


def next_cache(
    cache: Cache | None, kept: list[Sequence[Array]], position_BM: Array, num_tokens: int
) -> Cache | None:
    """The cache after `num_tokens` more columns; None if there was none.

    Args:
      cache: before the tokens were written.
      kept: keys and values of each layer, as `remember` returns them.
      position_BM: as `see` returns it.
      num_tokens: L.
    """
    if cache is None:
        return None
    keys, values = zip(*kept, strict=True)
    return Cache(
        keys=keys,
        values=values,
        position_BM=position_BM,
        column=jnp.asarray(cache.column) + num_tokens,
    )
