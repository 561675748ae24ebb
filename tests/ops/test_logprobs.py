"""Token log-probabilities against a float64 loop, hand-worked numbers, finite differences, and
themselves in chunks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops.logprobs import chunked_token_logprobs, token_energies, token_logprobs

N, D, V = 13, 5, 11
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def example():
    keys = jax.random.split(jax.random.key(0), 4)
    return {
        "hidden_ND": jax.random.normal(keys[0], (N, D)),
        "weight_DV": jax.random.normal(keys[1], (D, V)),
        "tokens_N": jax.random.randint(keys[2], (N,), 0, V),
        "pull_2N": jax.random.normal(
            keys[3], (2, N)
        ),  # what the loss pulls log-probability and entropy with
    }


def naive(logits_NV, tokens_N, temperature):
    """The definition, one row at a time in float64."""
    logprobs, entropies = [], []
    for logits_V, token in zip(np.float64(logits_NV), np.asarray(tokens_N), strict=True):
        weight_V = np.exp(logits_V / temperature)
        prob_V = weight_V / weight_V.sum()
        logprobs.append(np.log(prob_V[token]))
        entropies.append(-sum(p * np.log(p) for p in prob_V if p > 0))
    return np.array(logprobs), np.array(entropies)


def pulled(hidden_ND, weight_DV, temperature, example, max_chunk_elements):
    def head(hidden):
        return hidden @ weight_DV

    logprob_N, entropy_N = chunked_token_logprobs(
        hidden_ND, head, example["tokens_N"], temperature, max_chunk_elements=max_chunk_elements
    )
    return jnp.sum(example["pull_2N"][0] * logprob_N + example["pull_2N"][1] * entropy_N), (
        logprob_N,
        entropy_N,
    )


def gradients(example, max_chunk_elements):
    function = jax.jit(
        jax.value_and_grad(
            lambda h, w, t: pulled(h, w, t, example, max_chunk_elements),
            argnums=(0, 1, 2),
            has_aux=True,
        )
    )
    return function(example["hidden_ND"], example["weight_DV"], TEMPERATURE)


def test_by_hand():
    # Weights 1, 3: p = 1/4, 3/4, H = ln 4 − ¾ ln 3. At temperature ½ they are squared: 1/10, 9/10.
    logits_NV, tokens_N = jnp.log(jnp.array([[1.0, 3.0]])), jnp.array([1])
    logprob_N, entropy_N = token_logprobs(logits_NV, tokens_N, 1.0)
    np.testing.assert_allclose(logprob_N[0], np.log(0.75), rtol=1e-6)
    np.testing.assert_allclose(entropy_N[0], np.log(4) - 0.75 * np.log(3), rtol=1e-6)
    np.testing.assert_allclose(
        token_logprobs(logits_NV, tokens_N, 0.5)[0][0], np.log(0.9), rtol=1e-6
    )


def test_is_the_float64_loop(example):
    logits_NV = example["hidden_ND"] @ example["weight_DV"]
    expected = naive(logits_NV, example["tokens_N"], TEMPERATURE)
    got = token_logprobs(logits_NV, example["tokens_N"], TEMPERATURE)
    np.testing.assert_allclose(got[0], expected[0], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(got[1], expected[1], rtol=2e-5, atol=1e-6)


def test_probabilities_sum_to_one_and_none_exceeds_it():
    # Large logits are where float32 rounding could push a log-probability above 0.
    logits_V = 50 * jax.random.normal(jax.random.key(1), (V,)) + 1e4
    logprob_V, _ = token_logprobs(jnp.tile(logits_V, (V, 1)), jnp.arange(V), TEMPERATURE)
    assert (logprob_V <= 0).all()
    np.testing.assert_allclose(np.exp(np.float64(logprob_V)).sum(), 1.0, rtol=1e-5)


def test_derivatives_are_finite_differences(example):
    """The written-out derivatives, to logits and temperature, against differences of the float64
    loop.
    """
    logits_NV = example["hidden_ND"] @ example["weight_DV"]

    def of_naive(logits, temperature):
        logprob_N, entropy_N = naive(logits, example["tokens_N"], temperature)
        return np.sum(np.float64(example["pull_2N"]) * np.stack([logprob_N, entropy_N]))

    def ours(logits, temperature):
        logprob_N, entropy_N = token_logprobs(logits, example["tokens_N"], temperature)
        return jnp.sum(example["pull_2N"][0] * logprob_N + example["pull_2N"][1] * entropy_N)

    by_logits_NV, by_temperature = jax.grad(ours, argnums=(0, 1))(logits_NV, TEMPERATURE)
    step, base_NV = 1e-4, np.float64(logits_NV)
    for row, word in [
        (0, 0),
        (0, int(example["tokens_N"][0])),
        (5, 3),
        (12, 10),
        (12, int(example["tokens_N"][12])),
    ]:
        up_NV, down_NV = base_NV.copy(), base_NV.copy()
        up_NV[row, word] += step
        down_NV[row, word] -= step
        expected = (of_naive(up_NV, TEMPERATURE) - of_naive(down_NV, TEMPERATURE)) / (2 * step)
        np.testing.assert_allclose(by_logits_NV[row, word], expected, rtol=1e-3, atol=1e-5)
    expected = (of_naive(base_NV, TEMPERATURE + step) - of_naive(base_NV, TEMPERATURE - step)) / (
        2 * step
    )
    np.testing.assert_allclose(by_temperature, expected, rtol=1e-3)


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 12])
def test_chunks_change_nothing(example, rows):
    """Chunks of 13 rows, one row each or with a ragged tail: values and all gradients as in one
    piece.
    """
    (loss, outputs), grads = gradients(example, rows * V)
    (whole_loss, whole_outputs), whole_grads = gradients(example, N * V)
    np.testing.assert_allclose(loss, whole_loss, rtol=1e-5)
    for got, expected in zip((*outputs, *grads), (*whole_outputs, *whole_grads), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def avals(jaxpr):
    """Sizes of all arrays that a jaxpr and those inside it make."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(value, "jaxpr"):
                value = value.jaxpr
            if hasattr(value, "eqns"):
                yield from avals(value)


