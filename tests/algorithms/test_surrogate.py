"""What policy gradients with a ratio report of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.common.surrogate import ratio_metrics

METRICS = jax.jit(ratio_metrics)


def figures(ratio, weight, clipped, mask):
    return {
        name: metric.value()
        for name, metric in METRICS(*map(jnp.asarray, (ratio, weight, clipped, mask))).items()
    }


def test_by_hand():
    # Ratios ½, 1, 3 with weights 1, 2, 0 (the fourth is masked): their products ½, 2, 0 have sum
    # 2.5 and squares 4.25.
    ratio, weight = np.array([[0.5, 1.0, 3.0, np.nan]]), np.array([[1.0, 2.0, 0.0, np.nan]])
    clipped, mask = np.array([[True, False, False, True]]), np.array([[True, True, True, False]])
    assert figures(ratio, weight, clipped, mask) == pytest.approx(
        {
            "ratio": 1.5,
            "ratio_p99": 3.0 + 0.005,  # the middle of its bin of 0.01
            "ratio_max": 3.0,
            "clip_share": 1 / 3,
            "staleness_weight": 1.0,
            "effective_sample_share": 2.5**2 / (3 * 4.25),
        },
        rel=1e-5,
    )


def test_the_99th_percentile_is_to_half_a_bin_and_open_above():
    ratio = np.exp(0.3 * np.random.default_rng(0).normal(size=(11, 1009)))
    ones = np.ones(ratio.shape)
    found = figures(ratio, ones, ones > 1, ones > 0)
    assert found["ratio_p99"] == pytest.approx(np.quantile(ratio, 0.99), abs=0.006)
    assert found["ratio"] == pytest.approx(ratio.mean(), rel=1e-5)
    assert figures(10 * ratio, ones, ones > 1, ones > 0)["ratio_p99"] == pytest.approx(3.995)


def test_parts_merge_to_the_whole():
    random = np.random.default_rng(1)
    ratio, weight = np.exp(random.normal(size=(2, 4, 11)))
    clipped, mask = random.random((2, 4, 11)) < 0.5
    whole = figures(ratio, weight, clipped, mask)
    parts = [
        METRICS(*(jnp.asarray(a[rows]) for a in (ratio, weight, clipped, mask)))
        for rows in (slice(2), slice(2, 4))
    ]
    merged = {name: metric.merge(parts[1][name]).value() for name, metric in parts[0].items()}
    assert merged == pytest.approx(whole, rel=1e-5)


def test_nothing_is_counted_of_nothing():
    empty = jax.tree.map(
        jnp.asarray,
        (np.ones((1, 2)), np.ones((1, 2)), np.ones((1, 2), bool), np.zeros((1, 2), bool)),
    )
    metrics = METRICS(*empty)
    assert metrics["ratio_max"].value() == 0.0
    assert all(
        np.isnan(metrics[name].value())
        for name in ("ratio", "ratio_p99", "clip_share", "effective_sample_share")
    )
