"""The factor of an update by the effective share of its rows."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops.policy_gradient.learning_rate_scale import (
    LearningRateScale,
    scale_of,
    with_row_share,
)
from rlhf_jax.ops.policy_gradient.row_weights import row_ratio
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Batch, EffectiveShare, Outputs
from tests.ops.policy_gradient import case

FIRST = jnp.int32(0)


def share_of(weights) -> EffectiveShare:
    weights = jnp.asarray(weights, jnp.float32)
    return EffectiveShare(weights.sum(), jnp.square(weights).sum(), jnp.float32(weights.size))


# Weights, share and root of the share, worked out by hand: the last is a row of log ratio 5 among
# four.
@pytest.mark.parametrize(
    ("weights", "share", "root"),
    [
        ((2.5575, 1.155), 0.875108, 0.935472),
        ((8, 1, 1, 0.5), 0.416038, 0.645010),
        ((np.exp(5), 1, 1, 1), 0.260174, 0.510072),
        ((3, 3, 3), 1.0, 1.0),
    ],
)
def test_factors(weights, share, root):
    measured = share_of(weights)
    np.testing.assert_allclose(measured.value(), share, rtol=3e-6)
    for rule, factor in (("sqrt_ess", root), ("linear_ess", share), ("report", 1.0)):
        scale = scale_of(LearningRateScale(rule))
        assert scale is not None
        np.testing.assert_allclose(scale(measured, FIRST), factor, rtol=3e-6)
    half = scale_of(LearningRateScale("linear_ess", base=0.5))
    assert half is not None
    np.testing.assert_allclose(half(measured, FIRST), min(1.0, 2 * share), rtol=3e-6)


def test_a_row_is_weighted_by_its_product():
    """The products of the seven tokens' ratios, which the mask ends; a row of 30 nats is kept
    finite.
    """
    weights = row_ratio(*map(jnp.asarray, (case.POLICY, case.BEHAVIOR, case.MASK)))
    np.testing.assert_allclose(weights, [2.5575, 1.155], rtol=1e-6)
    far = row_ratio(jnp.zeros((1, 3)), jnp.full((1, 3), -10.0), jnp.ones((1, 3), bool))
    np.testing.assert_allclose(far, np.exp(20), rtol=1e-5)
    garbage = jnp.where(case.MASK, jnp.asarray(case.POLICY), jnp.nan)
    np.testing.assert_array_equal(
        row_ratio(garbage, jnp.asarray(case.BEHAVIOR), jnp.asarray(case.MASK)), weights
    )


def test_given_factors_are_those_of_their_updates():
    """Each update has its own, whatever its rows are; a run has as many as updates."""
    config = LearningRateScale("given", factors=(0.5, 0.25, 2.0))
    scale = scale_of(config)
    assert scale is not None
    found = [scale(share_of((8, 1)), jnp.int32(update)) for update in range(3)]
    np.testing.assert_array_equal(found, config.factors)
    config.check(3)
    LearningRateScale("sqrt_ess").check(3)
    with pytest.raises(Refusal, match=r"factors has 3 numbers with rule=given; accepted: 4, one"):
        config.check(4)
    with pytest.raises(
        Refusal, match=r"has 1 numbers with rule=none; accepted: none; or rule=given"
    ):
        LearningRateScale(factors=(1.0,)).check(1)


def test_off_is_nothing_and_wrong_settings_are_refused():
    assert scale_of(LearningRateScale()) is None
    with pytest.raises(
        Refusal, match=r"learning_rate_scale\.rule is 'ess'; accepted: none, report"
    ):
        scale_of(LearningRateScale("ess"))  # pyright: ignore[reportArgumentType]
    mask_RC = jnp.asarray(case.MASK)
    batch = Batch(mask_RC, mask_RC, mask_RC, mask_RC, jnp.float32(1))
    loss = with_row_share(lambda outputs, batch: (jnp.float32(0), {}))
    with pytest.raises(Refusal, match=r"learning_rate_scale needs .* accepted: rule none"):
        loss(Outputs(jnp.zeros(mask_RC.shape)), batch)
