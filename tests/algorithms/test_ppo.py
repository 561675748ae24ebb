"""PPO: where the score stands, what is whitened over what, and both losses against float64 loops."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.ppo import Config, ppo
from rlhf_jax.ops.corrections import Correction

from . import naive
from .checks import example
from .examples import C, G, P, random_samples, random_scores, value_and_gradient, with_scores

BARE = Config(kl_weight=0.0, gamma=1.0, gae_lambda=0.0)


def zero_values(scores):
    return replace(scores, value_BC=jnp.zeros_like(scores.value_BC))


def test_the_score_stands_at_the_last_token():
    """With no values and λ = 0 a token's return is its reward: the score once a row, at its EOS or
    where it was cut.
    """
    algorithm = ppo(BARE)
    samples, scores, _, _ = example(algorithm)
    assert not samples.finished_B[0]
    assert samples.finished_B[1]
    returns_BC = np.asarray(algorithm.credit(samples, zero_values(scores)).return_RC)
    last_B = np.asarray(samples.mask_BC).sum(axis=1) - 1
    expected_BC = np.zeros((P * G, C), np.float32)
    expected_BC[np.arange(P * G), last_B] = scores.score_B
    np.testing.assert_array_equal(returns_BC, expected_BC)


def test_with_both_at_one_every_token_is_owed_the_score():
    algorithm = ppo(replace(BARE, gae_lambda=1.0))
    samples, scores, batch, _ = example(algorithm)
    expected_BC = np.where(samples.mask_BC, np.asarray(scores.score_B)[:, None], 0)
    np.testing.assert_allclose(batch.return_RC, expected_BC, rtol=1e-5, atol=1e-5)


def test_the_penalty_is_of_each_token():
    """log π' − log π_ref = ½ at every token and KL weight 0.1: a reward of −0.05 each, and no
    score.
    """
    algorithm = ppo(replace(BARE, kl_weight=0.1))
    samples, scores, _, _ = example(algorithm)
    scores = with_scores(zero_values(scores), jnp.zeros(P * G))
    reference_BC = jnp.where(samples.mask_BC, samples.behavior_logprob_BC - 0.5, 0.0)
    batch = algorithm.credit(samples, replace(scores, reference_logprob_BC=reference_BC))
    np.testing.assert_allclose(batch.return_RC, np.where(samples.mask_BC, -0.05, 0.0), atol=1e-6)


def naive_credit(samples, scores, config: Config, base_BC):
    """Advantages, whitened over every token of the round, and returns: a list a row."""
    base, reference = (
        naive.rows_of_tokens(base_BC, samples),
        naive.rows_of_tokens(scores.reference_logprob_BC, samples),
    )
    values, advantages = naive.rows_of_tokens(scores.value_BC, samples), []
    for row, value in enumerate(values):
        reward = -config.kl_weight * (base[row] - reference[row])
        reward[-1] += float(scores.score_B[row])
        error = reward + config.gamma * np.append(value[1:], 0.0) - value
        advantages.append(
            [
                sum(
                    (config.gamma * config.gae_lambda) ** (s - t) * error[s]
                    for s in range(t, len(error))
                )
                for t in range(len(error))
            ]
        )
    flat = np.concatenate(advantages)
    whitened = [(np.array(row) - flat.mean()) / flat.std() for row in advantages]
    return whitened, [np.array(row) + value for row, value in zip(advantages, values, strict=True)]


@pytest.mark.parametrize(
    "correction",
    [Correction("behavior", "none"), Correction("proximal", "truncate", cap=1.3)],
    ids=lambda c: c.ratio_to,
)
@pytest.mark.parametrize("seed", [0, 1])
def test_is_the_float64_loop(seed, correction):
    config = Config(
        kl_weight=0.3, clip=0.3, value_clip=0.4, gamma=0.97, gae_lambda=0.9, correction=correction
    )
    algorithm = ppo(config)
    samples, scores, batch, outputs = example(algorithm, seed)
    policy, behavior, proximal = naive.token_laws(samples, scores, outputs)
    to_proximal = correction.ratio_to == "proximal"
    base = proximal if to_proximal else behavior
    whitened, returns = naive_credit(
        samples,
        scores,
        config,
        scores.proximal_logprob_BC if to_proximal else samples.behavior_logprob_BC,
    )
    values, first = (naive.rows_of_tokens(a, samples) for a in (outputs.value_RC, scores.value_BC))
    policy_sum = critic_sum = 0.0
    for row in range(P * G):
        for t in range(len(policy[row])):
            stale = naive.weight(proximal[row][t] - behavior[row][t], correction)
            ratio = np.exp(policy[row][t] - base[row][t])
            policy_sum += stale * naive.clipped(ratio, whitened[row][t], 0.3, 0.3)
            held = min(max(values[row][t], first[row][t] - 0.4), first[row][t] + 0.4)
            critic_sum += 0.5 * max(
                (values[row][t] - returns[row][t]) ** 2, (held - returns[row][t]) ** 2
            )
    for row, rows in enumerate((whitened, returns)):
        found = naive.rows_of_tokens((batch.advantage_RC, batch.return_RC)[row], samples)
        np.testing.assert_allclose(
            np.concatenate(found), np.concatenate(rows), rtol=1e-4, atol=1e-5
        )
    np.testing.assert_allclose(algorithm.losses["policy"](outputs, batch)[0], policy_sum, rtol=1e-4)
    np.testing.assert_allclose(algorithm.losses["critic"](outputs, batch)[0], critic_sum, rtol=1e-4)


def test_whitening_is_over_the_round():
    """Mean 0 and deviation 1 of all tokens together, not of a prompt's or a completion's; padding
    has no say.
    """
    algorithm = ppo(Config())
    samples, scores, batch, _ = example(algorithm)
    advantage_BC = np.asarray(batch.advantage_RC)
    tokens = advantage_BC[np.asarray(samples.mask_BC)]
    np.testing.assert_allclose([tokens.mean(), tokens.std()], [0.0, 1.0], atol=1e-5)
    halves = [
        advantage_BC[:G][np.asarray(samples.mask_BC)[:G]],
        advantage_BC[G:][np.asarray(samples.mask_BC)[G:]],
    ]
    assert all(abs(half.mean()) > 0.01 for half in halves)
    other = with_scores(
        scores, scores.score_B.at[G:].add(9.0)
    )  # the second prompt's scores move the first one's rows
    assert not np.allclose(
        algorithm.credit(samples, other).advantage_RC[:G], advantage_BC[:G], atol=1e-2
    )


def test_one_sample_a_prompt_is_enough():
    algorithm = ppo(Config())
    samples = random_samples(0, num_prompts=3, samples_per_prompt=1)
    batch = algorithm.credit(samples, random_scores(algorithm, samples, 0))
    assert batch.tokens_RC.shape == (3, C)


def test_each_role_has_its_own_gradient():
    """The policy's loss does not reach values, nor the critic's log-probabilities; a value is
    pulled to its return.
    """
    algorithm = ppo(Config(value_clip=1e3))
    _, _, batch, outputs = example(algorithm)
    _, of_policy = value_and_gradient(algorithm, "policy", outputs, batch)
    (_, metrics), of_critic = value_and_gradient(algorithm, "critic", outputs, batch)
    assert not np.any(of_policy.value_RC)
    assert not np.any(of_critic.logprob_RC)
    error_RC = np.where(
        batch.mask_RC, np.asarray(outputs.value_RC) - np.asarray(batch.return_RC), 0
    )
    np.testing.assert_allclose(of_critic.value_RC, error_RC, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        metrics["squared_error"].value(), (error_RC**2).sum() / batch.mask_RC.sum(), rtol=1e-5
    )
    assert metrics["clip_share"].value() == 0.0


def test_needs():
    assert ppo(Config()).needs == {"reference", "value"}
    assert ppo(Config(correction=Correction("proximal"))).needs == {
        "reference",
        "value",
        "proximal",
    }
