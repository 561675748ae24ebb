"""OAPL, PMD and A*-PO: published numbers of seven tokens, identities between the losses of squares, and
soft values where exponentials underflow.
"""

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import a2po, copg, oapl, pmd
from rlhf_jax.algorithms.common.numbers import with_arguments
from rlhf_jax.config import fill
from rlhf_jax.ops.policy_gradient.soft_values import leave_one_out_soft_value, soft_value
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Algorithm, Outputs, Samples, Scores
from rlhf_jax.updating import denominator
from tests.ops.policy_gradient import case

from . import naive
from .checks import example

SCORES = np.array([1.0, 0.0])


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def seven_tokens(score_B=SCORES) -> tuple[Samples, Scores, Outputs]:
    """The two rows of `case` as the samples of one prompt."""
    samples = Samples(
        prompt_tokens_BQ=jnp.ones((2, 1), jnp.int32),
        prompt_mask_BQ=jnp.ones((2, 1), bool),
        tokens_BC=jnp.where(case.MASK, 5, 0),
        mask_BC=jnp.array(case.MASK),
        behavior_logprob_BC=jnp.array(case.BEHAVIOR),
        finished_B=jnp.ones(2, bool),
        ordinal_B=jnp.zeros(2, jnp.int32),
        sample_index_B=jnp.arange(2),
        version_BC=jnp.zeros((2, 4), jnp.int32),
        temperature=jnp.float32(1.0),
        samples_per_prompt=2,
    )
    score_B = jnp.array(score_B)
    scores = Scores(score_B, score_B, score_B, reference_logprob_BC=jnp.array(case.REFERENCE))
    policy_BC = jnp.array(case.POLICY)
    return samples, scores, Outputs(logprob_RC=policy_BC, entropy_RC=jnp.zeros_like(policy_BC))


def row_gradients(algorithm: Algorithm, samples, scores, outputs) -> tuple[float, np.ndarray]:
    """The summed loss, and its derivative in each row's tokens, which is one number a row."""
    batch = algorithm.credit(samples, scores)

    def loss(logprob_RC):
        return algorithm.losses["policy"](replace(outputs, logprob_RC=logprob_RC), batch)[0]

    value, gradient_RC = jax.value_and_grad(loss)(outputs.logprob_RC)
    rows = naive.rows_of_tokens(gradient_RC, samples)
    for row in rows:
        np.testing.assert_allclose(row, row[0], rtol=1e-12)
    return float(value), np.array([row[0] for row in rows])


# Loss and row gradients, divided by the two rows; `case` names the sources. The row of PMD is of
# OpenKimi's function with advantages ±1: those of scores 1 and 0 against the other one.
@pytest.mark.parametrize(
    ("algorithm", "loss", "gradients"),
    [
        (oapl.oapl(oapl.Config(temperature=0.5)), 0.243563, (0.044815, 0.346082)),
        (oapl.oapl(oapl.Config()), 0.264161, (-0.000379, 0.000620)),
        (pmd.pmd(pmd.Config(temperature=0.1)), 1.370655, (-0.113262, 0.169068)),
    ],
    ids=["oapl 0.5", "oapl", "pmd"],
)
def test_published_numbers(algorithm, loss, gradients):
    value, found = row_gradients(algorithm, *seven_tokens())
    np.testing.assert_allclose(value / 2, loss, atol=6e-7)
    np.testing.assert_allclose(found / 2, gradients, atol=6e-7)


WON_TWO = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
"""Eight stored scores whose V* at β₁ = 0.5 is ½ log((2 e² + 6) / 8) = 0.477229."""


