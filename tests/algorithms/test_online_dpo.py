"""Online DPO by hand and against a float64 loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.online_dpo import Config, online_dpo
from rlhf_jax.types import Batch, Outputs

from .examples import (
    C,
    G,
    P,
    random_outputs,
    random_samples,
    random_scores,
    value_and_gradient,
    with_scores,
)

ALGORITHM = online_dpo(Config(beta=0.1))


def hand_batch(reference_logprob_RC, weight=1.0) -> Batch:
    """One pair: the chosen row has two tokens, the rejected one three."""
    mask_RC = jnp.array([[True, True, False], [True, True, True]])
    prompts_RQ = jnp.ones((2, 1), jnp.int32)
    return Batch(
        prompt_tokens_RQ=prompts_RQ,
        prompt_mask_RQ=prompts_RQ > 0,
        tokens_RC=jnp.ones((2, 3), jnp.int32),
        mask_RC=mask_RC,
        temperature=jnp.float32(1.0),
        reference_logprob_RC=jnp.array(reference_logprob_RC, jnp.float32),
        weight_R=jnp.full(2, weight, jnp.float32),
    )


def test_loss_gradient_and_metrics_by_hand():
    # S_c = −1 − 2 = −3, its reference −8: +5. S_r = −1 − 1 − 4 = −6, its reference −6 + 10 ln 3 −
    # 5: 5 − 10 ln 3. Margin 10 ln 3, β · margin = ln 3, σ = ¾: the loss is ln (4/3), its derivative
    # −β (1 − ¾) = −0.025 a chosen token.
    reference = -11 + 10 * np.log(3.0)
    batch = hand_batch([[-4.0, -4.0, 9.0], [reference - 2, 1.0, 1.0]])
    logprob_RC = jnp.array([[-1.0, -2.0, 5.0], [-1.0, -1.0, -4.0]])
    outputs = Outputs(logprob_RC, jnp.array([[1.0, 2.0, 7.0], [3.0, 4.0, 5.0]]))
    (loss, metrics), gradient = value_and_gradient(ALGORITHM, "policy", outputs, batch)
    np.testing.assert_allclose(loss, np.log(4 / 3), rtol=1e-5)
    expected_RC = [[-0.025, -0.025, 0.0], [0.025, 0.025, 0.025]]
    np.testing.assert_allclose(gradient.logprob_RC, expected_RC, rtol=1e-5)
    figures = {name: metric.value() for name, metric in metrics.items()}
    assert figures["margin"] == pytest.approx(10 * np.log(3), rel=1e-5)
    assert (figures["chosen_logprob"], figures["rejected_logprob"]) == (-3.0, -6.0)
    assert (figures["accuracy"], figures["tie_share"]) == (1.0, 0.0)
    assert figures["entropy"] == pytest.approx(3.0)  # (1 + 2 + 3 + 4 + 5) / 5 tokens
    assert figures["completion_length"] == 2.5
    # k1 = log π − log π_ref summed over a row: 5 and 5 − 10 ln 3, mean 5 − 5 ln 3.
    assert figures["behavior_kl_k1"] == pytest.approx(5 - 5 * np.log(3), rel=1e-4)


def test_a_tie_counts_in_the_share_and_nowhere_else():
    outputs = Outputs(-jnp.ones((2, 3)), jnp.ones((2, 3)))
    loss, metrics = ALGORITHM.losses["policy"](outputs, hand_batch(np.zeros((2, 3)), weight=0.0))
    assert loss == 0.0
    assert metrics["tie_share"].value() == 1.0
    assert np.isnan(metrics["accuracy"].value())  # a mean of nothing
    assert np.isnan(metrics["margin"].value())


def test_best_against_worst_the_first_of_equals():
    samples = random_samples(0, num_prompts=3, samples_per_prompt=5)
    scores = with_scores(
        random_scores(ALGORITHM, samples, 0),
        jnp.array([1.0, 3.0, 3.0, 0.0, 0.0, 2.0, 2.0, 2.0, 2.0, 2.0, -1.0, -2.0, -3.0, -4.0, -5.0]),
    )
    batch = ALGORITHM.credit(samples, scores)
    rows_R = np.array([1, 3, 5, 5, 10, 14])  # prompt 1 is a tie: any rows, weight 0
    np.testing.assert_array_equal(batch.weight_R, [1, 1, 0, 0, 1, 1])
    np.testing.assert_array_equal(batch.tokens_RC, np.asarray(samples.tokens_BC)[rows_R])
    np.testing.assert_array_equal(batch.mask_RC, np.asarray(samples.mask_BC)[rows_R])
    np.testing.assert_array_equal(
        batch.prompt_tokens_RQ, np.asarray(samples.prompt_tokens_BQ)[rows_R]
    )
    np.testing.assert_array_equal(
        batch.behavior_logprob_RC, np.asarray(samples.behavior_logprob_BC)[rows_R]
    )
    np.testing.assert_array_equal(
        batch.reference_logprob_RC, np.asarray(scores.reference_logprob_BC)[rows_R]
    )
    assert batch.temperature == samples.temperature


def test_credit_uses_the_adjusted_score():
    """`score_B` (with the missing-EOS rule in it) decides, not the raw or the standardised one."""
    samples = random_samples(0)
    scores = random_scores(ALGORITHM, samples, 0)
    other = with_scores(scores, -scores.score_B)
    mixed = scores.replace(score_B=other.score_B)  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_array_equal(
        ALGORITHM.credit(samples, mixed).tokens_RC, ALGORITHM.credit(samples, other).tokens_RC
    )
    assert (
        ALGORITHM.credit(samples, mixed).tokens_RC != ALGORITHM.credit(samples, scores).tokens_RC
    ).any()


def naive_loss(samples, scores, outputs, beta):
    """The definition, prompt by prompt and token by token in float64; `outputs` has a row a
    training row.
    """
    total = 0.0
    for prompt in range(P):
        group = [float(score) for score in scores.score_B[prompt * G : (prompt + 1) * G]]
        if max(group) == min(group):
            continue
        margin = 0.0
        for row, sign, best in ((2 * prompt, 1, max(group)), (2 * prompt + 1, -1, min(group))):
            sample = prompt * G + group.index(best)
            for column in range(C):
                if samples.mask_BC[sample, column]:
                    margin += sign * float(outputs.logprob_RC[row, column])
                    margin -= sign * float(scores.reference_logprob_BC[sample, column])
        total += np.log1p(np.exp(-beta * margin))
    return total


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("beta", [0.03, 0.5])
def test_is_the_float64_loop(seed, beta):
    algorithm = online_dpo(Config(beta=beta))
    samples = random_samples(seed)
    scores = random_scores(algorithm, samples, seed)
    if seed:
        scores = with_scores(scores, scores.score_B.at[G:].set(1.0))
    batch = algorithm.credit(samples, scores)
    outputs = random_outputs(batch, seed)
    loss, _ = algorithm.losses["policy"](outputs, batch)
    np.testing.assert_allclose(loss, naive_loss(samples, scores, outputs, beta), rtol=1e-5)


def test_rows_that_are_no_groups_are_refused():
    samples = random_samples(0)
    scores = random_scores(ALGORITHM, samples, 0)
    samples, scores = jax.tree.map(lambda x: x[:5] if x.ndim else x, (samples, scores))
    with pytest.raises(
        ValueError, match="5 samples are not whole groups of samples_per_prompt = 3"
    ):
        ALGORITHM.credit(samples, scores)
