"""Statistics of studies: intervals over seeds, differences paired by seed, Holm's correction, and
figures at one KL.

The unit is the seed: every value here is one number a seed. A result is a dict with "arm", "seed"
and "curve", the evaluations of a run in the order of their updates, of which the first is version
0.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import stats

Result = Mapping[str, Any]
OfSeed = dict[int, float]


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean and half-width of its t-interval; NaN half-width for fewer than two values.

    Args:
      values: independent, such as one per seed. The mean of none is NaN.
      level: of confidence, between 0 and 1.
    """
    count = len(values)
    if count < 2:
        return float(np.mean(values)) if count else math.nan, math.nan
    factor = stats.t.ppf((1 + level) / 2, count - 1)
    return float(np.mean(values)), float(factor * np.std(values, ddof=1) / math.sqrt(count))


def p_value(values: Sequence[float]) -> float:
    """Two-sided p-value of a t-test that the mean is 0; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    spread = np.std(values, ddof=1)
    if spread == 0:
        return 1.0 if np.mean(values) == 0 else 0.0
    return float(
        2 * stats.t.sf(abs(np.mean(values)) / (spread / math.sqrt(len(values))), len(values) - 1)
    )


def p_value_below(values: Sequence[float], limit: float) -> float:
    """One-sided p-value of a t-test against a mean of `limit` or more; NaN for fewer than two
    values.

    Args:
      values: independent, such as one per seed.
      limit: which the mean is shown to be below where the p-value is small.
    """
    if len(values) < 2:
        return math.nan
    spread = np.std(values, ddof=1)
    if spread == 0:
        return 0.0 if np.mean(values) < limit else 1.0
    return float(
        stats.t.cdf((np.mean(values) - limit) / (spread / math.sqrt(len(values))), len(values) - 1)
    )


def p_value_equivalent(values: Sequence[float], margin: float) -> float:
    """The p-value of two one-sided t-tests (Schuirmann, 1987) that the mean is within ± margin: the
    larger one's.

    At level 0.05 it is small enough where the 90 % interval is inside the margin.

    Args:
      values: differences, one per seed.
      margin: below which a difference counts as none.
    """
    return max(p_value_below(values, margin), p_value_below([-value for value in values], margin))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family of tests (Holm, 1979): the smallest times m, the next times m -
    1, never falling.
    """
    order = np.argsort(p_values)
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def detectable(values: Sequence[float], power: float = 0.8, level: float = 0.05) -> float:
    """The least difference that a two-sided t-test would find, given the deviation of the values.

    It is the usual approximation: the t quantiles of level and power are added. NaN for fewer than
    two values.

    Args:
      values: differences, one per seed; the test has as many.
      power: probability of finding it, between 0 and 1.
      level: of significance.
    """
    count = len(values)
    if count < 2:
        return math.nan
    factor = stats.t.ppf(1 - level / 2, count - 1) + stats.t.ppf(power, count - 1)
    return float(factor * np.std(values, ddof=1) / math.sqrt(count))


def final(result: Result, name: str) -> float:
    """A figure of a cell's last evaluation; NaN where it is not there."""
    value = result["curve"][-1].get(name)
    return math.nan if value is None else value


def by_seed(results: Sequence[Result], value: Callable[[Result], float]) -> OfSeed:
    """The mean of a value over each seed's results, so that each seed counts once.

    Args:
      results: of cells; a seed may have several.
      value: of one result.
    """
    by_seed_values: dict[int, list[float]] = {}
    for result in results:
        by_seed_values.setdefault(result["seed"], []).append(value(result))
    return {seed: sum(values) / len(values) for seed, values in sorted(by_seed_values.items())}


def differences(a: OfSeed, b: OfSeed) -> OfSeed:
    """a − b over the seeds that both have."""
    return {seed: a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())}


def interval(values: OfSeed) -> tuple[float, float]:
    """Mean and half-width of its 95 % t-interval over seeds."""
    return t_interval(list(values.values()))


def difference_interval(a: OfSeed, b: OfSeed) -> tuple[float, float]:
    """Mean of a − b and half-width of its 95 % t-interval.

    Two seeds or more that both have are paired. Otherwise the interval is Welch's, for samples of
    unequal variances; it is NaN where a or b has a single seed.
    """
    paired = differences(a, b)
    if len(paired) > 1:
        return interval(paired)
    first, second = list(a.values()), list(b.values())
    mean = float(np.mean(first) - np.mean(second))
    if min(len(first), len(second)) < 2:
        return mean, math.nan
    if np.std(first) == np.std(second) == 0:
        return mean, 0.0
    test: Any = stats.ttest_ind(first, second, equal_var=False)
    return mean, float(test.confidence_interval(0.95).high - mean)


def at_kl(curve: Sequence[Mapping[str, Any]], kl: float, name: str) -> float:
    """A figure of a curve at the first KL that reaches `kl`, interpolated between two evaluations.

    The interpolation is linear in √KL, because gold begins as a line in it (Gao et al. 2022, arXiv
    2210.10760: d (α − β d), d = √KL).

    Args:
      curve: evaluations in order; the first is version 0.
      kl: in nats.
      name: of the figure.

    Returns NaN for a KL that the curve does not cover: above its largest, or below that of the
    first evaluation after version 0.
    """
    points = [
        (line["kl"], line[name])
        for line in curve
        if line.get("kl") is not None and line.get(name) is not None
    ]
    if len(points) < 2 or kl < points[1][0]:
        return math.nan
    for (before, low), (after, high) in pairwise(points[1:]):
        if before <= kl <= after:
            share = (
                0.0
                if after == before
                else (math.sqrt(kl) - math.sqrt(before)) / (math.sqrt(after) - math.sqrt(before))
            )
            return low + share * (high - low)
    return points[1][1] if kl == points[1][0] else math.nan


def largest_kl(curve: Sequence[Mapping[str, Any]]) -> float:
    """The largest KL that was measured in training."""
    return max(line["kl"] for line in curve[1:] if line.get("kl") is not None)


def updates_to(curve: Sequence[Mapping[str, Any]], name: str, level: float, never: float) -> float:
    """The update at which a figure first reaches a level, on lines between evaluations.

    Args:
      curve: evaluations in order, each with its "update".
      name: of the figure; an evaluation without it is passed over.
      level: to be reached from below.
      never: the result for a curve that does not reach it.
    """
    points = [(line["update"], line[name]) for line in curve if line.get(name) is not None]
    if points and points[0][1] >= level:
        return float(points[0][0])
    for (begin, low), (end, high) in pairwise(points):
        if high >= level:
            return begin + (level - low) / (high - low) * (end - begin)
    return never
