"""Versions of tokens: the oldest and the newest of a row, the rows that have several, and ages.

A token's version is the number of updates that the params which drew it have had. Every token of a
row has the same version where weights change between rounds; a row that was being written when the
weights changed has several, which never fall along the row. A token's age in an update is

    age = r*u + j - version          of update j of round r, with u updates a round

`oldest`, `newest` and `is_mixed` take arrays of numpy or JAX, and return the same kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import jax.numpy as jnp
import numpy as np

from rlhf_jax.types import Array, Max, Mean, Metrics, Quantile

Kind = TypeVar("Kind", Array, np.ndarray)
HIGHEST = np.iinfo(np.int32).max


def oldest(version_BC: Kind, mask_BC: Kind) -> Kind:
    """The least version of each row's tokens, `[B]` int32; `HIGHEST` for a row without a token.

    Args:
      version_BC: int32, of each token.
      mask_BC: bool, true on tokens.
    """
    return cast(Kind, version_BC.min(axis=1, where=mask_BC, initial=HIGHEST))


def newest(version_BC: Kind, mask_BC: Kind) -> Kind:
    """The largest version of each row's tokens, `[B]` int32; -1 for a row without a token.

    Args:
      version_BC: int32, of each token.
      mask_BC: bool, true on tokens.
    """
    return cast(Kind, version_BC.max(axis=1, where=mask_BC, initial=-1))


def is_mixed(version_BC: Kind, mask_BC: Kind) -> Kind:
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


@dataclass(frozen=True)
class TokenCounts:
    """The tokens of each row of a round by version, on the host.

    Example: `count_BK` [[2, 1], [0, 3]] with `version_K` [4, 6]: two tokens of row 0 have version 4.
    """

    version_K: np.ndarray  # int, ascending, each of at least one token
    count_BK: np.ndarray  # int

    @classmethod
    def of(cls, version_BC: np.ndarray, mask_BC: np.ndarray) -> "TokenCounts":
        """Counts the tokens of samples.

        Args:
          version_BC: int32, of each token.
          mask_BC: bool, true on tokens.
        """
        version_N = version_BC[mask_BC]
        # Most rounds have one version, and millions of tokens need not be sorted to see it.
        is_one = version_N.min() == version_N.max()
        version_K = version_N[:1] if is_one else np.unique(version_N)
        counts = [((version_BC == version) & mask_BC).sum(axis=1) for version in version_K]
        return cls(version_K, np.stack(counts, axis=1))

    def mean_B(self) -> np.ndarray:
        """Mean version of each row's tokens, float64."""
        return self.count_BK @ self.version_K / self.count_BK.sum(axis=1)

    def ages(
        self,
        update: int,
        num_ages: int,
        rows: Sequence[int] | None = None,
        sign_B: np.ndarray | None = None,
    ) -> Metrics:
        """Metrics of the ages of the tokens that an update trains on.

        Args:
          update: the version that is trained, r*u + j.
          num_ages: ages are below it: one more than the clock's largest.
          rows: of the samples, that it trains on; one that is trained on twice counts twice. None:
            all.
          sign_B: sign of each row's advantage; None: rows have none.

        Returns `age_mean` over tokens, `age_p95` with a bin for each age, `age_max`, and
        `mixed_share`, the share of rows whose tokens have more than one version. `age_mean_short` is
        that of the tokens of rows with no more tokens than the median row, and `age_mean_long` with
        no fewer; rows of the median's length are in both. `age_mean_positive` and
        `age_mean_negative` are those of rows by the sign, where there are such rows.
        """
        chosen = slice(None) if rows is None else np.asarray(rows)
        count_RK = self.count_BK[chosen]
        count_K, age_K = count_RK.sum(axis=0), update - self.version_K
        is_mixed_R = (count_RK > 0).sum(axis=1) > 1
        count_A = np.zeros(num_ages)
        np.add.at(count_A, np.clip(age_K, 0, num_ages - 1), count_K)
        length_R = count_RK.sum(axis=1)
        median = np.median(length_R)
        parts = {"short": length_R <= median, "long": length_R >= median}
        if sign_B is not None:
            sign_R = sign_B[chosen]
            parts |= {"positive": sign_R > 0, "negative": sign_R < 0}
        by_part = {
            f"age_mean_{part}": _mean_age(age_K, count_RK[is_in_R].sum(axis=0))
            for part, is_in_R in parts.items()
            if is_in_R.any()
        }
        return {
            "age_mean": _mean_age(age_K, count_K),
            **by_part,
            "age_p95": Quantile(_host(count_A), -0.5, num_ages - 0.5, 0.95),
            "age_max": Max(_host(age_K[count_K > 0].max())),
            "mixed_share": Mean(_host(is_mixed_R.sum()), _host(is_mixed_R.size)),
        }


def _mean_age(age_K: np.ndarray, count_K: np.ndarray) -> Mean:
    return Mean(_host(age_K @ count_K), _host(count_K.sum()))


def _host(number: object) -> Array:
    """An array that stays on the host: no device has to be waited for."""
    return cast(Array, np.asarray(number))