def largest_array(max_chunk_elements, num_rows):
    """The most elements that any array of loss and gradient has, for inputs smaller than a chunk."""
    hidden_ND, weight_DV, tokens_N = (
        jnp.ones((num_rows, 2)),
        jnp.ones((2, 101)),
        jnp.zeros(num_rows, jnp.int32),
    )

    def loss(hidden, weight):
        return jnp.sum(
            chunked_token_logprobs(
                hidden, lambda h: h @ weight, tokens_N, 1.0, max_chunk_elements=max_chunk_elements
            )[0]
        )

    return max(avals(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(hidden_ND, weight_DV).jaxpr))


def test_no_array_exceeds_the_limit_in_the_backward_pass_either():
    assert largest_array(101 * 7, 53) <= 101 * 7
    assert (
        largest_array(101 * 53, 53) == 101 * 53
    )  # the walk does see the logits where they are whole


def test_a_row_that_does_not_fit_is_refused(example):
    with pytest.raises(ValueError, match=r"max_chunk_elements is 10; one row of logits has 11"):
        gradients(example, V - 1)


def test_words_that_cannot_be_drawn_give_no_nan():
    # Two words of equal weight remain: log ½ and ln 2; the gradient leaves the impossible word
    # alone.
    logits_NV, tokens_N = jnp.array([[1.0, -jnp.inf, 1.0]]), jnp.array([0])

    def loss(logits_NV, temperature):
        logprob_N, entropy_N = token_logprobs(logits_NV, tokens_N, temperature)
        return jnp.sum(logprob_N + 3 * entropy_N), (logprob_N, entropy_N)

    (by_logits_NV, by_temperature), (logprob_N, entropy_N) = jax.grad(
        loss, argnums=(0, 1), has_aux=True
    )(logits_NV, 1.0)
    np.testing.assert_allclose((logprob_N[0], entropy_N[0]), (-np.log(2), np.log(2)), rtol=1e-6)
    np.testing.assert_allclose(by_logits_NV, [[0.5, 0.0, -0.5]], atol=1e-6)
    np.testing.assert_allclose(by_temperature, 0.0, atol=1e-6)


