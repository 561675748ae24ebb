"""GRPO against a float64 loop: three means, the correction for staleness, and what it refuses."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.grpo import Config, grpo
from rlhf_jax.ops.corrections import Correction
from rlhf_jax.types import Outputs
from rlhf_jax.updating import denominator

from . import naive
from .checks import example
from .examples import G, random_samples, random_scores, value_and_gradient, with_scores


def standardized(group):
    return [(score - np.mean(group)) / (np.std(group) + 1e-6) for score in group]


def mean_loss(algorithm, outputs, batch) -> float:
    loss, _ = algorithm.losses["policy"](outputs, batch)
    return float(loss / denominator(batch.mask_RC, algorithm.aggregation))


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant_length"])
def test_is_the_float64_loop(aggregation):
    settings = {"kl_weight": 0.3, "aggregation": aggregation}
    algorithm = grpo(Config(clip_low=0.1, clip_high=0.4, **settings))
    for seed in (0, 1):
        samples, scores, batch, outputs = example(algorithm, seed)
        expected = naive.group_policy_loss(
            samples, scores, outputs, standardized, clip=(0.1, 0.4), **settings
        )
        np.testing.assert_allclose(mean_loss(algorithm, outputs, batch), expected, rtol=1e-4)


def two_prompts():
    """Scores 1, 0, 0 and 5, 5, 5."""
    algorithm = grpo(Config(kl_weight=0.0))
    samples = random_samples(0)
    return (
        algorithm,
        samples,
        algorithm.credit(
            samples,
            with_scores(
                random_scores(algorithm, samples, 0), jnp.array([1.0, 0.0, 0.0, 5.0, 5.0, 5.0])
            ),
        ),
    )


def test_credit_by_hand():
    # Mean 1/3, deviation √2/3: (2/3) / (√2/3) = √2 and −1/√2. The flat group exactly 0, and
    # counted.
    _, samples, batch = two_prompts()
    expected = [np.sqrt(2), -np.sqrt(1 / 2), -np.sqrt(1 / 2), 0.0, 0.0, 0.0]
    np.testing.assert_allclose(naive.advantage_rows(batch, samples), expected, rtol=1e-5)
    assert batch.figures["flat_group_share"].tolist() == [0, 0, 0, 1, 1, 1]


def test_gradient_of_each_mean_on_policy():
    """−A of each token, over the tokens of all, over the completion's own and the completions, over
    the constant length.
    """
    for aggregation in ("token", "sequence", "constant_length"):
        algorithm = grpo(Config(kl_weight=0.0, aggregation=aggregation))
        _, samples, batch = two_prompts()
        outputs = Outputs(batch.behavior_logprob_RC, jnp.zeros_like(batch.behavior_logprob_RC))
        _, gradient = value_and_gradient(algorithm, "policy", outputs, batch)
        mask_RC = np.asarray(samples.mask_BC)
        length_R1 = mask_RC.sum(axis=1, keepdims=True)
        size = {
            "token": mask_RC.sum(),
            "sequence": len(mask_RC) * length_R1,
            "constant_length": mask_RC.size,
        }
        found_RC = gradient.logprob_RC / denominator(batch.mask_RC, algorithm.aggregation)
        np.testing.assert_allclose(
            found_RC, -np.asarray(batch.advantage_RC) / size[aggregation], rtol=1e-5
        )


@pytest.mark.parametrize(
    "correction",
    [
        Correction("proximal", "none"),
        Correction("proximal", "truncate", cap=1.3),
        Correction("proximal", "mask", floor=0.5, cap=3.0),
    ],
    ids=lambda c: c.correction,
)
def test_corrections_are_the_float64_loop(correction):
    algorithm = grpo(Config(kl_weight=0.1, correction=correction))
    assert algorithm.needs == {"reference", "proximal"}
    samples, scores, batch, outputs = example(algorithm)
    settings = {"aggregation": "sequence", "kl_weight": 0.1, "correction": correction}
    expected = naive.group_policy_loss(samples, scores, outputs, standardized, **settings)
    np.testing.assert_allclose(mean_loss(algorithm, outputs, batch), expected, rtol=1e-4)


def test_the_second_moment_chooses_tokens_and_does_not_clip():
    """The two tokens whose behaviour was furthest from the proximal policy are left out; ratios to
    the behaviour are free.
    """
    algorithm = grpo(
        Config(kl_weight=0.0, aggregation="token", correction=Correction("auto", "second_moment"))
    )
    samples, scores, _, _ = example(algorithm)
    stale_BC = jnp.zeros_like(samples.behavior_logprob_BC).at[0, 3].set(1.5).at[3, 0].set(-2.0)
    scores = replace(scores, proximal_logprob_BC=samples.behavior_logprob_BC + stale_BC)
    batch = algorithm.credit(samples, scores)
    kept_BC = np.asarray(samples.mask_BC & (stale_BC == 0))
    np.testing.assert_array_equal(batch.staleness_RC, kept_BC)
    outputs = Outputs(
        batch.behavior_logprob_RC + np.log(3.0), jnp.zeros_like(batch.behavior_logprob_RC)
    )
    loss, metrics = algorithm.losses["policy"](outputs, batch)
    np.testing.assert_allclose(loss, -3 * np.asarray(batch.advantage_RC)[kept_BC].sum(), rtol=1e-4)
    assert metrics["clip_share"].value() == 0.0
    np.testing.assert_allclose(
        metrics["effective_sample_share"].value(), kept_BC.sum() / samples.mask_BC.sum(), rtol=1e-5
    )


def test_needs():
    assert grpo(Config()).needs == {"reference"}
    assert grpo(Config(kl_weight=0.0)).needs == frozenset()
    assert grpo(Config(kl_weight=0.0, correction=Correction("proximal", "none"))).needs == {
        "proximal"
    }


def test_what_is_refused():
    with pytest.raises(
        ValueError, match=r"grpo\.advantage is 'rank'; accepted: standardized, bessel, centered"
    ):
        grpo(Config(advantage="rank"))
    with pytest.raises(
        ValueError, match=r"grpo\.aggregation is 'mean'; accepted: token, sequence, constant_length"
    ):
        grpo(Config(aggregation="mean"))
    algorithm, samples = grpo(Config()), random_samples(0, num_prompts=2 * G, samples_per_prompt=1)
    with pytest.raises(ValueError, match="samples_per_prompt is 1; grpo needs at least 2"):
        algorithm.credit(samples, random_scores(algorithm, samples, 0))
