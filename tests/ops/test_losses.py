"""Losses against hand-worked numbers, their derivatives included, and at margins where exp would overflow."""

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import losses


def test_dpo_by_hand():
    # β · margin = ln 3: σ = ¾, so the loss is −ln ¾ = ln (4/3) and its derivative −β (1 − ¾) = −0.025.
    margin_U = jnp.array([10 * np.log(3.0)], jnp.float32)
    np.testing.assert_allclose(losses.dpo(margin_U, 0.1), [np.log(4 / 3)], rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda m: losses.dpo(m, 0.1)[0])(margin_U), [-0.025], rtol=1e-5)


def test_dpo_of_no_margin_is_ln_2():
    np.testing.assert_allclose(losses.dpo(jnp.zeros(2), 0.3), [np.log(2)] * 2, rtol=1e-6)


def test_pairwise_logistic_by_hand():
    # chosen − rejected = ln 4 − ln 1: σ = 4/5. The other way round 1/5.
    chosen_U, rejected_U = jnp.array([np.log(4.0), 0.0]), jnp.array([0.0, np.log(4.0)])
    np.testing.assert_allclose(losses.pairwise_logistic(chosen_U, rejected_U), [-np.log(0.8), -np.log(0.2)], rtol=1e-5)


def test_extreme_margins_stay_finite():
    margin_U = jnp.array([1e4, -1e4])
    np.testing.assert_allclose(losses.dpo(margin_U, 1.0), [0.0, 1e4], rtol=1e-6)
    gradient_U = jax.grad(lambda m: jnp.sum(losses.dpo(m, 1.0)))(margin_U)
    np.testing.assert_allclose(gradient_U, [0.0, -1.0], atol=1e-6)


def test_cross_entropy_sums_over_unmasked_tokens():
    # −(−1 − 2 − 4) = 7; the NaN is masked.
    logprob_RC = jnp.array([[-1.0, -2.0], [-4.0, jnp.nan]])
    assert losses.cross_entropy_sum(logprob_RC, jnp.array([[True, True], [True, False]])) == 7.0
