"""Advantages by hand, flat groups at any level, and generalised advantages against a float64 double
loop.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import advantages

P, C = 2, 7
OF_GROUPS = {
    name: jax.jit(getattr(advantages, name))
    for name in ("leave_one_out", "centered", "standardized", "bessel", "rank", "best_of_group")
}


def of(name: str, *groups: list[float]) -> np.ndarray:
    return np.asarray(OF_GROUPS[name](jnp.array(groups, jnp.float32)))


def test_three_of_eight_are_correct():
    # Mean 3/8, variance 3/8 · 5/8. Leave one out: 1 − 2/7 and 0 − 3/7. Standardized: (5/8) / (√15 /
    # 8) and −3 / √15.
    scores = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    right = np.array(scores, bool)
    expected = {
        "leave_one_out": (0.7143, -0.4286),
        "centered": (5 / 8, -3 / 8),
        "standardized": (5 / np.sqrt(15), -3 / np.sqrt(15)),
        "bessel": (
            5 / np.sqrt(15 * 8 / 7),
            -3 / np.sqrt(15 * 8 / 7),
        ),  # √(8/7) = 1.069 of the deviation
        "rank": (
            10 / 7,
            -6 / 7,
        ),  # 5 below the three, none above: 2 · 5/7; 3 above the five: −2 · 3/7
        "best_of_group": (1 / 3 - 1 / 8, -1 / 8),  # the three share the 1
    }
    for name, (high, low) in expected.items():
        np.testing.assert_allclose(
            of(name, scores)[0], np.where(right, high, low), atol=5e-5, err_msg=name
        )


def test_the_baseline_of_least_variance():
    """Energies w² n² of w (2, .5, 1, .25) and n² (4, 1, 9, 2): b = 16.125 / 25.375, and the mean
    square of the gradients is 1.469520, where the mean score as baseline has 1.585938. Any other
    baseline has more.
    """
    score_G, energy_G = np.array([1.0, 0, 0, 1]), np.array([16.0, 0.25, 9, 0.125])
    advantage_G = np.asarray(
        advantages.minimum_variance(*(jnp.array([a], jnp.float32) for a in (score_G, energy_G)))
    )[0]
    np.testing.assert_allclose(advantage_G, score_G - 0.635468, atol=1e-6)

    def second_moment(baseline: float) -> float:
        return float(np.mean(energy_G * (score_G - baseline) ** 2))

    np.testing.assert_allclose(np.mean(energy_G * advantage_G**2), 1.469520, atol=1e-5)
    np.testing.assert_allclose(second_moment(0.5), 1.585938, atol=1e-6)
    assert all(second_moment(0.635468 + change) > 1.469520 for change in (-0.01, 0.01))


def test_the_others_baseline_of_least_variance():
    """Others' energies alone: 1/4, 2/3 of 1, 1/2 and 1/4; beside a sample of 1e12 times their energy
    too.
    """
    score_PG = jnp.array([[1.0, 0, 0, 1], [1.0, 0, 0, 1]])
    energy_PG = jnp.array([[1.0, 2, 1, 1], [1e12, 2, 1, 1]])
    found = np.asarray(advantages.leave_one_out_minimum_variance(score_PG, energy_PG))
    np.testing.assert_allclose(found[0], [3 / 4, -2 / 3, -1 / 2, 3 / 4], rtol=1e-6)
    np.testing.assert_allclose(found[1], [3 / 4, -1, -1, 0], atol=1e-6)


def test_the_others_baseline_is_unbiased_and_the_own_one_is_not():
    """The expectation over all 27 groups of three words, against the gradient of the expected
    reward in the logits.
    """
    law_V = np.array([0.5, 0.1, 0.4])
    reward_V = np.array([0.2, 1.0, 0.0])
    energy_V = 1 - 2 * law_V + (law_V**2).sum()
    words_PG = np.array(list(itertools.product(range(3), repeat=3)))
    slope_PGV = np.eye(3)[words_PG] - law_V
    true_V = law_V * (reward_V - law_V @ reward_V)
    for name, biased in (("leave_one_out_minimum_variance", False), ("minimum_variance", True)):
        scores = [jnp.asarray(x[words_PG], jnp.float32) for x in (reward_V, energy_V)]
        advantage_PG = np.asarray(getattr(advantages, name)(*scores))
        expected_V = (
            np.einsum("p,pg,pgv->v", law_V[words_PG].prod(1), advantage_PG, slope_PGV)
            / words_PG.shape[1]
        )
        error = np.abs(expected_V - true_V).max() / np.abs(true_V).max()
        assert error > 0.2 if biased else error < 1e-5, (name, error)


@pytest.mark.parametrize("name", ["minimum_variance", "leave_one_out_minimum_variance"])
def test_the_baseline_of_least_variance_without_energy_is_the_mean(name):
    """A policy that is certain has no gradient; a flat group has advantage 0 at any energy."""
    score_PG = jnp.array([[1.0, 0.0, 0.5], [0.1, 0.1, 0.1]])
    energy_PG = jnp.array([[0.0, 0.0, 0.0], [3.0, 1e-3, 40.0]])
    found = getattr(advantages, name)(score_PG, energy_PG)
    factor = 1.0 if name == "minimum_variance" else 3 / 2
    np.testing.assert_allclose(found, factor * np.array([[0.5, -0.5, 0.0], [0, 0, 0]]), atol=1e-6)
    np.testing.assert_array_equal(found[1], 0.0)


def test_one_bad_of_eight():
    # The seven: 0.35 − (6 · 0.35 − 0.25) / 7 = 0.6 / 7, the same to the bit; the last −0.25 − 0.35.
    (advantage,) = of("leave_one_out", [0.35] * 7 + [-0.25])
    np.testing.assert_allclose(advantage, [0.6 / 7] * 7 + [-0.6], rtol=1e-6)
    assert len(set(advantage[:7])) == 1


def test_rank_with_equals():
    # From the best: 5 is 1st, 3 is 2nd, the two 1s share 3.5, 0 is 5th: 2 − 4 (rank − 1) / 4.
    np.testing.assert_allclose(
        of("rank", [3.0, 1.0, 1.0, 0.0, 5.0]), [[1.0, -0.5, -0.5, -2.0, 2.0]]
    )
    np.testing.assert_allclose(of("rank", [0.1, 7000.0]), [[-2.0, 2.0]])


def test_best_of_group_with_equals():
    np.testing.assert_allclose(
        of("best_of_group", [2.0, 7.0, 7.0]), [[-1 / 3, 1 / 6, 1 / 6]], rtol=1e-6
    )


@pytest.mark.parametrize("level", [0.0, 0.35, -0.1, 1e6 + 0.3, -1e9, 1e15])
@pytest.mark.parametrize("name", OF_GROUPS)
def test_a_flat_group_is_exactly_zero(name, level):
    """Beside one that is not, at any level and for the sizes whose inverse is no float32."""
    for size in (2, 3, 7, 11):
        advantage = of(name, [level] * size, [level] * (size - 1) + [2 * level + 1])
        np.testing.assert_array_equal(advantage[0], np.zeros(size))
        assert advantage[1].any()


@pytest.mark.parametrize("name", OF_GROUPS)
def test_a_common_offset_does_not_matter(name):
    """1e6 + {0, ½, 1, ¼} are float32 numbers, and nothing of them is lost in a mean of theirs."""
    low = [0.0, 0.5, 1.0, 0.25, 0.25]
    np.testing.assert_array_equal(of(name, [score + 1e6 for score in low]), of(name, low))


@pytest.mark.parametrize("name", OF_GROUPS)
def test_groups_do_not_meet(name):
    """Permuted prompts give permuted advantages, permuted samples permuted ones, and each group is
    as it is alone.
    """
    random = np.random.default_rng(0)
    score_PG = random.normal(size=(3, 5)).astype(np.float32)
    advantage_PG = of(name, *score_PG)
    np.testing.assert_allclose(of(name, *score_PG[[2, 0, 1]]), advantage_PG[[2, 0, 1]], rtol=1e-6)
    np.testing.assert_allclose(of(name, score_PG[1]), advantage_PG[1:2], rtol=1e-6)
    turned = [4, 2, 0, 1, 3]
    np.testing.assert_allclose(
        of(name, *score_PG[:, turned]), advantage_PG[:, turned], rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(advantage_PG.sum(axis=1), 0.0, atol=1e-5)


def test_deviation_is_the_populations():
    np.testing.assert_allclose(
        advantages.deviation(jnp.array([[1.0, 3.0], [5.0, 5.0]])), [[1.0], [0.0]]
    )


def naive_gae(reward, value, length, gamma, gae_lambda):
    """Σ_l (γλ)^l δ_{t+l} of one row, in float64, as it is written."""
    following = np.append(value[1:length], 0.0)
    error = reward[:length] + gamma * following - value[:length]
    return [
        sum((gamma * gae_lambda) ** (s - t) * error[s] for s in range(t, length))
        for t in range(length)
    ]


@pytest.mark.parametrize(
    ("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.97, 0.0), (0.0, 0.7)]
)
def test_gae_is_the_double_loop(gamma, gae_lambda):
    random = np.random.default_rng(1)
    lengths = [C, 1, 3, C - 1]
    reward_BC, value_BC = random.normal(size=(2, len(lengths), C))
    mask_BC = np.arange(C) < np.array(lengths)[:, None]
    expected_BC = np.zeros((len(lengths), C))
    for row, length in enumerate(lengths):
        expected_BC[row, :length] = naive_gae(
            reward_BC[row], value_BC[row], length, gamma, gae_lambda
        )
    for garbage in (np.nan, 1e30, 0.5):  # under the mask
        given = [
            jnp.array(np.where(mask_BC, array, garbage), jnp.float32)
            for array in (reward_BC, value_BC)
        ]
        found_BC = advantages.gae(*given, jnp.array(mask_BC), gamma=gamma, gae_lambda=gae_lambda)
        np.testing.assert_allclose(found_BC, expected_BC, rtol=1e-5, atol=1e-5)


def test_gae_at_its_two_ends():
    # Rewards 0, 0, 4; values 1, 2, 3. λ = 0: errors 0 + 2 − 1, 0 + 3 − 2, 4 − 3. λ = 1: 4, still to
    # come, less the value.
    reward, value = jnp.array([[0.0, 0.0, 4.0]]), jnp.array([[1.0, 2.0, 3.0]])
    for gae_lambda, expected in ((0.0, [1, 1, 1]), (1.0, [3, 2, 1])):
        found = advantages.gae(
            reward, value, jnp.ones((1, 3), bool), gamma=1.0, gae_lambda=gae_lambda
        )
        np.testing.assert_allclose(found, [expected], rtol=1e-6)
