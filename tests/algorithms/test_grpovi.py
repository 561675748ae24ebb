"""GRPOVI where theory says what it must be: where it is GRPO, where it is nothing, and what it
refuses.
"""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import dr_grpo, grpo, grpovi
from rlhf_jax.algorithms.controls import constant_gain, matched_std

from .examples import random_samples, random_scores, with_scores


def advantages(algorithm, score_PG):
    """The advantage of every sample, `[P, G]`, read at its first token."""
    score_PG = jnp.asarray(score_PG, jnp.float32)
    samples = random_samples(0, *score_PG.shape)
    scores = with_scores(random_scores(algorithm, samples, 0), score_PG.reshape(-1))
    return np.asarray(algorithm.credit(samples, scores).advantage_RC)[:, 0].reshape(score_PG.shape)


def vi(**changes):
    return grpovi.grpovi(grpovi.Config(**changes))


def test_two_samples_and_a_division_are_grpo():
    score_PG = np.random.default_rng(0).normal(size=(31, 2))
    plain = advantages(grpo.grpo(grpo.Config()), score_PG)
    # GRPO's own ε of 1e-6 beside a deviation of at least 0.1 is 1e-5 of an advantage; beside
    # GRPOVI's it is less.
    apart = np.abs(score_PG[:, 0] - score_PG[:, 1]) > 0.2
    np.testing.assert_allclose(advantages(vi(), score_PG)[apart], plain[apart], atol=1e-5)
    np.testing.assert_allclose(np.abs(plain[apart]), 1.0, atol=1e-5)


@pytest.mark.parametrize("advantage", ["standardized", "centered"])
@pytest.mark.parametrize("samples_per_prompt", [2, 3, 8])
def test_right_and_wrong_in_their_own_range_are_grpo(advantage, samples_per_prompt):
    score_PG = np.random.default_rng(1).integers(0, 2, (13, samples_per_prompt))
    ours = advantages(vi(low=0.0, high=1.0, advantage=advantage), score_PG)
    np.testing.assert_allclose(
        ours, advantages(grpo.grpo(grpo.Config(advantage=advantage)), score_PG), atol=1e-6
    )


def test_by_hand():
    """Scores 1, 2, 3, 6 in [0, 10]: C = 1.2, so z = 10, 2, 0, 0 from the best; their mean 3 is the
    scores' own.
    """
    ours = advantages(vi(low=0.0, high=10.0, advantage="centered"), [[2.0, 6.0, 1.0, 3.0]])
    np.testing.assert_allclose(ours, [[-3.0, 7.0, -3.0, -1.0]], atol=1e-5)
    # std(z) = sqrt((49 + 1 + 9 + 9) / 4), std(score) = sqrt((4 + 1 + 0 + 9) / 4).
    matched = advantages(
        matched_std.matched_std(matched_std.Config(low=0.0, high=10.0)), [[2.0, 6.0, 1.0, 3.0]]
    )
    np.testing.assert_allclose(
        matched, np.array([[-1.0, 3.0, -2.0, 0.0]]) * np.sqrt(68 / 14), rtol=1e-5
    )
    gained = advantages(
        constant_gain.constant_gain(constant_gain.Config(gain=2.5)), [[2.0, 6.0, 1.0, 3.0]]
    )
    np.testing.assert_allclose(gained, [[-2.5, 7.5, -5.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("level", [-5.9, 0.35, 1e-7, 4.0])
@pytest.mark.parametrize("weights", ["uniform", "reference"])
@pytest.mark.parametrize("advantage", ["standardized", "centered"])
def test_a_flat_group_is_nothing(level, weights, advantage):
    ours = advantages(vi(weights=weights, advantage=advantage), np.full((3, 8), level))
    assert not ours.any()
    assert not advantages(
        matched_std.matched_std(matched_std.Config()), np.full((3, 8), level)
    ).any()


def test_only_ratios_of_the_weights_matter():
    """Adding a constant to the reference log-probabilities of a group multiplies its weights by one
    number.
    """
    algorithm = vi(weights="reference", advantage="centered")
    samples = random_samples(0, 5, 8)
    scores = random_scores(algorithm, samples, 0)
    scores = with_scores(scores, scores.score_B / 10)
    lower = replace(scores, reference_logprob_BC=scores.reference_logprob_BC.at[:, 0].add(-60.0))
    one, other = (algorithm.credit(samples, given).advantage_RC for given in (scores, lower))
    np.testing.assert_allclose(one, other, atol=1e-4)
    uniform = vi(advantage="centered").credit(samples, scores).advantage_RC
    assert np.abs(np.asarray(one - uniform)).max() > 0.1


def test_what_is_clipped_and_who_takes_all_is_counted():
    algorithm = vi(low=0.0, high=1.0)
    samples = random_samples(0, 2, 4)
    score_PG = jnp.array([[-1.0, 0.1, 0.2, 0.3], [0.5, 0.6, 2.0, 3.0]])
    figures = algorithm.credit(
        samples, with_scores(random_scores(algorithm, samples, 0), score_PG.reshape(-1))
    ).figures
    assert figures["clipped_low_share"].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert figures["clipped_high_share"].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert figures["winner_takes_all_share"].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    np.testing.assert_allclose(figures["variance_budget"][::4], [0.6, 3.1], rtol=1e-6)
    np.testing.assert_allclose(figures["variance_mean_place"][::4], [0.15, 0.775], rtol=1e-6)


def test_the_range_is_declared_for_the_missing_eos_score():
    assert vi(low=-3.0, high=2.0).score_range == (-3.0, 2.0)
    assert grpo.grpo(grpo.Config()).score_range is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: vi(low=1.0, high=1.0),
            r"grpovi has the range \[1.0, 1.0\]; accepted: finite, low below high",
        ),
        (lambda: vi(high=float("inf")), "accepted: finite"),
        (lambda: vi(weights="policy"), "grpovi.weights is 'policy'; accepted: uniform, reference"),
        (lambda: vi(ties="random"), "grpovi.ties is 'random'; accepted: together, by_index"),
        (
            lambda: vi(advantage="rank"),
            "grpovi.advantage is 'rank'; accepted: standardized, bessel, centered",
        ),
        (
            lambda: vi(aggregation="pair"),
            "grpovi.aggregation is 'pair'; accepted: token, sequence, constant_length",
        ),
        (
            lambda: matched_std.matched_std(matched_std.Config(advantage="standardized")),
            "accepted: centered",
        ),
        (lambda: constant_gain.constant_gain(constant_gain.Config(gain=0.0)), "gain 0.0"),
        (lambda: dr_grpo.dr_grpo(dr_grpo.Config(advantage="standardized")), "accepted: centered"),
    ],
)
def test_what_it_does_not_have_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
