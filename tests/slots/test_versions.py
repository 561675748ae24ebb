"""Tokens of several versions in a row: where keys and values are computed again at each version, the
recorded log-probabilities are those of a forward pass of the version that drew the token.
"""

from functools import partial

import jax
import numpy as np
import pytest

from rlhf_jax import scoring
from rlhf_jax.clock import Clock, Stream
from rlhf_jax.runtime.inflight.one_slice import StreamSampler
from rlhf_jax.runtime.inflight.rows import Rows
from rlhf_jax.types import Params, Samples
from tests import tiny

from .pools import G, P, make_pool, prompts_of

MODEL = tiny.make_model("llama", num_layers=1)
NUM_ROUNDS, S, D, TAU, TEMPERATURE = 5, 8, 2, 2, 0.7


def params_of(version: int) -> Params:
    return tiny.make_params(MODEL, version)


def drawn(rebuild_every: int) -> list[Samples]:
    """The rounds of a run whose trainer makes a version of other params from each."""
    clock = Stream(Clock(NUM_ROUNDS, lag=2, inflight=True), P * G, S, D, TAU, rebuild_every)
    law = (tiny.C, G, TEMPERATURE, [tiny.EOS], tiny.PAD)
    rows, pool = Rows(prompts_of, P * G, *law), make_pool(MODEL, S, D, TEMPERATURE)
    sampler, rounds = StreamSampler(clock, pool, rows), {}
    while not sampler.is_drained:
        trained = clock.rounds_trained(sampler.state)
        for round_index in sampler.draw(params_of(trained), trained):
            rounds[round_index] = rows.samples(round_index)
    return [rounds[index] for index in range(NUM_ROUNDS)]


@pytest.fixture(scope="module")
def error_of_version():
    """The error of each token's log-probability to a forward pass of its version, `[B, C]`."""
    forced = jax.jit(partial(scoring.sample_logprobs, model=MODEL))

    def error(samples: Samples) -> np.ndarray:
        errors = np.zeros(samples.mask_BC.shape)
        for version in np.unique(samples.version_BC[samples.mask_BC]):
            mine = samples.mask_BC & (samples.version_BC == version)
            logprob_BC = np.asarray(forced(params_of(int(version)), samples))
            errors[mine] = np.abs(logprob_BC - samples.behavior_logprob_BC)[mine]
        return errors

    return error


def is_mixed(samples: Samples) -> np.ndarray:
    changes = np.diff(samples.version_BC, axis=1) != 0
    return (changes & samples.mask_BC[:, 1:]).any(axis=1)


def test_a_rebuilt_row_is_drawn_from_the_distribution_of_each_tokens_version(error_of_version):
    rounds = drawn(rebuild_every=1)
    assert np.mean([is_mixed(samples).mean() for samples in rounds]) >= 0.3
    assert max(error_of_version(samples).max() for samples in rounds) < 1e-4


def test_keys_and_values_that_are_kept_give_another_distribution(error_of_version):
    """Of tokens after a change of weights alone: those before it are of one version."""
    before, after = [], []
    for samples in drawn(rebuild_every=0):
        errors = error_of_version(samples)
        is_first = samples.version_BC == samples.version_BC[:, :1]
        before.append(errors[samples.mask_BC & is_first])
        after.append(errors[samples.mask_BC & ~is_first])
    assert np.concatenate(before).max() < 1e-4
    assert np.median(np.concatenate(after)) > 1e-2
