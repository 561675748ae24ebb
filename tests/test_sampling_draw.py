"""The law of one token: the inverse of the cumulative distribution against float64, frequencies,
and the uniform numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import C, V

from rlhf_jax import sampling


def test_uniforms_depend_on_key_ordinal_sample_index_and_position():
    ordinal_B, index_B = jnp.array([5, 5, 6, 5]), jnp.array([0, 1, 0, 0])
    uniform_CB = np.asarray(sampling.uniforms(jax.random.key(0), ordinal_B, index_B, C))
    assert uniform_CB.shape == (C, 4)
    assert ((uniform_CB >= 0) & (uniform_CB < 1)).all()
    assert len(np.unique(uniform_CB[:, :3])) == 3 * C
    np.testing.assert_array_equal(uniform_CB[:, 0], uniform_CB[:, 3])
    np.testing.assert_array_equal(
        sampling.uniforms(jax.random.key(0), ordinal_B, index_B, 3), uniform_CB[:3]
    )
    assert not np.isin(
        np.asarray(sampling.uniforms(jax.random.key(1), ordinal_B, index_B, C)), uniform_CB
    ).any()


def test_uniforms_are_midpoints(monkeypatch):
    """The smallest and the largest multiple of 2^-23 become the midpoints of the first and the last
    step.
    """
    for low, expected in ((0.0, 2.0**-24), (1 - 2.0**-23, 1 - 2.0**-24)):
        monkeypatch.setattr(jax.random, "uniform", lambda key, low=low: jnp.float32(low))
        zero_B = jnp.zeros(1, jnp.int32)
        uniform = sampling.uniforms(jax.random.key(0), zero_B, zero_B, 1)
        assert uniform.dtype == jnp.float32
        assert float(uniform[0, 0]) == expected


def test_a_first_token_of_almost_no_probability_is_not_drawn():
    """At the smallest uniform number there is. 2^-30 and 2^-23 of probability: below and above half
    a step.
    """
    smallest_B = jnp.array([2.0**-24], jnp.float32)
    for exponent, expected in ((-30, 1), (-23, 0)):
        logits_V = np.log(np.array([2.0**exponent, *[(1 - 2.0**exponent) / 10] * 10])).astype(
            np.float32
        )
        token_B, _ = sampling.sample_token(jnp.array(logits_V[None]), smallest_B, 1.0)
        assert int(token_B[0]) == expected


def naive_token(logits_V: np.ndarray, uniform: float, temperature: float) -> int:
    """Inverse of the cumulative distribution, in float64, one entry after the other."""
    weight_V = np.exp((logits_V.astype(np.float64) - logits_V.max()) / temperature)
    return int(np.argmax(np.cumsum(weight_V) / weight_V.sum() > uniform))


@pytest.mark.parametrize("vocab_size", [1, 2, 11, 34, 509])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draw_inverts_the_cumulative_distribution(vocab_size, temperature):
    """Equal to float64 wherever the uniform number is further than rounding (1e-5) from a step."""
    random = np.random.default_rng(vocab_size)
    logits_BV = random.normal(size=(997, vocab_size)).astype(np.float32) * 2
    uniform_B = random.uniform(size=997).astype(np.float32)
    token_B, logprob_B = jax.jit(sampling.sample_token, static_argnums=2)(
        logits_BV, uniform_B, temperature
    )
    weight_BV = np.exp(
        (logits_BV.astype(np.float64) - logits_BV.max(-1, keepdims=True)) / temperature
    )
    cumulative_BV = np.cumsum(weight_BV / weight_BV.sum(-1, keepdims=True), axis=-1)
    clear_B = np.abs(cumulative_BV - uniform_B[:, None]).min(-1) > 1e-5
    assert clear_B.mean() > 0.9
    naive_B = [naive_token(*row, temperature) for row in zip(logits_BV, uniform_B, strict=True)]
    np.testing.assert_array_equal(np.asarray(token_B)[clear_B], np.array(naive_B)[clear_B])
    chosen_B = np.take_along_axis(weight_BV, np.asarray(token_B)[:, None], -1)[
        :, 0
    ] / weight_BV.sum(-1)
    np.testing.assert_allclose(logprob_B, np.log(chosen_B), atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_drawn_frequencies_are_those_of_the_tempered_softmax(temperature):
    """20,011 draws with the sampler's own uniform numbers.

    Chi-square with 10 degrees of freedom: above 35.6 once in 10^4.
    """
    count = 20_011
    logits_V = np.random.default_rng(0).normal(size=V).astype(np.float32)
    ordinal_B = jnp.arange(count, dtype=jnp.int32)
    uniform_B = jax.jit(lambda o: sampling.uniforms(jax.random.key(0), o, jnp.zeros_like(o), 1)[0])(
        ordinal_B
    )
    token_B, _ = sampling.sample_token(jnp.tile(logits_V[None], (count, 1)), uniform_B, temperature)
    law_V = np.exp(logits_V.astype(np.float64) / temperature)
    expected_V = count * law_V / law_V.sum()
    observed_V = np.bincount(np.asarray(token_B), minlength=V)
    assert ((observed_V - expected_V) ** 2 / expected_V).sum() < 35.6


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-24])
@pytest.mark.parametrize("possible", [(0,), (10,), (3, 4), (0, 10), (5,)])
def test_impossible_tokens_are_never_drawn(uniform, possible):
    """A logit of -inf has probability 0: at the ends of the unit interval the first and the last
    possible token come out.
    """
    logits_V = np.full(V, -np.inf, np.float32)
    logits_V[list(possible)] = 0.0
    token_B, logprob_B = sampling.sample_token(
        jnp.array(logits_V[None]), jnp.array([uniform], jnp.float32), 1.0
    )
    assert int(token_B[0]) == (possible[0] if uniform == 0.0 else possible[-1])
    np.testing.assert_allclose(logprob_B, [-np.log(len(possible))], atol=1e-6)


def test_the_largest_uniform_number_draws_a_possible_token_of_a_large_vocabulary():
    """Rounding in sums of thousands of terms must not push the inverse past the end."""
    random = np.random.default_rng(0)
    logits_BV = random.normal(size=(101, 5003)).astype(np.float32) * 4
    logits_BV[:, random.permutation(5003)[:2500]] = -np.inf
    logits_BV[:, -7:] = -np.inf
    token_B, logprob_B = sampling.sample_token(
        jnp.array(logits_BV), jnp.full(101, 1 - 2.0**-24, jnp.float32), 1.0
    )
    assert np.isfinite(np.asarray(logprob_B)).all()
    assert np.isfinite(np.take_along_axis(logits_BV, np.asarray(token_B)[:, None], -1)).all()
