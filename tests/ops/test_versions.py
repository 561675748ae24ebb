"""Versions of tokens, worked out by hand: rows of one version, of two, and of one token."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import versions

MASK_BC = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
OF_THE_MEDIAN = {"age_mean_short", "age_mean_long"}
VERSION_BC = np.array([[2, 2, 4, 6], [3, 3, 3, 0], [5, 0, 0, 0], [0, 0, 0, 0]], np.int32)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_a_mask_hides_the_versions_under_it(kind):
    version_BC, mask_BC = kind(VERSION_BC), kind(MASK_BC)
    assert versions.oldest(version_BC, mask_BC)[:3].tolist() == [2, 3, 5]
    assert versions.newest(version_BC, mask_BC)[:3].tolist() == [6, 3, 5]
    assert versions.is_mixed(version_BC, mask_BC).tolist() == [True, False, False, False]


def test_runs_are_the_versions_of_a_row_in_order():
    runs = versions.runs(VERSION_BC, MASK_BC)
    assert runs == [[[2, 2], [4, 1], [6, 1]], [[3, 3]], [[5, 1]], []]
    for row, mask_C, version_C in zip(runs, MASK_BC, VERSION_BC, strict=True):
        assert [v for v, n in row for _ in range(n)] == version_C[mask_C].tolist()


def test_one_version_is_that_of_every_token():
    version_BC = versions.broadcast(np.int32(3), jnp.asarray(MASK_BC))
    assert version_BC.dtype == jnp.int32
    np.testing.assert_array_equal(version_BC, np.where(MASK_BC, 3, 0))


def test_ages_of_an_update_are_those_of_its_tokens():
    """Versions 2, 2, 4, 6 and 3, 3, 3 in update 7: ages 5, 5, 3, 1 and 4, 4, 4; row 0 twice."""
    counts = versions.TokenCounts.of(VERSION_BC[:3], MASK_BC[:3])
    assert counts.version_K.tolist() == [2, 3, 4, 5, 6]
    assert counts.count_BK.tolist() == [[2, 0, 1, 0, 1], [0, 3, 0, 0, 0], [0, 0, 0, 1, 0]]
    np.testing.assert_allclose(counts.mean_B(), [14 / 4, 3, 5])
    metrics = counts.ages(7, 8, [0, 1])
    assert {name: metric.value() for name, metric in metrics.items()} == {
        "age_mean": pytest.approx((5 + 5 + 3 + 1 + 12) / 7),
        "age_p95": 5.0,
        "age_max": 5.0,
        "mixed_share": 0.5,
        "age_mean_short": 4.0,  # row 1 is shorter than the median of 3.5 tokens
        "age_mean_long": 3.5,
    }
    twice = counts.ages(7, 8, [0, 0, 1])
    assert twice["mixed_share"].value() == pytest.approx(2 / 3)
    metrics = {name: metric for name, metric in metrics.items() if name not in OF_THE_MEDIAN}
    merged = {name: metric.merge(counts.ages(7, 8, [0])[name]) for name, metric in metrics.items()}
    for name, metric in merged.items():
        assert metric.value() == pytest.approx(twice[name].value(), rel=1e-6), name
    whole = counts.ages(7, 8)
    assert whole["age_mean"].value() == pytest.approx((14 + 12 + 2) / 8)
    # of 4, 3 and 1 tokens the median is 3: row 1 is in both
    assert whole["age_mean_short"].value() == pytest.approx((12 + 2) / 4)
    assert whole["age_mean_long"].value() == pytest.approx((14 + 12) / 7)


def test_ages_by_sign_are_those_of_the_rows_of_that_sign():
    """Row 0 has ages 5, 5, 3, 1 and a negative advantage, row 1 has 4, 4, 4 and a positive one, and row
    2 has age 2 and none.
    """
    counts = versions.TokenCounts.of(VERSION_BC[:3], MASK_BC[:3])
    sign_B = np.array([-1, 1, 0], np.int8)
    figures = {k: v.value() for k, v in counts.ages(7, 8, None, sign_B).items()}
    assert (figures["age_mean_negative"], figures["age_mean_positive"]) == (3.5, 4.0)
    assert counts.ages(7, 8, [2, 0], sign_B)["age_mean_negative"].value() == 3.5
    assert "age_mean_positive" not in counts.ages(7, 8, [2, 0], sign_B)


def test_the_quantile_is_exact_and_not_the_largest():
    """Of 100 tokens of one row the oldest 4 are left out of the 95 %."""
    version_BC = np.repeat([[0, 3, 9]], 1, axis=0).repeat([4, 90, 6], axis=1)
    counts = versions.TokenCounts.of(version_BC, np.ones((1, 100), bool))
    figures = {name: metric.value() for name, metric in counts.ages(10, 12).items()}
    assert (figures["age_p95"], figures["age_max"], figures["mixed_share"]) == (7.0, 10.0, 1.0)


@pytest.mark.parametrize("age", [0, 1, 5])
def test_one_version_a_round_is_one_age(age):
    version_BC = np.where(MASK_BC[:3], 7 - age, 0)
    figures = versions.TokenCounts.of(version_BC, MASK_BC[:3]).ages(7, 6)
    assert {name: metric.value() for name, metric in figures.items()} == {
        "age_mean": age,
        "age_p95": age,
        "age_max": age,
        "mixed_share": 0.0,
        "age_mean_short": age,
        "age_mean_long": age,
    }
