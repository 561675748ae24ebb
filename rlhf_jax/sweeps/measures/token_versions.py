"""The measure of the studies of in-flight updates: versions, ages and stale caches of each round.

A row that is being written when the weights change has lived through a swap. Its keys and values
are then of older params than the ones that draw its next token, unless they are rebuilt. For each
token

    gap    = log p of the sampler − log p of a teacher-forced pass of the token's own version
    drift  = log p of a teacher-forced pass of the token's own version − that of the row's first version
    swaps  = versions that drew earlier tokens of the row and are not the token's own

The gap of a rebuilt cache is rounding. The gap of a kept one is what its stale keys and values do;
the drift is what the swaps did to the policy itself.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from rlhf_jax import scoring
from rlhf_jax.ops import versions
from rlhf_jax.runtime.program import Program
from rlhf_jax.runtime.synchronous import Event, RoundEnd, Scored
from rlhf_jax.types import Array, Params, Samples

MOST_SWAPS = 3
"""Tokens of more swaps are counted with those of so many."""


def swaps_of(version_BC: np.ndarray, mask_BC: np.ndarray) -> np.ndarray:
    """The swaps that each token's row has lived through before it, int `[B, C]`; 0 under the mask.

    >>> swaps_of(np.array([[3, 3, 4, 6, 0]]), np.array([[1, 1, 1, 1, 0]], bool))
    array([[0, 0, 1, 2, 0]])

    Args:
      version_BC: int, of each token; versions never fall along a row.
      mask_BC: bool, true on tokens.
    """
    rises_BC = np.diff(version_BC, axis=1, prepend=version_BC[:, :1]) != 0
    return np.where(mask_BC, np.cumsum(rises_BC & mask_BC, axis=1), 0)


def summary(gap_N: np.ndarray) -> dict[str, float]:
    """Figures of gaps in nats: the mean, 95th percentile and largest of |gap|, and the KL divergence
    of the sampler's distribution from that of the version, by the estimator k3 of its own samples.

    Args:
      gap_N: float, of N tokens; none gives counts of 0 alone.
    """
    if not gap_N.size:
        return {"tokens": 0}
    size_N = np.abs(gap_N)
    return {
        "tokens": int(gap_N.size),
        "mean": float(size_N.mean()),
        "p95": float(np.quantile(size_N, 0.95)),
        "max": float(size_N.max()),
        "kl": float((np.expm1(-gap_N) + gap_N).mean()),
    }


def by_swaps(value_N: np.ndarray, swaps_N: np.ndarray) -> dict[str, dict[str, float]]:
    """`summary` of the tokens of 0, 1, ... swaps, and of all with a swap ("any").

    Args:
      value_N: of each token.
      swaps_N: of each token.
    """
    counted_N = np.minimum(swaps_N, MOST_SWAPS)
    groups = {str(count): value_N[counted_N == count] for count in range(MOST_SWAPS + 1)}
    return {name: summary(values) for name, values in groups.items()} | {
        "any": summary(value_N[swaps_N > 0])
    }


class TokenVersions:
    """Measures every round before it is trained on. It keeps the params of the versions that may
    still have drawn a token, as host arrays.
    """

    def __init__(self, params: Params):
        """Begins a cell.

        Args:
          params: of version 0.
        """
        self._params = {0: jax.device_get(params)}
        self._values: list[np.ndarray] = []  # rows of (gap, drift, swaps) for the tokens of a round
        self._rounds: dict[str, list[float]] = {
            "mixed_share": [],
            "length": [],
            "age": [],
            "gap": [],
        }
        self._logprobs: Callable[[Params, Samples], Array] | None = None

    def take(self, program: Program, event: Event) -> None:
        """Measures a round that is about to be trained on, or keeps the params after one."""
        clock = program.spec.clock
        if isinstance(event, Scored):
            version = event.round_index * clock.updates_per_round
            self._measure(program, event, version)
            later = range(event.round_index + 1, clock.num_rounds)
            needed = min((clock.version(round_index) for round_index in later), default=version)
            self._params = {v: params for v, params in self._params.items() if v >= needed}
        elif isinstance(event, RoundEnd):
            version = (event.round_index + 1) * clock.updates_per_round
            self._params[version] = jax.device_get(program.policy(event.states))

    def _measure(self, program: Program, event: Scored, version: int) -> None:
        """Adds the figures of a round, which is trained on from `version`."""
        if self._logprobs is None:
            model = program.spec.model
            self._logprobs = jax.jit(partial(scoring.sample_logprobs, model=model))
        samples = jax.device_get(event.samples)
        version_BC, mask_BC = samples.version_BC, samples.mask_BC
        present = np.unique(version_BC[mask_BC]).tolist()
        of_version = {
            v: np.asarray(self._logprobs(self._params[v], event.samples)) for v in present
        }
        own_BC, first_BC = np.zeros((2, *version_BC.shape), np.float32)
        for v, logprob_BC in of_version.items():
            own_BC = np.where(version_BC == v, logprob_BC, own_BC)
            first_BC = np.where(version_BC[:, :1] == v, logprob_BC, first_BC)
        gap_BC, swaps_BC = samples.behavior_logprob_BC - own_BC, swaps_of(version_BC, mask_BC)
        values = np.stack([gap_BC, own_BC - first_BC, swaps_BC], axis=-1)[mask_BC]
        self._values.append(values)
        swapped_N = values[:, 2] > 0
        figures = {
            "mixed_share": versions.is_mixed(version_BC, mask_BC).mean(),
            "length": mask_BC.sum(axis=1).mean(),
            "age": (version - version_BC[mask_BC]).mean(),
            "gap": np.abs(values[swapped_N, 0]).mean() if swapped_N.any() else 0.0,
        }
        for name, value in figures.items():
            self._rounds[name].append(float(value))

    def figures(self) -> Mapping[str, Any]:
        """Gaps and drifts of the run's tokens by swaps, and a list over rounds of each figure."""
        values = np.concatenate(self._values) if self._values else np.zeros((0, 3))
        gap_N, drift_N, swaps_N = values.astype(np.float64).T
        return {
            "gap": by_swaps(gap_N, swaps_N),
            "drift": by_swaps(drift_N, swaps_N),
            "rounds": self._rounds,
        }


def ends(rounds: Sequence[float], share: float = 0.125) -> tuple[float, float]:
    """Means of a figure over the first and over the last rounds of a run.

    Args:
      rounds: a value for each round.
      share: of the rounds that are averaged at each end; one at least.
    """
    count = max(1, round(share * len(rounds)))
    return float(np.mean(rounds[:count])), float(np.mean(rounds[-count:]))


def matched_schedule(ages: Sequence[float]) -> tuple[int, ...]:
    """A version schedule whose rounds have given mean ages, rounded so that their sums agree.

    >>> matched_schedule([0.0, 0.6, 1.6, 1.6, 1.6])
    (0, 0, 1, 1, 3)

    Args:
      ages: mean age of each round's tokens in updates, one update a round; at most its number.

    Returns versions; the sum of the first ages is that of `ages` within 1/2, for every count.
    """
    sums = np.rint(np.cumsum(ages)).astype(int)
    rounded = np.diff(sums, prepend=0)
    return tuple(int(r - age) for r, age in enumerate(rounded))