def with_stored(scores: Scores, *stored_PS) -> Scores:
    """The scores with the stored ones of each prompt, at every one of its samples."""
    stored_BS = np.repeat(np.array(stored_PS), len(scores.score_B) // len(stored_PS), axis=0)
    return replace(scores, extra={"reference_score_BS": jnp.array(stored_BS)})


def test_published_numbers_of_a2po():
    """TRL 1.16 and the authors' code have this loss, with sums of the log ratio to the reference of
    0.598104 and 0.249461. β₁ and β₂ are arguments of the programs, as in a run.
    """
    config = a2po.Config(temperature=0.5)
    algorithm = with_arguments(a2po.a2po(config), "a2po", config)
    samples, scores, outputs = seven_tokens()
    scores = with_stored(scores, WON_TWO)
    value, found = row_gradients(algorithm, samples, scores, outputs)
    np.testing.assert_allclose(value / 2, 0.206203, atol=6e-7)
    np.testing.assert_allclose(found / 2, (-0.111859, 0.300980), atol=6e-7)
    batch = algorithm.credit(samples, scores)
    np.testing.assert_allclose(batch.figures["prompt_value"], 0.477229, atol=6e-7)
    _, metrics = algorithm.losses["policy"](outputs, batch)
    np.testing.assert_allclose(metrics["log_ratio"].value(), (0.598104 + 0.249461) / 2, atol=6e-7)


def test_another_temperature_of_the_value_needs_no_other_scores():
    """V* of the stored scores 1 and 0 lies between their mean, at β₁ → ∞, and the larger, at β₁ → 0."""
    samples, scores, _ = seven_tokens()
    for beta, wanted in ((1e6, 0.5), (1.0, 0.620115), (1e-4, 1.0)):
        batch = a2po.a2po(a2po.Config(baseline_temperature=beta)).credit(
            samples, with_stored(scores, (1.0, 0.0))
        )
        np.testing.assert_allclose(batch.figures["prompt_value"], wanted, atol=1e-4)
        np.testing.assert_allclose(batch.advantage_RC[:, 0], SCORES - wanted, atol=1e-4)


def test_prompts_that_fail_are_left_out_or_kept():
    """Of two prompts the first has stored scores of 0 alone: left out, it is in neither the loss nor
    the denominator nor the metrics; kept, its gradient is that of V* = 0. One sample of each prompt is
    enough.
    """
    samples, scores, outputs = seven_tokens()
    samples = replace(samples, samples_per_prompt=1, ordinal_B=jnp.arange(2))
    scores = with_stored(scores, (0.0, 0.0), (1.0, 0.0))
    found = {}
    for choice in ("leave_out", "keep"):
        algorithm = a2po.a2po(a2po.Config(failed_prompts=choice))
        batch = algorithm.credit(samples, scores)
        np.testing.assert_array_equal(batch.figures["failed_prompt_share"], [1, 0])
        _, found[choice] = row_gradients(algorithm, samples, scores, outputs)
        _, metrics = algorithm.losses["policy"](outputs, batch)
        num_rows = denominator(batch.mask_RC, "sequence", batch.counted_R)
        assert num_rows == metrics["residual"].count == (1 if choice == "leave_out" else 2)
    assert found["leave_out"][0] == 0
    assert found["keep"][0] != 0
    assert found["leave_out"][1] == found["keep"][1] != 0
    lenient = a2po.a2po(a2po.Config(fail_score=-0.5)).credit(samples, scores)
    np.testing.assert_array_equal(lenient.counted_R, [1, 1])
    unlike = a2po.a2po(a2po.Config()).credit(
        samples, with_stored(scores, (-3.0, -2.0), (-1.0, -1.0))
    )
    np.testing.assert_array_equal(unlike.counted_R, [1, 0])  # scores that differ are no failure
    assert not unlike.advantage_RC[1].any()  # counted in `idle_row_share`


def test_soft_values():
    """V* of scores 1 and 0; between mean and maximum; and of the scores 1, 0, 0, 1 of PMD's code,
    which leaves the sample itself out, or not.
    """
    np.testing.assert_allclose(soft_value(jnp.array([[1.0, 0.0]]), 1.0), [[0.620115]], atol=6e-7)
    score_PG = jnp.array([[1.0, 0.0, 0.0, 1.0]])
    np.testing.assert_allclose(
        (score_PG - leave_one_out_soft_value(score_PG, 0.5))[0, :2],
        [0.429534, -0.830006],
        atol=6e-7,
    )
    np.testing.assert_allclose(
        (score_PG - soft_value(score_PG, 0.5))[0, :2], [0.283110, -0.716890], atol=6e-7
    )
    np.testing.assert_allclose(soft_value(score_PG, 1e-4), [[1.0]], atol=1e-3)
    np.testing.assert_allclose(soft_value(score_PG, 1e6), [[0.5]], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_temperature_underflows(dtype):
    """The only winner of four keeps its advantage of 1 where e^(−1 / 0.01) is far below what a
    float32 adds to 1, at any level of the scores; and β → ∞ is the mean.
    """
    score_PG = jnp.array([[1, 0, 0, 0]], dtype)
    for level in (0.0, 1e3):
        others = score_PG + level - leave_one_out_soft_value(score_PG + level, 0.01)
        np.testing.assert_allclose(others[0, 0], 1.0, atol=1e-4)
        np.testing.assert_allclose(others[0, 1:], 0.01 * np.log(3) - 1.0, atol=1e-4)
    np.testing.assert_allclose(soft_value(score_PG, 1e6), [[0.25]], rtol=1e-5)
    np.testing.assert_array_equal(soft_value(jnp.full((1, 3), 0.1, dtype), 0.3)[0, 0], dtype(0.1))


def test_oapl_with_the_mean_is_pmd_times_its_length():
    """OAPL at β₁ → ∞ and β₂ = τ is 2 τ n times PMD with the group's mean: for two samples A is half
    of what leaving one out gives, as scores of half the size would.
    """
    samples, scores, outputs = seven_tokens()
    tau, length_B = 0.3, case.MASK.sum(1)
    ours, gradients = row_gradients(
        oapl.oapl(oapl.Config(baseline_temperature=1e7, temperature=tau)), samples, scores, outputs
    )
    halved = seven_tokens(SCORES / 2)[1]
    _, theirs = row_gradients(pmd.pmd(pmd.Config(temperature=tau)), samples, halved, outputs)
    np.testing.assert_allclose(gradients, 2 * tau * length_B * theirs, rtol=1e-6)
    whole = pmd.pmd(pmd.Config(temperature=tau, length="none"))
    np.testing.assert_allclose(
        ours, 2 * tau * row_gradients(whole, samples, halved, outputs)[0], rtol=1e-6
    )


def test_the_square_of_tba_is_copg():
    """(log Z + S_q − r / β)² with log Z the group's mean of r / β − S_q has the gradient of CoPG times
    (2 / β) (G − 1) / G; its numbers at β = 0.5 are those of TBA's code.
    """
    beta, (samples, scores, outputs) = 0.5, seven_tokens()
    _, contrast = row_gradients(copg.copg(copg.Config(kl_weight=beta)), samples, scores, outputs)
    moved_B = ((case.POLICY - case.REFERENCE) * case.MASK).sum(1)
    free_B = SCORES / beta - moved_B
    trajectory = 2 * (free_B.mean() - free_B)
    np.testing.assert_allclose(trajectory, [-1.651357, 1.651357], atol=6e-7)
    np.testing.assert_allclose(trajectory, (2 / beta) * 0.5 * contrast, rtol=1e-6)


@pytest.mark.parametrize("base", ["behavior", "reference"])
@pytest.mark.parametrize("length", ["none", "tokens", "constant"])
def test_is_the_float64_loop(base, length):
    """Loss and gradient of two ragged groups of three, with either base and every length."""
    tau, beta = 0.4, 0.7
    algorithm = oapl.oapl(oapl.Config(base, beta, tau, length))
    samples, scores, _, outputs = example(algorithm, 3)
    value, found = row_gradients(algorithm, samples, scores, outputs)
    base_BC = samples.behavior_logprob_BC if base == "behavior" else scores.reference_logprob_BC
    loss, gradients, num_positions = 0.0, [], samples.mask_BC.shape[1]
    rows = zip(
        naive.rows_of_tokens(outputs.logprob_RC, samples),
        naive.rows_of_tokens(base_BC, samples),
        [
            r - beta * np.log(np.mean(np.exp(np.array(group) / beta)))
            for group in naive.groups(scores.score_B, samples)
            for r in group
        ],
        strict=True,
    )
    for policy, drawn, advantage in rows:
        divisor = {"none": 1, "tokens": len(policy), "constant": num_positions}[length]
        residual = tau * (policy - drawn).sum() - advantage
        loss += residual**2 / divisor
        gradients.append(2 * tau * residual / divisor)
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    np.testing.assert_allclose(found, gradients, rtol=1e-5)


@pytest.mark.parametrize("algorithm", [oapl.oapl(oapl.Config()), pmd.pmd(pmd.Config())])
def test_a_flat_group_is_pulled_back(algorithm):
    """Equal scores have advantage 0 and a gradient towards the base: no group baseline is
    declared.
    """
    assert not algorithm.group_baseline
    samples, scores, outputs = seven_tokens(np.array([0.3, 0.3]))
    assert not np.any(algorithm.credit(samples, scores).advantage_RC)
    _, gradients = row_gradients(algorithm, samples, scores, outputs)
    assert (gradients > 0).all()  # both completions are likelier than when they were drawn


def test_wrong_settings_are_refused():
    with pytest.raises(Refusal, match=r"pmd\.baseline is 'mean'; accepted: soft_value, "):
        pmd.pmd(pmd.Config(baseline="mean"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(Refusal, match=r"oapl\.base is 'proximal'; accepted: behavior, reference"):
        oapl.oapl(oapl.Config(base="proximal"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(Refusal, match=r"oapl\.length is 'row'; accepted: none, tokens, constant"):
        oapl.oapl(oapl.Config(length="row"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(Refusal, match=r"a2po\.failed_prompts is 'drop'; accepted: keep, leave_out"):
        a2po.a2po(a2po.Config(failed_prompts="drop"))  # pyright: ignore[reportArgumentType]
    for beta in (0.0, -1.0):  # V* is no soft value there
        with pytest.raises(
            Refusal, match=rf"a2po\.baseline_temperature is {beta}; accepted: above 0"
        ):
            fill(a2po.Config, {"baseline_temperature": beta}, "a2po")
