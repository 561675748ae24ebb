"""Online IPO by hand and against a float64 loop; its pairs are those of Online DPO."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import online_dpo
from rlhf_jax.algorithms.online_ipo import Config, online_ipo
from rlhf_jax.types import Outputs

from . import naive
from .checks import assert_trees_equal, example
from .examples import (
    G,
    P,
    random_outputs,
    random_samples,
    random_scores,
    value_and_gradient,
    with_scores,
)
from .test_online_dpo import hand_batch

BETA = 0.25
ALGORITHM = online_ipo(Config(beta=BETA))


def test_loss_and_gradient_by_hand():
    # S_c = −3, its reference −8: +5. S_r = −6, its reference −9: +3. Margin 2 where 1 / (2β) = 2 is
    # asked for: nothing to do. With −4 for the chosen reference: margin −2, loss (−2 − 2)² = 16,
    # derivative 2 · (−4) a chosen token.
    outputs = Outputs(jnp.array([[-1.0, -2.0, 5.0], [-1.0, -1.0, -4.0]]), jnp.zeros((2, 3)))
    for chosen, loss, slope in ((-8.0, 0.0, 0.0), (-4.0, 16.0, -8.0)):
        batch = hand_batch([[chosen, 0.0, 9.0], [-9.0, 0.0, 0.0]])
        (found, metrics), gradient = value_and_gradient(ALGORITHM, "policy", outputs, batch)
        np.testing.assert_allclose(found, loss, atol=1e-5)
        expected = [[slope, slope, 0.0], [-slope, -slope, -slope]]
        np.testing.assert_allclose(gradient.logprob_RC, expected, atol=1e-5)
    assert metrics["margin"].value() == pytest.approx(-2.0)


@pytest.mark.parametrize("seed", [0, 1])
def test_is_the_float64_loop(seed):
    samples = random_samples(seed)
    scores = random_scores(ALGORITHM, samples, seed)
    if seed:
        scores = with_scores(scores, scores.score_B.at[G:].set(1.0))
    batch = ALGORITHM.credit(samples, scores)
    outputs = random_outputs(batch, seed)
    reference, total = naive.rows_of_tokens(scores.reference_logprob_BC, samples), 0.0
    for prompt, group in enumerate(naive.groups(scores.score_B, samples)):
        if max(group) == min(group):
            continue
        margin = 0.0
        for row, sign, best in ((2 * prompt, 1, max(group)), (2 * prompt + 1, -1, min(group))):
            of_sample = reference[prompt * G + group.index(best)]
            policy = np.float64(outputs.logprob_RC[row, : len(of_sample)])
            margin += sign * (policy.sum() - of_sample.sum())
        total += (margin - 1 / (2 * BETA)) ** 2
    np.testing.assert_allclose(ALGORITHM.losses["policy"](outputs, batch)[0], total, rtol=1e-4)


def test_its_pairs_are_those_of_online_dpo():
    samples, scores, batch, _ = example(ALGORITHM)
    assert_trees_equal(batch, online_dpo.online_dpo(online_dpo.Config()).credit(samples, scores))
    assert (ALGORITHM.unit, ALGORITHM.aggregation, ALGORITHM.rows_per_prompt(G) * P) == (
        2,
        "pair",
        2 * P,
    )


def test_one_sample_a_prompt_is_refused():
    samples = random_samples(0, samples_per_prompt=1)
    with pytest.raises(ValueError, match="samples_per_prompt is 1"):
        ALGORITHM.credit(samples, random_scores(ALGORITHM, samples, 0))
