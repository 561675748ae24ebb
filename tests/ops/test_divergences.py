"""Estimators of KL against hand-worked numbers, and their mean over all words against the exact
sum.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import divergences

V = 11
LOGITS_1V = jax.random.normal(jax.random.key(0), (1, V))
REFERENCE_1V = jax.random.normal(jax.random.key(1), (1, V))


def test_by_hand():
    # p(a) = ½, q(a) = ¼: r = ½. k1 = ln 2, k2 = ½ (ln 2)², k3 = (½ − 1) + ln 2.
    logprob, reference, mask = (
        jnp.log(jnp.array([[0.5]])),
        jnp.log(jnp.array([[0.25]])),
        jnp.array([[True]]),
    )
    np.testing.assert_allclose(divergences.k1(logprob, reference, mask), [[np.log(2)]], rtol=1e-6)
    np.testing.assert_allclose(
        divergences.k2(logprob, reference, mask), [[0.5 * np.log(2) ** 2]], rtol=1e-6
    )
    np.testing.assert_allclose(
        divergences.k3(logprob, reference, mask), [[np.log(2) - 0.5]], rtol=1e-6
    )


def test_full_kl_by_hand():
    # p = (¼, ¾), q = (½, ½): ¼ ln ½ + ¾ ln (3/2) = ¾ ln 3 − ln 2.
    p, q = jnp.log(jnp.array([[1.0, 3.0]])), jnp.zeros((1, 2))
    np.testing.assert_allclose(divergences.full_kl(p, q), [0.75 * np.log(3) - np.log(2)], rtol=1e-5)


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_expectation_under_the_policy_is_the_exact_kl(name):
    logprob_1V, reference_1V = jax.nn.log_softmax(LOGITS_1V), jax.nn.log_softmax(REFERENCE_1V)
    estimate_1V = getattr(divergences, name)(logprob_1V, reference_1V, jnp.ones((1, V), bool))
    expectation = np.sum(np.exp(np.float64(logprob_1V)) * np.float64(estimate_1V))
    np.testing.assert_allclose(
        expectation, divergences.full_kl(LOGITS_1V, REFERENCE_1V)[0], rtol=1e-5
    )


def test_signs():
    logprob_1V, reference_1V = jax.nn.log_softmax(LOGITS_1V), jax.nn.log_softmax(REFERENCE_1V)
    ones = jnp.ones((1, V), bool)
    assert (divergences.k1(logprob_1V, reference_1V, ones) < 0).any()
    assert (divergences.k3(logprob_1V, reference_1V, ones) >= 0).all()
    assert divergences.full_kl(LOGITS_1V, LOGITS_1V + 3.0)[0] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30, 1e30])
def test_what_is_masked_gives_zero_and_no_gradient(name, garbage):
    logprob, reference = jnp.array([[-1.0, garbage]]), jnp.array([[-2.0, -garbage]])
    mask = jnp.array([[True, False]])
    estimator = getattr(divergences, name)
    assert estimator(logprob, reference, mask)[0, 1] == 0.0
    gradient = jax.grad(lambda x: jnp.sum(estimator(x, reference, mask)))(logprob)
    assert gradient[0, 1] == 0.0
    assert gradient[0, 0] != 0.0


def test_full_kl_with_words_that_cannot_be_drawn():
    # p draws only word 0, q both with ½: ln 2. The other way round q cannot draw what p does:
    # infinite.
    p, q = jnp.array([[0.0, -jnp.inf]]), jnp.zeros((1, 2))
    np.testing.assert_allclose(divergences.full_kl(p, q), [np.log(2)], rtol=1e-6)
    np.testing.assert_array_equal(divergences.full_kl(q, p), [np.inf])


def exact_kls(logits_V):
    """KL(π ‖ ref) and KL(ref ‖ π)."""
    there = divergences.full_kl(logits_V[None], REFERENCE_1V)[0]
    return {
        "reverse": there,
        "forward": divergences.full_kl(REFERENCE_1V, logits_V[None])[0],
        "none": 0.0 * there,
    }


@pytest.mark.parametrize(
    ("name", "expected"), [("k1", "none"), ("k2", "reverse"), ("k3", "forward")]
)
def test_gradient_as_a_loss(name, expected):
    """What descends when an estimator is a term of the loss and the samples are the policy's own,
    no gradient through them.

    With s = ∇log π and r = q / π: E ∇k1 = E s = 0, so it penalises nothing. E ∇k2 = E[−log r · s] =
    ∇KL(π ‖ ref). E ∇k3 = E[(1 − r) s] = −E[r s] = ∇KL(ref ‖ π): the other way round.
    """
    probability_V = np.exp(np.float64(jax.nn.log_softmax(LOGITS_1V)[0]))
    reference_V1 = jax.nn.log_softmax(REFERENCE_1V).T

    def terms_V(logits_V):  # the word of each row is one draw
        return getattr(divergences, name)(
            jax.nn.log_softmax(logits_V)[:, None], reference_V1, jnp.ones((V, 1), bool)
        )[:, 0]

    of_draw_VV = np.float64(jax.jit(jax.jacobian(terms_V))(LOGITS_1V[0]))
    expected_V = jax.jit(jax.grad(lambda logits_V: exact_kls(logits_V)[expected]))(LOGITS_1V[0])
    np.testing.assert_allclose(probability_V @ of_draw_VV, expected_V, atol=1e-6)
    if expected != "none":
        assert np.abs(expected_V).max() > 0.01
    else:
        assert np.abs(of_draw_VV).max() > 0.1
