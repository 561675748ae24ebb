"""Statistics of studies by hand and beside scipy: intervals, Holm, figures at one KL and updates to
a level.
"""

import math

import numpy as np
import pytest
from scipy import stats

from rlhf_jax.report import statistics


def curve(kls, golds):
    return [
        {"update": place, "kl": kl, "gold_mean": gold}
        for place, (kl, gold) in enumerate(zip(kls, golds, strict=True))
    ]


@pytest.mark.parametrize(
    ("count", "quantile"), [(2, 12.706), (5, 2.776), (10, 2.262), (11, 2.228), (31, 2.042)]
)
def test_interval_has_the_quantile_of_its_degrees_of_freedom(count, quantile):
    """Values 0 ... n − 1. The quantiles are those that tables print; past ten values it is still
    not the normal's 1.96.
    """
    mean, half = statistics.t_interval(list(range(count)))
    assert mean == (count - 1) / 2
    np.testing.assert_allclose(
        half, quantile * np.std(range(count), ddof=1) / math.sqrt(count), rtol=2e-4
    )


def test_a_single_value_has_no_interval():
    mean, half = statistics.t_interval([3.0])
    assert mean == 3.0
    assert math.isnan(half)


def test_intervals_of_eleven_seeds_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(0)
    found = [statistics.t_interval(random.normal(size=11).tolist()) for _ in range(4000)]
    assert np.mean([abs(mean) < half for mean, half in found]) == pytest.approx(0.95, abs=0.01)


def test_p_value_is_that_of_a_t_test():
    values = [0.3, -0.1, 0.8, 0.4, 0.2]
    np.testing.assert_allclose(statistics.p_value(values), stats.ttest_1samp(values, 0).pvalue)
    assert statistics.p_value([0.0, 0.0]) == 1.0
    assert statistics.p_value([2.0, 2.0]) == 0.0


def test_holm_by_hand():
    """4 x 0.01, 3 x 0.02, 2 x 0.03 -> raised to 0.06, 1 x 0.5."""
    np.testing.assert_allclose(statistics.holm([0.03, 0.01, 0.5, 0.02]), [0.06, 0.04, 0.5, 0.06])


def test_the_detectable_difference_is_found_as_often_as_said():
    random = np.random.default_rng(1)
    values = random.normal(size=5)
    least = statistics.detectable(values.tolist())
    deviation = values.std(ddof=1)
    found = [
        stats.ttest_1samp(random.normal(least, deviation, 5), 0).pvalue < 0.05 for _ in range(2000)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)


def test_at_kl_reads_the_first_crossing_of_a_curve_that_returns():
    """Gold is √KL on the way up.

    At the peak it is 3, at a KL of 4 it is 2, and not what it was on the way down.
    """
    there = curve([0, 1, 4, 9, 4, 1], [0, 1, 2, 3, 9, 9])
    assert statistics.at_kl(there, 9, "gold_mean") == 3
    assert statistics.at_kl(there, 4, "gold_mean") == 2
    assert statistics.at_kl(there, 6.25, "gold_mean") == pytest.approx(2.5)


def test_at_kl_reads_nothing_where_nothing_was_measured():
    """Before the first evaluation in training, whose other side is version 0 alone, and beyond the
    largest KL.
    """
    there = curve([0, 2, 5], [0, 4, 7])
    assert math.isnan(statistics.at_kl(there, 1.9, "gold_mean"))
    assert math.isnan(statistics.at_kl(there, 5.1, "gold_mean"))
    assert statistics.at_kl(there, 2, "gold_mean") == 4
    assert math.isnan(statistics.at_kl(there[:1], 0, "gold_mean"))


def test_at_kl_uses_the_segments_that_exist():
    """An evaluation without the figure is no end of a segment."""
    there = curve([0, 1, 4, 9], [0, 1, None, 3])
    assert statistics.at_kl(there, 4, "gold_mean") == pytest.approx(2)


def test_updates_to_a_level():
    there = curve([0, 1, 2, 3], [0.0, 1.0, 3.0, 2.0])
    assert statistics.updates_to(there, "gold_mean", 2.0, never=33) == 1.5
    assert statistics.updates_to(there, "gold_mean", 4.0, never=33) == 33
    assert statistics.updates_to(there, "gold_mean", -1.0, never=33) == 0


def test_a_seed_counts_once_however_many_settings_it_has():
    results = [{"seed": seed, "value": value} for seed, value in ((0, 1.0), (0, 3.0), (1, 4.0))]
    assert statistics.by_seed(results, lambda result: result["value"]) == {0: 2.0, 1: 4.0}
    assert statistics.differences({0: 5.0, 1: 2.0}, {1: 0.5, 2: 9.0}) == {1: 1.5}


def test_one_sided_tests_and_equivalence_agree_with_scipy_and_the_interval():
    """At level 0.05 the 90 % interval is inside the margin exactly where both tests are below it."""
    values = [0.01, -0.02, 0.015, 0.03, -0.005]
    expected = stats.ttest_1samp(values, 0.03, alternative="less").pvalue
    assert statistics.p_value_below(values, 0.03) == pytest.approx(expected)
    lower = stats.ttest_1samp(values, -0.03, alternative="greater").pvalue
    assert statistics.p_value_equivalent(values, 0.03) == pytest.approx(max(expected, lower))
    mean, half = statistics.t_interval(values, 0.90)
    edge = abs(mean) + half
    assert statistics.p_value_equivalent(values, edge * 1.001) < 0.05
    assert statistics.p_value_equivalent(values, edge * 0.999) > 0.05
    assert statistics.p_value_below([0.1, 0.1], 0.2) == 0.0
    assert statistics.p_value_below([0.2, 0.2], 0.2) == 1.0
    assert math.isnan(statistics.p_value_below([0.1], 0.2))
