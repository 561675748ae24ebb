"""Metrics of a scored round."""

import numpy as np

from rlhf_jax.algorithms import rloo
from rlhf_jax.ops.corrections import Correction
from rlhf_jax.stages.common.round_metrics import shares, signs
from tests.algorithms.checks import example


def found(correction: Correction) -> tuple[dict, np.ndarray]:
    """Figures of a round of RLOO, and |log ξ − log μ| of its tokens."""
    algorithm = rloo.rloo(rloo.Config(correction=correction))
    samples, scores, batch, _ = example(algorithm)
    figures = shares(scores, batch, samples.mask_BC, samples_per_prompt=samples.samples_per_prompt)
    if scores.proximal_logprob_BC is None:
        return figures, np.zeros(0)
    change_BC = np.abs(np.asarray(scores.proximal_logprob_BC - samples.behavior_logprob_BC))
    return figures, change_BC[np.asarray(samples.mask_BC)]


def test_the_sign_of_a_sample_is_that_of_its_mean_advantage():
    """Rows are samples 2, 0 and 3 of four; the masked token of row 0 would turn its sign."""
    advantage_RC = np.array([[1.0, -9.0], [-1.0, 0.5], [2.0, -2.0]], np.float32)
    mask_RC = np.array([[True, False], [True, True], [True, True]])
    found_B = signs(advantage_RC, mask_RC, np.array([2, 0, 3]), num_samples=4)
    assert found_B.tolist() == [-1, 0, 1, 0]


def test_staleness_is_told_where_proximal_log_probabilities_are_computed():
    figures, change_N = found(Correction("proximal", "truncate", "sequence"))
    np.testing.assert_allclose(
        figures["sampler_trainer_logprob_diff_mean"], change_N.mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        figures["sampler_trainer_logprob_diff_max"], change_N.max(), rtol=1e-5
    )
    assert 0 < figures["staleness_ess_share_row"] < 1
    figures, _ = found(Correction("behavior", "none", "sequence"))
    assert not [name for name in figures if "staleness" in name or "sampler" in name]
