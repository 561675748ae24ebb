"""Adjusted rewards by hand: every degenerate case, bad input, and where float32 would lose the
answer.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops.variance_increase import increase_variance

ROUTES = ["sort", "select"]
TIES = ["together", "by_index"]
T, F = True, False

solve = jax.jit(increase_variance, static_argnames=("low", "high", "ties", "route"))
both_routes = pytest.mark.parametrize("route", ROUTES)
both_ties = pytest.mark.parametrize("ties", TIES)


def fractions(rewards, route, ties="together", weights=None, mask=None):
    """x of one group with the range [0, 1], masked up to 7 responses, so that programs are shared."""
    size = len(rewards)

    def padded(values, fill):
        return np.array([[*values, *[fill] * (7 - size)]])

    weight = None if weights is None else padded(weights, np.nan)
    found = solve(
        padded(rewards, np.nan),
        0,
        1,
        weight_PG=weight,
        mask_PG=padded(mask or [T] * size, F),
        ties=ties,
        route=route,
    )
    return found.fraction_PG[0, :size]


@both_routes
@both_ties
def test_one_response_keeps_its_reward(route, ties):
    rewards = np.array([[-0.7], [0.1], [0.30001], [1.9]], np.float32)
    found = solve(rewards, -0.7, 1.9, route=route, ties=ties)
    np.testing.assert_array_equal(found.adjusted_PG, rewards)


@both_routes
@both_ties
def test_two_responses_by_their_mean(route, ties):
    # Range [-1, 3], middle 1. Mean 0.5, below: (2·0.5 + 1, -1) = (2, -1). Mean 2, above: (3, 2·2 -
    # 3) = (3, 1).
    found = solve(np.array([[0.75, 0.25], [1.5, 2.5]]), -1, 3, route=route, ties=ties)
    np.testing.assert_array_equal(found.adjusted_PG, [[2, -1], [1, 3]])
    np.testing.assert_array_equal(found.budget_P, [0.75, 1.5])
    np.testing.assert_array_equal(found.mean_place_P, [0.375, 0.75])
    np.testing.assert_array_equal(found.winner_takes_all_P, [True, False])


@both_routes
@both_ties
def test_rewards_on_the_bounds_do_not_move(ties, route):
    """Groups of 1 to 11, of which 0 to all are at high. In float32 -0.3 + (1.4 + 0.3) is not 1.4,
    and the reciprocal of 1.4 + 0.3, which the compiler takes for a division by a constant, times
    1.4 + 0.3 is not 1.
    """
    pairs = [(size, correct) for size in range(1, 12) for correct in range(size + 1)]
    size, correct = (np.array(numbers)[:, None] for numbers in zip(*pairs, strict=True))
    place = np.random.default_rng(0).permuted(np.tile(np.arange(11), (len(pairs), 1)), axis=1)
    rewards, mask = np.where(place < correct, np.float32(1.4), np.float32(-0.3)), place < size
    found = solve(rewards, -0.3, 1.4, mask_PG=mask, ties=ties, route=route)
    np.testing.assert_array_equal(found.adjusted_PG, np.where(mask, rewards, 0))
    np.testing.assert_array_equal(found.fraction_PG, np.where(mask, place < correct, 0))
    np.testing.assert_array_equal(found.budget_P, correct[:, 0])
    assert not found.winner_takes_all_P.any()


@both_routes
def test_a_flat_group_keeps_its_reward_unless_ties_go_by_index(route):
    rewards = np.full((3, 7), [[0.3], [0.5], [-0.9]], np.float32)
    found = solve(rewards, -1.0, 1.0, route=route)
    np.testing.assert_array_equal(found.adjusted_PG, rewards)
    assert (np.ptp(np.asarray(found.fraction_PG), axis=1) == 0).all()
    assert not found.winner_takes_all_P.any()
    # As the model is written: C = 7 · 0.5 = 3.5, so the first three by index go up and the fourth
    # halfway.
    np.testing.assert_allclose(fractions([0.5] * 7, route, "by_index"), [1, 1, 1, 0.5, 0, 0, 0])


@both_routes
def test_ties_at_the_boundary(route):
    # C = 0.6 + 0.4 + 0.4 = 1.4: one response is whole, and 0.4 is left for the two that tie.
    rewards = [0.4, 0.0, 0.6, 0.4]
    np.testing.assert_allclose(fractions(rewards, route), [0.2, 0, 1, 0.2], atol=1e-7)
    np.testing.assert_allclose(fractions(rewards, route, "by_index"), [0.4, 0, 1, 0], atol=1e-7)
    # Weights 2, 1, 1, 2: C = 0.8 + 0 + 0.6 + 0.8 = 2.2, and 1.2 is left for ties of weight 4; by
    # index, 1.2 of the first's 2.
    weights = [2.0, 1.0, 1.0, 2.0]
    np.testing.assert_allclose(
        fractions(rewards, route, weights=weights), [0.3, 0, 1, 0.3], atol=1e-7
    )
    np.testing.assert_allclose(
        fractions(rewards, route, "by_index", weights=weights), [0.6, 0, 1, 0], atol=1e-7
    )


@both_routes
@both_ties
def test_weights_of_zero_take_the_side_they_lie_on(route, ties):
    # C = 0.6 + 0.3 = 0.9, all for the response of reward 0.6; above it 1, below it 0.
    x = fractions([0.1, 0.9, 0.3, 0.6, 0.5], route, ties, weights=[0.0, 0.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(x, [0, 1, 0, 0.9, 0], atol=1e-7)
    # No budget: the boundary is the best of those with a weight, with nothing for it.
    x = fractions([0.0, 0.5, 0.0], route, ties, weights=[1.0, 0.0, 1.0])
    np.testing.assert_array_equal(x, [0, 1, 0])
    # All of it: the boundary is the least of those with a weight.
    x = fractions([1.0, 0.5, 1.0], route, ties, weights=[1.0, 0.0, 1.0])
    np.testing.assert_array_equal(x, [1, 0, 1])


@both_routes
@both_ties
def test_no_weight_at_all_and_nobody_there(route, ties):
    rewards = np.array([[0.2, 0.9, 0.4], [0.2, 0.9, 0.4]], np.float32)
    for weights in (np.zeros((2, 3)), None):
        mask = np.array([[T, T, T], [F, F, F]])
        found = solve(rewards, 0, 1, weight_PG=weights, mask_PG=mask, route=route, ties=ties)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
        np.testing.assert_array_equal(found.adjusted_PG[1], [0, 0, 0])
        np.testing.assert_array_equal(
            [found.budget_P[1], found.mean_place_P[1], found.winner_takes_all_P[1]], [0, 0, 0]
        )
        if weights is not None:
            np.testing.assert_array_equal(found.adjusted_PG[0], rewards[0])
            assert found.budget_P[0] == 0


@both_routes
def test_what_lies_outside_is_clipped_and_marked(route):
    rewards = np.array([[-np.inf, 0.5, 7.0], [-0.25, 0.25, np.inf], [0.0, 1.0, 0.5]], np.float32)
    found = solve(rewards, 0.0, 1.0, route=route)
    np.testing.assert_array_equal(found.adjusted_PG, [[0, 0.5, 1], [0, 0.25, 1], [0, 1, 0.5]])
    np.testing.assert_array_equal(found.clipped_low_PG, [[T, F, F], [T, F, F], [F, F, F]])
    np.testing.assert_array_equal(found.clipped_high_PG, [[F, F, T], [F, F, T], [F, F, F]])
    hidden = solve(rewards, 0.0, 1.0, mask_PG=np.isfinite(rewards), route=route)
    np.testing.assert_array_equal(hidden.clipped_low_PG, [[F, F, F], [T, F, F], [F, F, F]])
    np.testing.assert_array_equal(hidden.budget_P, [1.5, 0.25, 1.5])


@both_routes
@both_ties
def test_nan_and_wrong_weights_poison_their_own_group_only(route, ties):
    rewards = np.array([[0.2, np.nan, 0.4], [0.2, 0.9, 0.4]] * 2, np.float32)
    weights = np.array([[1, 1, 1], [1, 1, 1], [1, 0, 1], [1, -1, 1]], np.float32)
    clean = np.nan_to_num(rewards)
    for weight in (None, weights):
        found = solve(rewards, 0, 1, weight_PG=weight, route=route, ties=ties)
        bad = np.array([T, F, T, weight is not None])
        for values in (
            found.adjusted_PG,
            found.fraction_PG,
            found.budget_P[:, None],
            found.mean_place_P[:, None],
        ):
            np.testing.assert_array_equal(
                np.isnan(values), np.broadcast_to(bad[:, None], values.shape)
            )
        assert not found.winner_takes_all_P[bad].any()
        whole = solve(clean, 0, 1, weight_PG=weight, route=route, ties=ties)
        np.testing.assert_array_equal(found.adjusted_PG[~bad], whole.adjusted_PG[~bad])
    weights[2:, 0] = np.inf, np.nan
    assert np.isnan(
        solve(clean, 0, 1, weight_PG=weights, route=route, ties=ties).adjusted_PG[2:]
    ).all()
    # What the mask hides poisons nothing.
    x = fractions([0.25, np.nan, 0.5], route, ties, mask=[T, F, T], weights=[1.0, np.nan, 1.0])
    np.testing.assert_array_equal(x, [0, 0, 0.75])


def test_a_wrong_range_shape_or_choice_is_an_error():
    rewards = np.zeros((2, 3), np.float32)
    for low, high in (
        (1, 1),
        (2.0, 1.0),
        (np.nan, 1),
        (0, np.inf),
        (1.0, 1.0 + 1e-12),
        (1e39, 2e39),
        (-3e38, 3e38),
        (np.float32(1), 0),
    ):
        with pytest.raises(ValueError, match=r"low=.*high="):
            increase_variance(rewards, low, high)
    with pytest.raises(ValueError, match=r"ties='apart'.*together, by_index"):
        increase_variance(rewards, 0, 1, ties="apart")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"route='radix'.*auto, sort, select"):
        increase_variance(rewards, 0, 1, route="radix")  # pyright: ignore[reportArgumentType]
    for wrong in (rewards[0], rewards[None], rewards[:, :0]):
        with pytest.raises(ValueError, match="at least one response"):
            increase_variance(wrong, 0, 1)
    for name in ("weight_PG", "mask_PG"):
        with pytest.raises(ValueError, match=f"{name} has shape"):
            increase_variance(rewards, 0, 1, **{name: np.ones((2, 1))})


@both_routes
def test_the_two_zeros_tie_and_merged_places_do_not(route):
    found = solve(np.array([[0.0, -0.0, -1.0], [-0.0, 0.0, -1.0]]), -1.0, 1.0, route=route)
    assert (found.adjusted_PG[:, 0] == found.adjusted_PG[:, 1]).all()
    # Far apart as numbers, one place in a range this wide: the order is still that of the rewards.
    found = solve(np.array([[1e-3, 2e-3], [2e-3, 1e-3]]), -1e6, 1e6, route=route)
    np.testing.assert_array_equal(found.adjusted_PG, [[-1e6, 1e6], [1e6, -1e6]])


@both_routes
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_large_groups_far_from_zero_keep_their_mean_and_reach_the_ceiling(route, offset):
    rng = np.random.default_rng(0)
    rewards = (offset + rng.random((2, 30011)) ** 3).astype(np.float32)
    place = rewards.astype(np.float64) - offset
    for weights in (None, np.exp(2 * rng.normal(size=rewards.shape)).astype(np.float32)):
        found = solve(rewards, offset, offset + 1, weight_PG=weights, route=route)
        share = np.ones(rewards.shape) if weights is None else weights.astype(np.float64)
        share /= share.sum(1, keepdims=True)
        x = np.asarray(found.fraction_PG, np.float64)
        np.testing.assert_allclose((share * x).sum(1), (share * place).sum(1), rtol=0, atol=2e-8)
        np.testing.assert_allclose(found.mean_place_P, (share * place).sum(1), rtol=1e-6)
        assert all(
            ((row > 0) & (row < 1)).sum() <= (1 if offset == 0 else 40) for row in x
        )  # ties at the larger offset


@both_routes
def test_the_variance_has_its_closed_form(route):
    # Distinct rewards, uniform weights: q (1 - q) - f (1 - f) / G with f the fractional part of C.
    place = np.random.default_rng(0).random((200, 11)).astype(np.float32)
    budget = place.astype(np.float64).sum(1)
    mean, part = budget / 11, budget % 1
    found = solve(place, 0, 1, route=route)
    variance = np.var(np.asarray(found.adjusted_PG, np.float64), axis=1)
    np.testing.assert_allclose(variance, mean * (1 - mean) - part * (1 - part) / 11, atol=1e-6)
    np.testing.assert_allclose(found.budget_P, budget, rtol=1e-6)
    np.testing.assert_array_equal(found.winner_takes_all_P, budget < 1)


def test_the_range_may_be_traced_and_rewards_of_any_number_type():
    rewards = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    plain = solve(rewards, -2.0, 3.0)
    traced = jax.jit(increase_variance)(rewards, jnp.float32(-2.0), jnp.float32(3.0))
    np.testing.assert_allclose(plain.adjusted_PG, traced.adjusted_PG, atol=1e-6)
    for kind in (jnp.int32, jnp.bfloat16):
        found = solve(jnp.array([[0, 1, 2]], kind), 0, 2)
        assert found.adjusted_PG.dtype == jnp.float32
        np.testing.assert_array_equal(found.adjusted_PG, [[0, 1, 2]])


def test_more_reward_never_means_less():
    """Raising the best of a group by steps raises every fraction's sum, and C with it, without a
    jump of the mean.
    """
    steps = np.linspace(0.5, 1.0, 101, dtype=np.float32)
    rewards = np.stack([steps, np.full_like(steps, 0.25), np.full_like(steps, 0.4)], axis=1)
    sums = np.asarray(solve(rewards, 0, 1).fraction_PG).sum(1)
    assert all(before < after for before, after in pairwise(sums))
    np.testing.assert_allclose(sums, rewards.sum(1), rtol=1e-6)
