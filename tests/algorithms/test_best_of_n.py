"""Best of n: which rows it learns, and from what."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.best_of_n import Config, best_of_n
from rlhf_jax.updating import denominator

from . import naive
from .checks import example
from .examples import G, P, random_samples, random_scores, value_and_gradient, with_scores

ALGORITHM = best_of_n(Config())


def test_the_best_of_each_prompt_and_the_first_of_equals():
    samples = random_samples(0)
    scores = with_scores(
        random_scores(ALGORITHM, samples, 0), jnp.array([-3.0, -1.0, -2.0, 0.5, 4.0, 4.0])
    )
    batch = ALGORITHM.credit(samples, scores)
    rows_R = np.array([1, 4])
    np.testing.assert_array_equal(batch.tokens_RC, np.asarray(samples.tokens_BC)[rows_R])
    np.testing.assert_array_equal(batch.mask_RC, np.asarray(samples.mask_BC)[rows_R])
    np.testing.assert_array_equal(
        batch.prompt_tokens_RQ, np.asarray(samples.prompt_tokens_BQ)[rows_R]
    )
    np.testing.assert_array_equal(
        batch.behavior_logprob_RC, np.asarray(samples.behavior_logprob_BC)[rows_R]
    )
    assert batch.reference_logprob_RC is None


@pytest.mark.parametrize("seed", [0, 1])
def test_is_the_float64_loop(seed):
    """The summed log-probability of a completion, not its mean over tokens, over the number of
    prompts.
    """
    samples, scores, batch, outputs = example(ALGORITHM, seed)
    total = 0.0
    for prompt, group in enumerate(naive.groups(scores.score_B, samples)):
        length = int(samples.mask_BC[prompt * G + int(np.argmax(group))].sum())
        total -= float(np.float64(outputs.logprob_RC[prompt, :length]).sum())
    (loss, _), gradient = value_and_gradient(ALGORITHM, "policy", outputs, batch)
    np.testing.assert_allclose(
        loss / denominator(batch.mask_RC, ALGORITHM.aggregation), total / P, rtol=1e-5
    )
    np.testing.assert_array_equal(gradient.logprob_RC, -np.asarray(batch.mask_RC, np.float32))


def test_one_sample_a_prompt_is_refused():
    samples = random_samples(0, samples_per_prompt=1)
    with pytest.raises(ValueError, match="samples_per_prompt is 1; best_of_n needs at least 2"):
        ALGORITHM.credit(samples, random_scores(ALGORITHM, samples, 0))
