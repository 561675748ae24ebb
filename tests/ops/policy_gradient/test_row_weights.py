"""Figures of staleness are those of a float64 loop on seven tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops.policy_gradient.row_weights import staleness_figures
from tests.ops.policy_gradient import case


def figures(proximal, behavior) -> dict[str, float]:
    with jax.enable_x64(True):
        found = staleness_figures(*map(jnp.asarray, (proximal, behavior, case.MASK)))
        return {name: float(value) for name, value in found.items()}


def test_figures_are_those_of_the_loop():
    """The ratios of the tokens are 1.1, 2.1, 0.875, 1 and 0.5, 1, 2.2: those of the rows 2.02125
    and 1.1.
    """
    ratios, rows = np.array([1.1, 2.1, 0.875, 1.0, 0.5, 1.0, 2.2]), np.array([2.02125, 1.1])
    log = np.log(ratios)
    expected = {
        "sampler_trainer_logprob_diff_mean": np.abs(log).mean(),
        "sampler_trainer_logprob_diff_max": np.log(2.2),
        "staleness_kl_k1": -log.mean(),
        "staleness_kl_k2": (log**2).mean() / 2,
        "staleness_kl_k3": (ratios - 1 - log).mean(),
        "staleness_chi2_token": (ratios**2).mean() - 1,
        "staleness_chi2_row": (rows**2).mean() - 1,
        "staleness_ess_share_token": ratios.sum() ** 2 / (7 * (ratios**2).sum()),
        "staleness_ess_share_row": rows.sum() ** 2 / (2 * (rows**2).sum()),
    }
    found = figures(case.PROXIMAL, case.BEHAVIOR)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, err_msg=name)


def test_samples_of_the_trainer_itself_have_no_staleness():
    """Whatever is under the mask."""
    garbage = np.where(case.MASK, case.BEHAVIOR, np.nan)
    for name, value in figures(case.BEHAVIOR, garbage).items():
        assert value == float("ess_share" in name), name
