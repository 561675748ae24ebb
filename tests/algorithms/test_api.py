"""What algorithms share: rows out of samples, and drift metrics by hand."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.api import drift_metrics, make_batch
from rlhf_jax.algorithms.online_dpo import Config, online_dpo
from rlhf_jax.types import Outputs

from .examples import random_samples, random_scores

SAMPLES = random_samples(0)
SCORES = random_scores(online_dpo(Config()), SAMPLES, 0)


def test_all_rows_without_a_choice_and_chosen_rows_with_one():
    whole, chosen = make_batch(SAMPLES, SCORES), make_batch(SAMPLES, SCORES, jnp.array([4, 1, 1]))
    for batch, rows in ((whole, np.arange(6)), (chosen, np.array([4, 1, 1]))):
        np.testing.assert_array_equal(batch.tokens_RC, np.asarray(SAMPLES.tokens_BC)[rows])
        np.testing.assert_array_equal(batch.mask_RC, np.asarray(SAMPLES.mask_BC)[rows])
        np.testing.assert_array_equal(
            batch.prompt_mask_RQ, np.asarray(SAMPLES.prompt_mask_BQ)[rows]
        )
        np.testing.assert_array_equal(
            batch.reference_logprob_RC, np.asarray(SCORES.reference_logprob_BC)[rows]
        )
        assert batch.temperature == SAMPLES.temperature
        assert batch.proximal_logprob_RC is None
        assert batch.value_RC is None


def test_further_fields_are_taken_as_they_are():
    assert make_batch(SAMPLES, SCORES, weight_R=jnp.arange(6.0)).weight_R[5] == 5.0
    with pytest.raises(TypeError, match="no_such_field"):
        make_batch(SAMPLES, SCORES, no_such_field=jnp.zeros(6))


def two_rows():
    """Masked: row 0 two tokens, row 1 one."""
    mask_RC = jnp.array([[True, True], [True, False]])
    batch = make_batch(SAMPLES, SCORES, jnp.array([0, 1]))
    batch = replace(
        batch,
        mask_RC=mask_RC,
        behavior_logprob_RC=jnp.array([[-1.0, -2.0], [-3.0, -50.0]]),
        reference_logprob_RC=jnp.log(jnp.array([[0.5, 0.25], [0.5, 0.125]])),
    )
    return batch, Outputs(
        jnp.log(jnp.array([[0.25, 0.25], [0.25, 0.99]])), jnp.array([[1.0, 0.5], [0.3, 99.0]])
    )


def test_drift_metrics_by_hand():
    # log π = −ln 4 everywhere. To the behaviour law: |−1.386 + 1| = 0.386, |−1.386 + 2| = 0.614,
    # |−1.386 + 3| = 1.614. To the reference: r = 2, 1 | 2. k1 = −ln 2, 0 | −ln 2; k2 = ½ ln² 2, 0 |
    # the same; k3 = (2 − 1) − ln 2, 0 | the same. Two rows: each row's sum is that of one such
    # token, so the means over completions are those of one token.
    batch, outputs = two_rows()
    figures = {name: metric.value() for name, metric in drift_metrics(outputs, batch).items()}
    changes = np.abs(-np.log(4) + np.array([1, 2, 3]))
    expected = {
        "entropy": 1.8 / 3,
        "completion_length": 1.5,
        "behavior_kl_k1": -np.log(2),
        "behavior_kl_k2": 0.5 * np.log(2) ** 2,
        "behavior_kl_k3": 1 - np.log(2),
        "logprob_change": changes.mean(),
        "logprob_change_max": changes.max(),
    }
    assert figures == pytest.approx(expected, rel=1e-5)


def test_what_a_batch_does_not_have_is_not_reported():
    batch, outputs = two_rows()
    batch = replace(batch, reference_logprob_RC=None, behavior_logprob_RC=None)
    assert set(drift_metrics(outputs, batch)) == {"entropy", "completion_length"}