def test_bfloat16_logits_are_computed_in_float32(example):
    logits_NV = (example["hidden_ND"] @ example["weight_DV"]).astype(jnp.bfloat16)
    logprob_N, _ = token_logprobs(logits_NV, example["tokens_N"], TEMPERATURE)
    assert logprob_N.dtype == jnp.float32
    gradient_NV = jax.grad(
        lambda logits: jnp.sum(token_logprobs(logits, example["tokens_N"], TEMPERATURE)[0])
    )(logits_NV)
    assert gradient_NV.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        logprob_N, naive(logits_NV, example["tokens_N"], TEMPERATURE)[0], rtol=2e-5, atol=1e-6
    )


def test_chunks_leave_rows_on_their_devices():
    """Eight devices with 16 rows each, four chunks: a device multiplies 4 of its rows a chunk, and
    no row is sent.
    """
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows, whole = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*names))
        for names in (("data",), ())
    )
    hidden = jax.device_put(np.random.default_rng(0).standard_normal((128, 4), np.float32), rows)
    kernel = jax.device_put(np.random.default_rng(1).standard_normal((4, 11), np.float32), whole)
    tokens = jax.device_put(np.arange(128, dtype=np.int32) % 11, rows)

    def scored(kernel, hidden, tokens):
        return chunked_token_logprobs(
            hidden, lambda x: x @ kernel, tokens, 0.7, max_chunk_elements=32 * 11
        )

    text = (
        jax.jit(scored, out_shardings=(rows, rows))
        .lower(kernel, hidden, tokens)
        .compile()
        .as_text()
    )
    assert not any(
        name in text for name in ("all-gather", "all-to-all", "collective-permute", "all-reduce")
    )
    assert "f32[4,11]" in text
    for found, expected in zip(
        jax.jit(scored)(kernel, hidden, tokens),
        token_logprobs(hidden @ kernel, tokens, 0.7),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_energies_are_squared_norms_of_derivatives_in_one_sweep_or_in_chunks(example):
    """‖∂ log p(a) / ∂(z / τ)‖² by the derivative itself; a word that cannot be drawn has none."""
    tokens_N = example["tokens_N"]
    drawn_NV = jnp.arange(V)[None] != (tokens_N[:, None] + 1) % V
    logits_NV = jnp.where(drawn_NV, example["hidden_ND"] @ example["weight_DV"], -jnp.inf)

    def total(scaled_NV):
        return jnp.sum(token_logprobs(scaled_NV, tokens_N, 1.0)[0])

    expected_N = jnp.sum(jnp.square(jax.grad(total)(logits_NV / TEMPERATURE)), axis=1)
    logprob_N, energy_N = token_energies(logits_NV, tokens_N, TEMPERATURE)
    np.testing.assert_allclose(energy_N, expected_N, rtol=1e-5, atol=1e-6)
    logprobs = token_logprobs(logits_NV, tokens_N, TEMPERATURE)[0]
    np.testing.assert_allclose(logprob_N, logprobs, rtol=1e-6)
    chunked = chunked_token_logprobs(
        logits_NV,
        lambda hidden: hidden,
        tokens_N,
        TEMPERATURE,
        max_chunk_elements=2 * V,
        of_logits=token_energies,
    )
    np.testing.assert_allclose(chunked[1], energy_N, rtol=1e-6, atol=1e-6)
