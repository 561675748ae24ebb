"""RLOO by hand and against a float64 loop, with its ratio to either law."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.rloo import Config, rloo
from rlhf_jax.ops.corrections import Correction
from rlhf_jax.types import Outputs

from . import naive
from .checks import example
from .examples import random_outputs, random_samples, random_scores, value_and_gradient, with_scores

CORRECTIONS = [
    Correction("behavior", "none", "sequence"),
    Correction("proximal", "none", "sequence"),
    Correction("proximal", "truncate", "sequence", cap=1.3),
    Correction("proximal", "mask", "sequence", floor=0.1, cap=20.0),
]


def naive_loss(
    samples, scores, outputs, correction: Correction, kl_weight: float, clip: float
) -> float:
    """The sum over completions."""
    policy, behavior, proximal = naive.token_laws(samples, scores, outputs)
    base = behavior if correction.ratio_to == "behavior" else proximal
    reference = naive.rows_of_tokens(scores.reference_logprob_BC, samples)
    rewards = [
        float(score) - kl_weight * (drawn - frozen).sum()
        for score, drawn, frozen in zip(scores.score_B, base, reference, strict=True)
    ]
    advantage = [a for group in naive.groups(rewards, samples) for a in naive.leave_one_out(group)]
    total = 0.0
    for i in range(len(advantage)):
        stale = naive.weight((proximal[i] - behavior[i]).sum(), correction)
        total += stale * naive.clipped(
            np.exp((policy[i] - base[i]).sum()), advantage[i], clip, clip
        )
    return total


@pytest.mark.parametrize("correction", CORRECTIONS, ids=lambda c: f"{c.ratio_to}-{c.correction}")
def test_is_the_float64_loop(correction):
    algorithm = rloo(Config(kl_weight=0.3, clip=0.4, correction=correction))
    assert algorithm.needs == {
        "reference",
        *(("proximal",) if correction.ratio_to == "proximal" else ()),
    }
    for seed in (0, 1):
        samples, scores, batch, outputs = example(algorithm, seed)
        loss, _ = algorithm.losses["policy"](outputs, batch)
        np.testing.assert_allclose(
            loss, naive_loss(samples, scores, outputs, correction, 0.3, 0.4), rtol=1e-4
        )


def test_three_of_eight_are_correct():
    """+0.7143 and −0.4286: on-policy, the gradient of every token of a completion is minus that."""
    algorithm = rloo(Config(kl_weight=0.0))
    samples = random_samples(0, num_prompts=1, samples_per_prompt=8)
    score_B = jnp.array([1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    batch = algorithm.credit(samples, with_scores(random_scores(algorithm, samples, 0), score_B))
    np.testing.assert_allclose(
        naive.advantage_rows(batch, samples), np.where(score_B, 0.7143, -0.4286), atol=5e-5
    )
    outputs = Outputs(batch.behavior_logprob_RC, jnp.zeros_like(batch.behavior_logprob_RC))
    _, gradient = value_and_gradient(algorithm, "policy", outputs, batch)
    np.testing.assert_allclose(gradient.logprob_RC, -np.asarray(batch.advantage_RC), rtol=1e-6)


def test_the_penalty_for_distance_is_in_the_score():
    """Behaviour and reference differ by ½ at every token: a completion loses ½ · 0.1 for each,
    before the baseline.
    """
    algorithm, samples = rloo(Config(kl_weight=0.1)), random_samples(0)
    scores = with_scores(random_scores(algorithm, samples, 0), jnp.zeros(6))
    scores = scores.replace(  # pyright: ignore[reportAttributeAccessIssue]
        reference_logprob_BC=jnp.where(samples.mask_BC, samples.behavior_logprob_BC - 0.5, 0.0)
    )
    rewards = -0.05 * np.asarray(samples.mask_BC).sum(axis=1)
    expected = [a for group in naive.groups(rewards, samples) for a in naive.leave_one_out(group)]
    np.testing.assert_allclose(
        naive.advantage_rows(algorithm.credit(samples, scores), samples), expected, atol=1e-6
    )


def test_one_ratio_a_completion():
    """Tokens that move in opposite ways leave the ratio at 1; the metric is of completions, and so
    is the share clipped.
    """
    algorithm = rloo(Config(kl_weight=0.0))
    _, _, batch, _ = example(algorithm)
    outputs = random_outputs(batch, 0)
    first_RC = batch.behavior_logprob_RC.at[0, 0].add(3.0).at[0, 1].add(-3.0).at[1, 0].add(1.0)
    _, metrics = algorithm.losses["policy"](Outputs(first_RC, outputs.entropy_RC), batch)
    np.testing.assert_allclose(metrics["ratio"].value(), (5 + np.e) / 6, rtol=1e-5)
    np.testing.assert_allclose(metrics["ratio_max"].value(), np.e, rtol=1e-5)
    clipped = float(batch.advantage_RC[1, 0]) > 0
    np.testing.assert_allclose(metrics["clip_share"].value(), clipped / 6, rtol=1e-5)


@pytest.mark.parametrize(
    ("correction", "found"),
    [
        (Correction("behavior", "none"), "'none' at level 'token'"),
        (
            Correction("behavior", "second_moment", "sequence"),
            "'second_moment' at level 'sequence'",
        ),
        (Correction("proximal", "truncate", "token"), "'truncate' at level 'token'"),
    ],
)
def test_corrections_of_tokens_are_refused(correction, found):
    with pytest.raises(
        ValueError,
        match=f"rloo has one ratio a completion; its correction is {found}, accepted: level",
    ):
        rloo(Config(correction=correction))


def test_one_sample_a_prompt_is_refused():
    algorithm, samples = rloo(Config()), random_samples(0, samples_per_prompt=1)
    with pytest.raises(ValueError, match="samples_per_prompt is 1; rloo needs at least 2"):
        algorithm.credit(samples, random_scores(algorithm, samples, 0))
