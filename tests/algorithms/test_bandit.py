"""Corrections for staleness on a bandit whose expectations are exact sums over its words.

The behaviour is four steps of the policy gradient behind the policy. E over the behaviour's draws
of the surrogate's gradient is compared with the gradient of the true expected reward.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.common.surrogate import log_ratio, token_surrogate
from rlhf_jax.ops.corrections import Correction, staleness_weight
from rlhf_jax.types import Batch, Outputs

from .examples import V

LAG, RATE = 4, 2.0
REWARD_V = jnp.array(np.random.default_rng(0).normal(size=V), jnp.float32)
ANY_RATIO = 1e3  # a clip that never binds


def expected_reward(logits_V):
    return jnp.sum(jax.nn.softmax(logits_V) * REWARD_V)


@cache
def two_laws():
    """Logits of the behaviour, and of the policy that is `LAG` steps of ascent ahead of it."""
    first_V = jnp.array(np.random.default_rng(1).normal(size=V), jnp.float32)
    logits_V = first_V
    for _ in range(LAG):
        logits_V += RATE * jax.grad(expected_reward)(logits_V)
    return first_V, logits_V


def surrogate_gradient(correction: Correction, clip: float = ANY_RATIO) -> np.ndarray:
    """The exact expectation of the ascent's direction in the logits: every word is a row, weighted
    by the behaviour.
    """
    behavior_V, policy_V = map(jax.nn.log_softmax, two_laws())
    mask_RC = jnp.ones((V, 1), bool)
    batch = Batch(
        prompt_tokens_RQ=jnp.ones((V, 1), jnp.int32),
        prompt_mask_RQ=mask_RC,
        tokens_RC=jnp.arange(V)[:, None],
        mask_RC=mask_RC,
        temperature=jnp.float32(1.0),
        behavior_logprob_RC=behavior_V[:, None],
        proximal_logprob_RC=policy_V[:, None],
        advantage_RC=REWARD_V[:, None],
    )
    if correction.correction != "none":
        weight_RC = staleness_weight(correction, policy_V[:, None], behavior_V[:, None], mask_RC)
        batch = batch.replace(staleness_RC=weight_RC)  # pyright: ignore[reportAttributeAccessIssue]

    def expected_loss(logits_V):
        loss_RC, _ = token_surrogate(
            Outputs(jax.nn.log_softmax(logits_V)[:, None]), batch, correction, clip, clip
        )
        return jnp.sum(jnp.exp(behavior_V) * loss_RC[:, 0])

    np.testing.assert_array_equal(
        log_ratio(Outputs(policy_V[:, None]), batch, Correction("proximal", "none")),
        np.zeros((V, 1)),
    )
    return -np.asarray(jax.grad(expected_loss)(two_laws()[1]))


def bias(correction: Correction, clip: float = ANY_RATIO) -> float:
    """Largest error of the direction, as a share of the true gradient's largest entry."""
    true_V = np.asarray(jax.grad(expected_reward)(two_laws()[1]))
    return float(np.abs(surrogate_gradient(correction, clip) - true_V).max() / np.abs(true_V).max())


UNBIASED = [
    Correction("proximal", "truncate", "token", cap=100.0),
    Correction("proximal", "truncate", "sequence", cap=100.0),
    Correction("proximal", "mask", "token", cap=100.0, floor=0.0),
    Correction("behavior", "none"),
    Correction("behavior", "second_moment", second_moment=100.0),
]


@pytest.mark.parametrize(
    "correction", UNBIASED, ids=lambda c: f"{c.ratio_to}-{c.correction}-{c.level}"
)
def test_a_corrected_gradient_is_the_true_one(correction):
    """While nothing is cut: by the cap, by the band, by the second moment, or by the clip."""
    assert bias(correction) < 1e-5


def test_an_uncorrected_gradient_is_not():
    """Four steps behind, it is wrong by a third (0.348) of the true gradient's largest entry."""
    assert bias(Correction("proximal", "none")) > 0.3


def test_what_is_cut_is_biased():
    """Caps, bands and clips buy variance with bias."""
    for correction, clip in [
        (Correction("proximal", "truncate", cap=1.2), ANY_RATIO),
        (Correction("proximal", "mask", cap=2.0, floor=0.7), ANY_RATIO),
        (Correction("behavior", "second_moment", second_moment=0.04), ANY_RATIO),
        (Correction("behavior", "none"), 0.2),
    ]:
        assert bias(correction, clip) > 0.01, correction
