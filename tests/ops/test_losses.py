"""Losses against hand-worked numbers, their derivatives included, and at margins where exp would
overflow.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import losses


def test_dpo_by_hand():
    # β · margin = ln 3: σ = ¾, so the loss is −ln ¾ = ln (4/3) and its derivative −β (1 − ¾) =
    # −0.025.
    margin_U = jnp.array([10 * np.log(3.0)], jnp.float32)
    np.testing.assert_allclose(losses.dpo(margin_U, 0.1), [np.log(4 / 3)], rtol=1e-5)
    np.testing.assert_allclose(
        jax.grad(lambda m: losses.dpo(m, 0.1)[0])(margin_U), [-0.025], rtol=1e-5
    )


def test_dpo_of_no_margin_is_ln_2():
    np.testing.assert_allclose(losses.dpo(jnp.zeros(2), 0.3), [np.log(2)] * 2, rtol=1e-6)


def test_smoothed_dpo_by_hand():
    # β · margin = ln 3 with ε = ¼: −¾ ln ¾ − ¼ ln ¼ = ln 4 − ¾ ln 3, which is its least value, since
    # ln ((1 − ε) / ε) = ln 3. The other way round: −¾ ln ¼ − ¼ ln ¾ = ln 4 − ¼ ln 3.
    margin_U = jnp.array([10 * np.log(3.0), -10 * np.log(3.0)], jnp.float32)
    expected = np.log(4) - np.array([0.75, 0.25]) * np.log(3)
    np.testing.assert_allclose(losses.smoothed_dpo(margin_U, 0.1, 0.25), expected, rtol=1e-5)
    gradient_U = jax.grad(lambda m: jnp.sum(losses.smoothed_dpo(m, 0.1, 0.25)))(margin_U)
    # β (σ(x) − (1 − ε)): nothing at the least value, 0.1 (¼ − ¾) at the other one.
    np.testing.assert_allclose(gradient_U, [0.0, -0.05], atol=1e-7)


def test_dpo_smoothed_by_nothing_is_dpo():
    margin_U = jnp.array([-3.0, 0.0, 2.5])
    np.testing.assert_array_equal(
        losses.smoothed_dpo(margin_U, 0.3, 0.0), losses.dpo(margin_U, 0.3)
    )


def test_pairwise_logistic_by_hand():
    # chosen − rejected = ln 4 − ln 1: σ = 4/5. The other way round 1/5.
    chosen_U, rejected_U = jnp.array([np.log(4.0), 0.0]), jnp.array([0.0, np.log(4.0)])
    np.testing.assert_allclose(
        losses.pairwise_logistic(chosen_U, rejected_U), [-np.log(0.8), -np.log(0.2)], rtol=1e-5
    )


def test_extreme_margins_stay_finite():
    margin_U = jnp.array([1e4, -1e4])
    np.testing.assert_allclose(losses.dpo(margin_U, 1.0), [0.0, 1e4], rtol=1e-6)
    gradient_U = jax.grad(lambda m: jnp.sum(losses.dpo(m, 1.0)))(margin_U)
    np.testing.assert_allclose(gradient_U, [0.0, -1.0], atol=1e-6)


def test_cross_entropy_sums_over_unmasked_tokens():
    # −(−1 − 2 − 4) = 7; the NaN is masked.
    logprob_RC = jnp.array([[-1.0, -2.0], [-4.0, jnp.nan]])
    assert losses.cross_entropy_sum(logprob_RC, jnp.array([[True, True], [True, False]])) == 7.0


def test_ipo_by_hand():
    # β = ¼ asks for a margin of 2: (5 − 2)² with derivative 2 · 3, and nothing at 2.
    loss_U, gradient_U = jax.vmap(
        jax.value_and_grad(lambda margin: losses.ipo(margin[None], 0.25)[0])
    )(jnp.array([5.0, 2.0]))
    np.testing.assert_allclose(loss_U, [9.0, 0.0])
    np.testing.assert_allclose(gradient_U, [6.0, 0.0])


def test_clipped_surrogate_by_hand():
    # Ratios 1.1, 2, 2, ½, ½ and advantages 3, 3, −3, 3, −3 in [0.9, 1.2]: the smaller of ρ A and
    # clip(ρ) A.
    ratio, advantage = np.array([1.1, 2.0, 2.0, 0.5, 0.5]), jnp.array([3.0, 3.0, -3.0, 3.0, -3.0])

    def total(log_ratio):
        loss, clipped = losses.clipped_surrogate(log_ratio, advantage, 0.1, 0.2)
        return jnp.sum(loss), (loss, clipped)

    gradient, (loss, clipped) = jax.grad(total, has_aux=True)(jnp.log(jnp.array(ratio)))
    np.testing.assert_allclose(loss, [-3.3, -3.6, 6.0, -1.5, 2.7], rtol=1e-6)
    assert clipped.tolist() == [False, True, False, False, True]
    np.testing.assert_allclose(gradient, [-3.3, 0.0, 6.0, -1.5, 0.0], rtol=1e-6)  # −ρ A, or nothing


def test_clipped_value_by_hand():
    # First 0, clip ½. To 1 from ¼: ½ (¾)². From 2, held at ½: errors 1 and ¼, ½ · 1. From 2 to 3: 1
    # and (5/2)², held wins.
    value, target = jnp.array([0.25, 2.0, 2.0]), jnp.array([1.0, 1.0, 3.0])

    def total(value):
        loss, clipped = losses.clipped_value(value, jnp.zeros(3), target, 0.5)
        return jnp.sum(loss), (loss, clipped)

    gradient, (loss, clipped) = jax.grad(total, has_aux=True)(value)
    np.testing.assert_allclose(loss, [9 / 32, 0.5, 25 / 8], rtol=1e-6)
    assert clipped.tolist() == [False, False, True]
    np.testing.assert_allclose(gradient, [-0.75, 1.0, 0.0], rtol=1e-6)


def test_a_value_within_the_bounds_is_not_clipped_by_rounding():
    random = np.random.default_rng(0)
    first, target = random.normal(size=(2, 1009)).astype(np.float32)
    value = (first + random.uniform(-0.19, 0.19, 1009)).astype(np.float32)
    loss, clipped = losses.clipped_value(*map(jnp.asarray, (value, first, target)), 0.2)
    assert not clipped.any()
    np.testing.assert_array_equal(loss, 0.5 * jnp.square(value - target))
