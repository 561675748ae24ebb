"""The level of the ratio and the kind of the KL as choices of GRPO, Dr. GRPO and RLOO, against the published
numbers of the seven tokens; and what is refused.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import dr_grpo, grpo, rloo
from rlhf_jax.building.components import inert_clip
from rlhf_jax.ops.corrections import Correction
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Algorithm, Batch, Outputs
from rlhf_jax.updating import denominator
from tests.ops.policy_gradient import case

GRPO = grpo.Config(correction=Correction("behavior", "none"), kl_weight=0.0)
DR_GRPO = dr_grpo.Config(correction=Correction("behavior", "none"))
RLOO = rloo.Config(correction=Correction("behavior", "none", level="sequence"), kl_weight=0.0)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def of_the_case(algorithm: Algorithm, advantage=(1.0, -0.5)):
    """Loss and gradient of the seven tokens whose advantages are given."""
    batch = Batch(
        prompt_tokens_RQ=jnp.ones((2, 2), jnp.int32),
        prompt_mask_RQ=jnp.ones((2, 2), bool),
        tokens_RC=jnp.ones((2, 4), jnp.int32),
        mask_RC=jnp.asarray(case.MASK),
        temperature=jnp.float32(1.0),
        behavior_logprob_RC=jnp.asarray(case.BEHAVIOR),
        reference_logprob_RC=jnp.asarray(case.REFERENCE),
        advantage_RC=jnp.asarray(advantage)[:, None] * case.MASK,
    )
    count = denominator(batch.mask_RC, algorithm.aggregation)

    def loss(logprob_RC):
        outputs = Outputs(logprob_RC, jnp.zeros_like(logprob_RC))
        return algorithm.losses["policy"](outputs, batch)[0] / count

    return jax.value_and_grad(loss)(jnp.asarray(case.POLICY))


WEIGHTED = (0.038105, 0.247553, -0.023908, -0.013673, -0.039236, 0.014977, 0.751658)
DETACHED = (0.034286, 0.178571, -0.026786, -0.014286, -0.071429, 0.014286, 0.428571)
CLIPPED = np.array((0, 0, -0.107143, -0.157143, 0, 0.078571, 0.300000))  # over 7 tokens


@pytest.mark.parametrize(
    ("algorithm", "advantage", "loss", "slopes"),
    [
        (grpo.grpo(replace(GRPO, level="sequence_mean", clip_low=3e-4, clip_high=4e-4)),
         (1, -0.5), -0.237899, (*[0] * 4, *[0.087434] * 3)),
        (grpo.grpo(replace(GRPO, level="sequence_mean", clip_low=0.3, clip_high=0.3)),
         (1, -0.5), -0.370000, (*[-0.158075] * 4, *[0.087434] * 3)),
        (grpo.grpo(replace(GRPO, level="sequence_mean", clip_low=0.3, clip_high=0.3, aggregation="token")),
         (1, -0.5), -0.497800, (*[-0.180657] * 4, *[0.074943] * 3)),
        # e^S = 2.5575 and 1.155, each token's share of 8
        (dr_grpo.dr_grpo(replace(DR_GRPO, level="sequence", clip_low=0.9, clip_high=1.9)),
         (1, -0.5), (-4 * 2.5575 + 1.5 * 1.155) / 8, (*[-2.5575 / 8] * 4, *[0.5 * 1.155 / 8] * 3)),
        (grpo.grpo(replace(GRPO, kl="k3_weighted", kl_weight=1.0, aggregation="token")), (0, 0), 0.432261, WEIGHTED),
        (dr_grpo.dr_grpo(replace(DR_GRPO, kl="k3_detached", kl_weight=1.0, aggregation="token")),
         (0, 0), 0.432261, DETACHED),
        # sums over completions, and the mean of 2
        (rloo.rloo(replace(RLOO, level="token")), (1, -0.5), -0.171429 * 3.5, CLIPPED * 3.5),
        (rloo.rloo(replace(RLOO, level="sequence_mean", clip=0.3)),
         (1, -0.5), (-4 * 1.264602 + 1.5 * 1.049206) / 2, (*[-0.632301] * 4, *[0.262301] * 3)),
        (rloo.rloo(replace(RLOO, level="token", kl="k3_weighted", kl_weight=1.0)),
         (0, 0), 0.432261 * 3.5, np.array(WEIGHTED) * 3.5),
        (rloo.rloo(replace(RLOO, kl="k3", kl_weight=1.0)), (0, 0), 0.241390 * 3.5,
         3.5 * np.array((0.027650, 0.071429, -0.035714, -0.012987, -0.285714, 0.012987, 0.102041))),
    ],
)  # fmt: skip
def test_published_numbers(algorithm, advantage, loss, slopes) -> None:
    found, gradient = of_the_case(algorithm, advantage)
    np.testing.assert_allclose(found, loss, atol=3e-6)
    np.testing.assert_allclose(gradient, case.row(*slopes), atol=3e-6)


def test_a_kl_in_the_loss_is_not_in_the_score() -> None:
    assert rloo.rloo(replace(RLOO, kl="k3")).needs == {"reference"}
    assert grpo.grpo(replace(GRPO, kl="k3_weighted")).needs == set()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (partial(grpo.grpo, replace(GRPO, level="row")), r"grpo.level is 'row'; accepted: token, sequence"),  # type: ignore[arg-type]
        (partial(grpo.grpo, replace(GRPO, kl="k1_in_score")), r"grpo.kl is 'k1_in_score'; accepted: k2, k3"),  # type: ignore[arg-type]
        (partial(dr_grpo.dr_grpo, replace(DR_GRPO, kl="k3_weighted", level="sequence_mean")),
         r"dr_grpo.kl is 'k3_weighted' with level 'sequence_mean'; accepted: k2, k3, or level 'token'"),
        (partial(rloo.rloo, replace(RLOO, kl="k3_detached")),
         r"rloo.kl is 'k3_detached' with level 'sequence'; accepted: k1_in_score, k2, k3, or level 'token'"),
        (partial(rloo.rloo, replace(RLOO, level="sequence_mean", correction=Correction())),
         r"one ratio a completion; its correction is 'none' at level 'token', accepted: level 'sequence' or"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused_in_a_line(make, said) -> None:
    with pytest.raises(Refusal, match=said) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_a_clip_of_tokens_is_named_where_it_cuts_no_completion() -> None:
    wide = {"clip_low": 0.2, "level": "sequence_mean"}
    assert "algorithm.clip_low is 0.2 at level 'sequence_mean'" in inert_clip({"algorithm": wide})
    assert "algorithm.clip is 0.2" in inert_clip(
        {"algorithm": {"clip": 0.2, "level": "sequence_mean"}}
    )
    for node in (wide | {"level": "token"}, wide | {"clip_low": 3e-4}, {"beta": 0.1}):
        assert not inert_clip({"algorithm": node})
