"""CoPG: its loss by a float64 loop, its fixed point, and RLOO as its special case."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.copg import Config, copg
from rlhf_jax.algorithms.rloo import Config as RlooConfig
from rlhf_jax.algorithms.rloo import rloo
from rlhf_jax.types import Outputs

from . import naive
from .checks import example
from .examples import G, random_outputs, random_samples, random_scores, value_and_gradient

KL_WEIGHT = 0.3
ALGORITHM = copg(Config(kl_weight=KL_WEIGHT))


def gradient_of(outputs, batch, algorithm=ALGORITHM) -> np.ndarray:
    return np.asarray(value_and_gradient(algorithm, "policy", outputs, batch)[1].logprob_RC)


@pytest.mark.parametrize("seed", [0, 1])
def test_is_the_float64_loop(seed):
    """Loss and gradient; the bracket is a constant of the gradient."""
    samples, scores, batch, outputs = example(ALGORITHM, seed)
    policy, _, _ = naive.token_laws(samples, scores, outputs)
    reference = naive.rows_of_tokens(scores.reference_logprob_BC, samples)
    rewards = [
        float(score) - KL_WEIGHT * (now - frozen).sum()
        for score, now, frozen in zip(scores.score_B, policy, reference, strict=True)
    ]
    contrast = [c for group in naive.groups(rewards, samples) for c in naive.leave_one_out(group)]
    loss, metrics = ALGORITHM.losses["policy"](outputs, batch)
    expected = -sum(c * row.sum() for c, row in zip(contrast, policy, strict=True))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["contrast"].value(), np.mean(np.abs(contrast)), rtol=1e-5)
    expected_RC = np.where(samples.mask_BC, -np.array(contrast)[:, None], 0)
    np.testing.assert_allclose(gradient_of(outputs, batch), expected_RC, rtol=1e-4, atol=1e-5)


def test_its_fixed_point_does_not_depend_on_who_drew_the_samples():
    """Where S = S_ref + score / kl_weight + a constant of the prompt, no contrast is left, for any
    samples: the solution of the KL-regularised problem, log π = log π_ref + score / kl_weight − log
    Z(prompt).
    """
    for seed in (0, 1, 2):
        samples, scores, batch, _ = example(ALGORITHM, seed)
        length_B = jnp.sum(samples.mask_BC, axis=1, keepdims=True)
        of_prompt_B = jnp.repeat(jnp.array([-5.0, 11.0]), G)
        change_B1 = (scores.score_B / KL_WEIGHT + of_prompt_B)[:, None] / length_B
        assert scores.reference_logprob_BC is not None
        solved = Outputs(
            jnp.where(samples.mask_BC, scores.reference_logprob_BC + change_B1, 0.0), 0 * change_B1
        )
        solved = replace(solved, entropy_RC=jnp.zeros_like(solved.logprob_RC))
        np.testing.assert_allclose(gradient_of(solved, batch), 0.0, atol=2e-5)
        # A nat more of one completion: its contrast is −kl_weight, the others' share + kl_weight /
        # 2 each.
        moved = replace(solved, logprob_RC=solved.logprob_RC.at[0, 0].add(1.0))
        expected = np.array([KL_WEIGHT, *([-KL_WEIGHT / 2] * (G - 1)), *([0.0] * G)])
        np.testing.assert_allclose(gradient_of(moved, batch)[:, 0], expected, atol=2e-5)


def test_with_two_samples_it_descends_a_square():
    """The sum over a pair has the gradient of (R_1 − R_2)² / (2 kl_weight), R a function of the
    policy.
    """
    samples = random_samples(0, samples_per_prompt=2)
    scores = random_scores(ALGORITHM, samples, 0)
    batch = ALGORITHM.credit(samples, scores)
    outputs = random_outputs(batch, 0)

    def squares(logprob_BC):
        moved_B = jnp.sum(
            jnp.where(samples.mask_BC, logprob_BC - scores.reference_logprob_BC, 0.0), axis=1
        )
        reward_P2 = (scores.score_B - KL_WEIGHT * moved_B).reshape(-1, 2)
        return jnp.sum(jnp.square(reward_P2[:, 0] - reward_P2[:, 1])) / (2 * KL_WEIGHT)

    np.testing.assert_allclose(
        gradient_of(outputs, batch), jax.grad(squares)(outputs.logprob_RC), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kl_weight", [0.0, KL_WEIGHT])
def test_on_policy_it_is_rloo(kl_weight):
    """At the samples' own log-probabilities the gradient is RLOO's; at KL weight 0 it is vanilla
    RLOO's anywhere.
    """
    contrastive, proximal = copg(Config(kl_weight=kl_weight)), rloo(RlooConfig(kl_weight=kl_weight))
    samples, scores, batch, outputs = example(contrastive)
    on_policy = replace(outputs, logprob_RC=samples.behavior_logprob_BC)
    expected_RC = gradient_of(on_policy, proximal.credit(samples, scores), proximal)
    np.testing.assert_allclose(
        gradient_of(on_policy, batch, contrastive), expected_RC, rtol=1e-4, atol=1e-5
    )
    same_anywhere = np.allclose(
        gradient_of(outputs, batch, contrastive), expected_RC, rtol=1e-4, atol=1e-5
    )
    assert same_anywhere == (kl_weight == 0.0)


def test_one_sample_a_prompt_is_refused():
    samples = random_samples(0, samples_per_prompt=1)
    with pytest.raises(ValueError, match="samples_per_prompt is 1; copg needs at least 2"):
        ALGORITHM.credit(samples, random_scores(ALGORITHM, samples, 0))
