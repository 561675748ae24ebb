"""Versions of tokens: the oldest and the newest of a row, and the rows that have several.

A token's version is the number of updates that the params which drew it have had. Every token of a
row has the same version where weights change between rounds; a row that was being written when the
weights changed has several, which never fall along the row.

Functions take arrays of numpy or JAX, and return the same kind.
"""

import jax.numpy as jnp
import numpy as np

from rlhf_jax.types import Array

HIGHEST = np.iinfo(np.int32).max


def oldest(version_BC: Array, mask_BC: Array) -> Array:
    """The least version of each row's tokens, `[B]` int32; `HIGHEST` for a row without a token.

    Args:
      version_BC: int32, of each token.
      mask_BC: bool, true on tokens.
    """
    return version_BC.min(axis=1, where=mask_BC, initial=HIGHEST)


def newest(version_BC: Array, mask_BC: Array) -> Array:
    """The largest version of each row's tokens, `[B]` int32; -1 for a row without a token.

    Args:
      version_BC: int32, of each token.
      mask_BC: bool, true on tokens.
    """
    return version_BC.max(axis=1, where=mask_BC, initial=-1)


def is_mixed(version_BC: Array, mask_BC: Array) -> Array:
    """Marks the rows whose tokens have more than one version, `[B]` bool.

    Args:
      version_BC: int32, of each token.
      mask_BC: bool, true on tokens.
    """
    return oldest(version_BC, mask_BC) < newest(version_BC, mask_BC)


def runs(version_BC: np.ndarray, mask_BC: np.ndarray) -> list[list[list[int]]]:
    """The versions of each row as run lengths: `[[version, tokens], ...]` in the order of its tokens.

    >>> runs(np.array([[3, 3, 4, 0], [4, 0, 0, 0]]), np.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool))
    [[[3, 2], [4, 1]], [[4, 1]]]

    Args:
      version_BC: int32, of each token.
      mask_BC: bool, true on tokens.
    """
    rows: list[list[list[int]]] = []
    for version_C, mask_C in zip(version_BC, mask_BC, strict=True):
        tokens = version_C[mask_C]
        begins = np.flatnonzero(np.diff(tokens, prepend=tokens[:1] - 1))
        lengths = np.diff(begins, append=tokens.size)
        rows.append(
            [list(run) for run in zip(tokens[begins].tolist(), lengths.tolist(), strict=True)]
        )
    return rows


def broadcast(version: Array | np.ndarray | int, mask_BC: Array) -> Array:
    """`version_BC` of samples whose tokens all have one version: int32, 0 where the mask is false.

    Args:
      version: a scalar.
      mask_BC: bool, true on tokens.
    """
    return jnp.where(mask_BC, jnp.asarray(version, jnp.int32), 0)
