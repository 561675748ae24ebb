"""Scores: log-probabilities and entropies of rows, whatever is under the mask, and the missing-EOS
rule.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhf_jax import scoring
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Samples, Scores


@pytest.fixture(scope="module")
def outputs_of():
    model = tiny.make_model()
    run = jax.jit(partial(scoring.policy_outputs, model=model))

    def outputs(batch):
        rows = (
            batch.prompt_tokens_RQ,
            batch.prompt_mask_RQ,
            batch.tokens_RC,
            batch.mask_RC,
            batch.temperature,
        )
        return run(tiny.make_params(model), *rows)

    return outputs


def test_outputs_are_those_of_the_tempered_law(outputs_of):
    """Against float64: log softmax(logits / T) at the token, and the entropy of the whole
    vocabulary; 0 under the mask.
    """
    batch, model = tiny.make_batch(3), tiny.make_model()
    params = tiny.make_params(model)
    rows = (batch.prompt_tokens_RQ, batch.prompt_mask_RQ, batch.tokens_RC, batch.mask_RC)
    hidden = jax.jit(partial(scoring.completion_hidden, model=model))(params, *rows)
    scaled = np.asarray(hidden, np.float64) @ np.asarray(params["embed_out"]["kernel"], np.float64)
    scaled /= np.float64(batch.temperature)
    law = np.exp(scaled) / np.exp(scaled).sum(-1, keepdims=True)
    mask_RC, tokens_RC = np.asarray(batch.mask_RC), np.asarray(batch.tokens_RC)
    chosen = np.take_along_axis(law, tokens_RC[..., None], -1)[..., 0]
    outputs = outputs_of(batch)
    np.testing.assert_allclose(outputs.logprob_RC, np.where(mask_RC, np.log(chosen), 0), atol=1e-4)
    np.testing.assert_allclose(
        outputs.entropy_RC, np.where(mask_RC, -(law * np.log(law)).sum(-1), 0), atol=1e-4
    )


def test_gradient_energies_are_squared_norms_of_gradients():
    """The sum over a completion is the squared norm of the gradient of w Σ log p in all of its
    logits over the temperature, w = π / π_behavior of the completion; 0 under the mask, whatever
    is there.
    """
    batch, model = tiny.make_batch(3), tiny.make_model()
    params = tiny.make_params(model)
    rows = (batch.prompt_tokens_RQ, batch.prompt_mask_RQ, batch.tokens_RC, batch.mask_RC)
    hidden = jax.jit(partial(scoring.completion_hidden, model=model))(params, *rows)
    logits_RCV = model.head(params, hidden) / batch.temperature

    def weighted(z_CV, tokens_C, mask_C, weight):
        logprob_C = jnp.take_along_axis(jax.nn.log_softmax(z_CV), tokens_C[:, None], 1)[:, 0]
        return weight * jnp.sum(jnp.where(mask_C, logprob_C, 0.0)), logprob_C

    def norms(logits_RCV, weight_R):
        gradient = jax.vmap(jax.grad(weighted, has_aux=True))
        gradient_RCV, logprob_RC = gradient(logits_RCV, batch.tokens_RC, batch.mask_RC, weight_R)
        return jnp.sum(jnp.square(gradient_RCV), (1, 2)), logprob_RC

    _, logprob_RC = norms(logits_RCV, jnp.ones(3))
    change_RC = jnp.where(batch.mask_RC, jnp.cos(jnp.arange(logprob_RC.size)).reshape(3, -1), 0.0)
    expected_R, _ = norms(logits_RCV, jnp.exp(change_RC.sum(1)))
    samples = Samples(
        *rows,
        behavior_logprob_BC=jnp.where(batch.mask_RC, logprob_RC - change_RC, jnp.nan),
        finished_B=jnp.ones(3, bool),
        ordinal_B=jnp.arange(3),
        sample_index_B=jnp.zeros(3, jnp.int32),
        version_BC=jnp.zeros_like(batch.tokens_RC),
        temperature=batch.temperature,
        samples_per_prompt=1,
    )
    energy_BC = jax.jit(partial(scoring.sample_gradient_energy, model=model))(params, samples)
    np.testing.assert_allclose(energy_BC.sum(1), expected_R, rtol=1e-4)
    assert not np.any(np.asarray(energy_BC)[~np.asarray(batch.mask_RC)])


def test_what_is_under_the_mask_changes_nothing(outputs_of):
    batch = tiny.make_batch(3)
    garbage = batch.replace(
        tokens_RC=np.where(batch.mask_RC, batch.tokens_RC, 9).astype(np.int32),
        prompt_tokens_RQ=np.where(batch.prompt_mask_RQ, batch.prompt_tokens_RQ, 5).astype(np.int32),
    )
    for one, other in zip(
        jax.tree.leaves(outputs_of(batch)), jax.tree.leaves(outputs_of(garbage)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_completion_without_eos_scores_something_else_instead():
    """mean 2, std 4: raw 6, -2, 10 become 1, -1, 2; the second never ended and gets -7 instead of
    its -1.
    """
    raw_B, finished_B = jnp.array([6.0, -2.0, 10.0]), jnp.array([True, False, True])
    scores = scoring.make_scores(raw_B, finished_B, 2.0, 4.0, scoring.Config(True, -7.0))
    np.testing.assert_array_equal(scores.raw_B, raw_B)
    np.testing.assert_array_equal(scores.standardized_B, [1, -1, 2])
    np.testing.assert_array_equal(scores.score_B, [1, -7, 2])
    kept = scoring.make_scores(
        raw_B, finished_B, 0.0, 1.0, scoring.Config(replace_missing_eos=False)
    )
    np.testing.assert_array_equal(kept.score_B, raw_B)


OVERLONG = scoring.Overlong(buffer=4, factor=0.5)


def overlong(replace_missing_eos: bool) -> Scores:
    """Completions of 3, 4, 5, 8 and 8 tokens of at most 8; the last one was cut."""
    mask_BC = jnp.arange(8)[None] < jnp.array([3, 4, 5, 8, 8])[:, None]
    finished_B = jnp.array([True, True, True, True, False])
    config = scoring.Config(replace_missing_eos, -7.0, OVERLONG)
    scores = scoring.make_scores(jnp.ones(5), finished_B, 0.0, 1.0, config)
    return scoring.with_overlong(scores, mask_BC, finished_B, config)


def test_the_penalty_on_long_completions_by_hand():
    """-(length - (8 - 4)) / 4 * 0.5: 0 up to 4 tokens, -1/8 of 5, -1/2 of 8 and of the cut one. Raw and
    standardised scores are without it.
    """
    scores = overlong(replace_missing_eos=False)
    np.testing.assert_array_equal(scores.overlong_B, [0, 0, -0.125, -0.5, -0.5])
    np.testing.assert_array_equal(scores.score_B, [1, 1, 0.875, 0.5, 0.5])
    np.testing.assert_array_equal(scores.raw_B, np.ones(5))
    np.testing.assert_array_equal(scores.standardized_B, np.ones(5))


def test_a_replaced_score_has_no_penalty():
    scores = overlong(replace_missing_eos=True)
    np.testing.assert_array_equal(scores.overlong_B, [0, 0, -0.125, -0.5, 0])
    np.testing.assert_array_equal(scores.score_B, [1, 1, 0.875, 0.5, -7])


def test_a_cut_completion_has_the_whole_penalty_however_short():
    mask_BC = jnp.arange(8)[None] < jnp.array([3, 3])[:, None]
    penalty_B = scoring.overlong_penalty(mask_BC, jnp.array([True, False]), OVERLONG)
    np.testing.assert_array_equal(penalty_B, [0, -0.5])


def test_a_buffer_is_no_longer_than_a_completion():
    scoring.check_overlong(scoring.Overlong(8), 8)
    with pytest.raises(
        Refusal, match=r"overlong.buffer is 9; accepted: 0 .no penalty. to the 8 tokens"
    ):
        scoring.check_overlong(scoring.Overlong(9), 8)


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (1, 3), (2,)])
def test_a_reward_of_another_shape_would_broadcast(shape):
    with pytest.raises(AssertionError):
        scoring.make_scores(jnp.ones(shape), jnp.array([True] * 3), 0.0, 1.0, scoring.Config())


def test_a_sum_of_rewards_by_hand():
    """(6 - 2) / 4 = 1 and (-2 - 2) / 4 = -1, weighed 0.5; the other in its own unit, weighed 3; the
    cut one is replaced.
    """
    raw = {"learned": jnp.array([6.0, -2.0]), "length": jnp.array([1.0, 2.0])}
    units = {"learned": (0.5, 2.0, 4.0), "length": (3.0, 0.0, 1.0)}
    scores = scoring.make_summed_scores(
        raw, units, jnp.array([True, False]), scoring.Config(True, -7.0)
    )
    np.testing.assert_array_equal(scores.raw_B, [3.5, 5.5])
    np.testing.assert_array_equal(scores.standardized_B, [3.5, 5.5])
    np.testing.assert_array_equal(scores.score_B, [3.5, -7])
    np.testing.assert_array_equal(scores.terms["learned"], [1, -1])
    np.testing.assert_array_equal(scores.terms["length"], [1, 2])


def test_scores_are_float32_whatever_the_judge_gives():
    scores = scoring.make_scores(
        jnp.array([1, 0, 1]), jnp.array([True] * 3), 0.0, 1.0, scoring.Config()
    )
    assert scores.standardized_B.dtype == scores.score_B.dtype == jnp.float32
