"""Figures of evaluations: errors over prompts, win-rates by hand, pairing of rows, and the number
of samples compared.
"""

import math

import numpy as np
import pytest

from rlhf_jax.refusal import Refusal
from rlhf_jax.stages.common import evaluation_metrics
from rlhf_jax.stages.common.evaluator import Config, fitted


def naive_stderr(values_B: np.ndarray, num_prompts: int) -> float:
    """Of groups of equal sizes: the deviation of the group means over the square root of their
    number.
    """
    return float(
        values_B.reshape(num_prompts, -1).mean(axis=1).std(ddof=1) / math.sqrt(num_prompts)
    )


def test_error_of_equal_groups_is_that_of_their_means():
    values = np.random.default_rng(0).normal(size=7 * 4)
    prompts = [f"prompt {row // 4}" for row in range(28)]
    np.testing.assert_allclose(
        evaluation_metrics.stderr_over_prompts(prompts, values), naive_stderr(values, 7), rtol=1e-12
    )


def test_a_prompt_that_is_asked_again_is_no_new_prompt():
    """16 prompts walked 64 times: the error is that of 16."""
    values = np.random.default_rng(1).normal(size=16)
    prompts = [f"prompt {row}" for row in range(16)]
    error = evaluation_metrics.stderr_over_prompts(prompts * 64, np.tile(values, 64))
    np.testing.assert_allclose(error, naive_stderr(values, 16), rtol=1e-12)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """400 trials of 16 prompts walked 8 times, an effect of each prompt and noise of each sample.
    As independent rows the interval of 1.96 errors held it in less than 60 % of them.
    """
    random, held = np.random.default_rng(2), 0
    prompts = [f"prompt {row % 16}" for row in range(128)]
    for _ in range(400):
        values = np.tile(random.normal(size=16), 8) + 0.5 * random.normal(size=128)
        held += abs(values.mean()) < 2.13 * evaluation_metrics.stderr_over_prompts(
            prompts, values
        )  # t of 15 degrees of freedom
    assert 0.91 <= held / 400 <= 0.98


def test_one_prompt_has_no_error():
    assert math.isnan(evaluation_metrics.stderr_over_prompts(["only"] * 5, np.arange(5.0)))


def test_win_rates_by_hand():
    """Prompt a: samples 1, 3 against references 1, 2: ½, 0; 1, 1 -> 5/8.

    Prompt b: 0, 0 against 0 alone: ties -> ½.
    """
    references = np.array([[1.0, 2.0], [0.0, math.nan]])
    found = evaluation_metrics.win_rates(
        ["a", "a", "b", "b"], np.array([1.0, 3.0, 0.0, 0.0]), references
    )
    np.testing.assert_allclose(found["win_rate"], (5 / 8 + 1 / 2) / 2)
    np.testing.assert_allclose(found["win_rate_strict"], (1 / 2 + 0) / 2)
    np.testing.assert_allclose(found["win_rate_stderr"], (5 / 8 - 1 / 2) / 2)


def test_a_prompt_without_references_is_left_out():
    references = np.array([[math.nan], [2.0]])
    assert (
        evaluation_metrics.win_rates(["a", "b"], np.array([9.0, 1.0]), references)["win_rate"]
        == 0.0
    )
    assert (
        evaluation_metrics.win_rates(["a", "b"], np.array([9.0, 1.0]), np.full((2, 1), math.nan))
        == {}
    )


@pytest.mark.parametrize(
    ("prompts", "scores"),
    [(["a", "a", "b"], 3), (["a", "b", "a", "b"], 4), (["a", "a", "b", "b"], 3)],
    ids=["part of a group", "groups mixed", "a score missing"],
)
def test_rows_that_are_not_groups_of_the_references_prompts_are_an_error(prompts, scores):
    with pytest.raises(AssertionError):
        evaluation_metrics.win_rates(prompts, np.arange(scores, dtype=float), np.zeros((2, 4)))


@pytest.mark.parametrize("num_samples", [64, 640, 4096])
def test_distinct_share_does_not_depend_on_the_number_of_samples(num_samples):
    """100 equally likely texts: 64 draws hold 100 (1 - 0.99^64) = 47.4 of them, whatever the number
    of draws is.
    """
    random = np.random.default_rng(num_samples)
    found = [
        evaluation_metrics.distinct_share(random.integers(0, 100, num_samples).astype(str).tolist())
        for _ in range(20)
    ]
    np.testing.assert_allclose(np.mean(found), 100 * (1 - 0.99**64) / 64, atol=0.02)


def test_few_samples_are_compared_with_each_other():
    assert evaluation_metrics.distinct_share(["x", "y", "x", "z"]) == 3 / 4


def test_a_split_with_enough_prompts_changes_nothing():
    config = Config(num_prompts=64, num_prompts_between=32)
    assert fitted(config, 64) == (config, "")


def test_numbers_of_prompts_are_lowered_to_the_split():
    """Seven held-out prompts in two parts: three in each."""
    config, notice = fitted(Config(num_prompts=64, num_prompts_between=2, num_parts=2), 7)
    assert (config.num_prompts, config.num_prompts_between) == (3, 2)
    assert "all 3 held-out prompts in each of 2 parts" in notice
    assert "64" in notice


def test_a_part_without_prompts_is_refused():
    with pytest.raises(Refusal, match=r"num_parts is 4, but the task has 3 held-out prompts"):
        fitted(Config(num_parts=4), 3)
