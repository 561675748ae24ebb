"""Penalties and their derivatives are the published ones."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops.policy_gradient.penalties import drift, kl_penalty
from rlhf_jax.ops.policy_gradient.surrogates import Surrogate, surrogate
from tests.ops.policy_gradient import case

# penalty, mean over seven tokens, its gradient: computed in float64, and by TRL 1.16, verl or slime
PUBLISHED = [
    ("k3", 0.241390, (0.027650, 0.071429, -0.035714, -0.012987, -0.285714, 0.012987, 0.102041)),
    ("k3_weighted", 0.432261, (0.038105, 0.247553, -0.023908, -0.013673, -0.039236, 0.014977, 0.751658)),
    ("k3_detached", 0.432261, (0.034286, 0.178571, -0.026786, -0.014286, -0.071429, 0.014286, 0.428571)),
    ("k2", 0.240681, (0.030730, 0.099021, -0.031878, -0.012430, -0.156945, 0.013616, 0.178966)),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("kind", "value", "slopes"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_the_penalties_are_the_published_ones(kind, value, slopes) -> None:
    others = [jnp.asarray(x) for x in (case.BEHAVIOR, case.REFERENCE, case.MASK)]
    found, gradient = jax.value_and_grad(
        lambda logprob: jnp.sum(kl_penalty(kind, logprob, *others)) / 7
    )(jnp.asarray(case.POLICY))
    assert float(found) == pytest.approx(value, abs=1e-6)
    np.testing.assert_allclose(gradient, case.row(*slopes), atol=1e-6)


@pytest.mark.parametrize(
    ("bound", "loss", "slopes"),
    [
        (0.1, 0.114995, (0.000061, 0.000262, -0.107225, -0.157116, -0.000396, 0.078599, 0.300410)),
        (0.2, -0.062147, (-0.177081, 0.000262, -0.107225, -0.157116, -0.000396, 0.078599, 0.300410)),
    ],
)  # fmt: skip
def test_drift_beside_a_gate_is_that_of_prime_rl(bound, loss, slopes) -> None:
    config = Surrogate(gate="total_variation", low=bound, high=bound)
    base, advantage, mask = map(jnp.asarray, (case.BEHAVIOR, case.ADVANTAGE, case.MASK))

    def total(logprob):
        loss_RC, *_ = surrogate(config, logprob, base, advantage, mask)
        return jnp.sum(loss_RC + 1e-3 * drift(logprob, base, mask)) / 7

    found, gradient = jax.value_and_grad(total)(jnp.asarray(case.POLICY))
    assert float(found) == pytest.approx(loss, abs=1e-6)
    np.testing.assert_allclose(gradient, case.row(*slopes), atol=1e-6)


def test_nothing_under_the_mask_reaches_a_penalty_or_its_gradient() -> None:
    spoilt = [
        jnp.asarray(np.where(case.MASK, x, np.nan))
        for x in (case.POLICY, case.BEHAVIOR, case.REFERENCE)
    ]
    mask = jnp.asarray(case.MASK)
    for kind in ("none", "k2", "k3", "k3_weighted", "k3_detached"):
        gradient = jax.grad(
            lambda x, k=kind: jnp.sum(kl_penalty(k, x, *spoilt[1:], mask)) if k != "none" else 0.0
        )(spoilt[0])
        assert np.isfinite(gradient).all()
    assert np.isfinite(jax.grad(lambda x: jnp.sum(drift(x, spoilt[1], mask)))(spoilt[0])).all()
