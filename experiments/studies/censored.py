"""Regression of times that are known within bounds, and its intervals over seeds.

A run that is evaluated every few updates and collapses between two evaluations has a time of
collapse in an interval. One that never collapses is only known to last longer than the run.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
from scipy import optimize, special

from rlhf_jax.report.statistics import OfSeed

LEAST_SPREAD = 0.05  # of log times: the evaluations are not closer than that to one another


def fit(low_N: np.ndarray, high_N: np.ndarray, feature_NK: np.ndarray) -> np.ndarray:
    """Coefficients `[K]` of log time = feature · coefficient + normal error, by maximum likelihood.

    Args:
      low_N: time i is larger than this; 0 where nothing is known.
      high_N: it is at most this; inf where nothing is known.
      feature_NK: with a column of ones for a constant.

    Raises ValueError for an interval that holds nothing, and where no time has both bounds, so that
    the spread has no estimate.
    """
    low_N, high_N = np.asarray(low_N, float), np.asarray(high_N, float)
    feature_NK = np.asarray(feature_NK, float)
    if not (low_N < high_N).all():
        raise ValueError("an interval holds no time: low must be below high")
    if not ((low_N > 0) & np.isfinite(high_N)).any():
        raise ValueError("no time has two bounds")
    with np.errstate(divide="ignore"):
        log_low_N, log_high_N = np.log(low_N), np.log(high_N)

    def loss(values: np.ndarray) -> float:
        spread = LEAST_SPREAD + math.exp(values[-1])
        at_N = feature_NK @ values[:-1]
        below_N = special.log_ndtr((log_low_N - at_N) / spread)
        until_N = special.log_ndtr((log_high_N - at_N) / spread)
        above_N = special.log_ndtr((at_N - log_low_N) / spread)
        beyond_N = special.log_ndtr((at_N - log_high_N) / spread)
        # the difference of two tails, taken on the side where they are small
        left_N = until_N + _log1mexp(until_N - below_N)
        right_N = above_N + _log1mexp(above_N - beyond_N)
        return -float(np.where(below_N < above_N, left_N, right_N).sum())

    known_N = np.isfinite(log_low_N) & np.isfinite(log_high_N)
    start_N = np.where(known_N, (log_low_N + log_high_N) / 2, 0.0)
    begin = np.linalg.lstsq(feature_NK[known_N], start_N[known_N], rcond=None)[0]
    best = min(
        (
            optimize.minimize(
                loss,
                np.append(begin, spread),
                method="Nelder-Mead",
                options={"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-7, "fatol": 1e-9},
            )
            for spread in (-3.0, -1.0, 0.5)
        ),
        key=lambda found: found.fun,
    )
    return best.x[:-1]


def _log1mexp(gap_N: np.ndarray) -> np.ndarray:
    """log(1 − e^−gap) of gaps of 0 or more; a gap of 0 gives a very small log."""
    gap_N = np.maximum(gap_N, 1e-300)
    near_N = np.log(-np.expm1(-np.minimum(gap_N, 1.0)))
    return np.where(gap_N < 1.0, near_N, np.log1p(-np.exp(-np.maximum(gap_N, 1.0))))


def pseudo_values(seeds: Iterable[int], statistic: Callable[[frozenset[int]], float]) -> OfSeed:
    """Jackknife pseudo-values of a statistic of several seeds (Tukey, 1958), one per seed.

    With n seeds, n θ − (n − 1) θ without the seed. Their mean is the estimate without the first
    order of its bias, and a t-interval over them is the jackknife's.

    Args:
      seeds: two or more.
      statistic: of the runs of a set of seeds.
    """
    every = frozenset(seeds)
    whole, count = statistic(every), len(every)
    return {seed: count * whole - (count - 1) * statistic(every - {seed}) for seed in sorted(every)}


def area(event_N: np.ndarray, predictor_N: np.ndarray) -> float:
    """The probability that a predictor is larger where the event happens than where it does not,
    ties counted one half: the area under the receiver's operating curve.

    Args:
      event_N: bool.
      predictor_N: float.

    Returns NaN where all or none are events.
    """
    event_N, predictor_N = np.asarray(event_N, bool), np.asarray(predictor_N, float)
    with_M, without_L = predictor_N[event_N], predictor_N[~event_N]
    if not with_M.size or not without_L.size:
        return math.nan
    larger = (with_M[:, None] > without_L[None, :]).mean()
    return float(larger + 0.5 * (with_M[:, None] == without_L[None, :]).mean())
