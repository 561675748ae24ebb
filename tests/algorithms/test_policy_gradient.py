"""The published numbers of policy gradients, through the public algorithm: credit, loss and the
denominator of the update; and what the pieces refuse.
"""

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.policy_gradient import Config, policy_gradient
from rlhf_jax.ops.corrections import Correction
from rlhf_jax.ops.policy_gradient.advantages import Advantage
from rlhf_jax.ops.policy_gradient.minibatches import of_minibatch
from rlhf_jax.ops.policy_gradient.penalties import Penalty
from rlhf_jax.ops.policy_gradient.row_filters import RowFilter
from rlhf_jax.ops.policy_gradient.surrogates import Surrogate
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Algorithm, Outputs, Samples, Scores
from rlhf_jax.updating import denominator
from tests.ops.policy_gradient import case

BEHAVIOR = Correction("behavior", "none")
GIVEN = Advantage("none", power=0.0)
"""The advantage is the score itself."""


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def samples_of(mask, behavior, per_prompt: int = 1, finished=None) -> Samples:
    rows = len(mask)
    return Samples(
        prompt_tokens_BQ=jnp.ones((rows, 2), jnp.int32),
        prompt_mask_BQ=jnp.ones((rows, 2), bool),
        tokens_BC=jnp.ones(mask.shape, jnp.int32),
        mask_BC=jnp.asarray(mask),
        behavior_logprob_BC=jnp.asarray(behavior),
        finished_B=jnp.ones(rows, bool) if finished is None else jnp.asarray(finished),
        ordinal_B=jnp.arange(rows, dtype=jnp.int32) // per_prompt,
        sample_index_B=jnp.arange(rows, dtype=jnp.int32) % per_prompt,
        version_BC=jnp.zeros(mask.shape, jnp.int32),
        temperature=jnp.float32(1.0),
        samples_per_prompt=per_prompt,
    )


def divided(algorithm: Algorithm, samples: Samples, scores: Scores, logprob, entropy=None):
    """The loss over the denominator of the update, and its gradient with respect to log π."""
    batch = algorithm.credit(samples, scores)
    count = denominator(batch.mask_RC, algorithm.aggregation, batch.counted_R)
    entropy = jnp.zeros_like(logprob) if entropy is None else entropy

    def loss(logprob_RC):
        return algorithm.losses["policy"](Outputs(logprob_RC, entropy), batch)[0] / count

    return jax.value_and_grad(loss)(jnp.asarray(logprob))


def of_the_case(config: Config, score=(1.0, -0.5), per_prompt: int = 1):
    """Loss and gradient of the seven tokens, of scores that are the advantages by default."""
    score_B = jnp.asarray(score, jnp.float64)
    scores = Scores(
        score_B,
        score_B,
        score_B,
        reference_logprob_BC=jnp.asarray(case.REFERENCE),
        proximal_logprob_BC=jnp.asarray(case.PROXIMAL),
    )
    algorithm = policy_gradient(config)
    return divided(algorithm, samples_of(case.MASK, case.BEHAVIOR, per_prompt), scores, case.POLICY)


def assert_row(found, loss: float, slopes) -> None:
    assert float(found[0]) == pytest.approx(loss, abs=1e-6)
    np.testing.assert_allclose(found[1], case.row(*slopes), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "mean", "loss", "slopes"),
    [row[1:] for row in case.PUBLISHED],
    ids=[row[0] for row in case.PUBLISHED],
)
def test_surrogates(settings, mean, loss, slopes) -> None:
    config = Config(
        surrogate=Surrogate(**settings), correction=BEHAVIOR, advantage=GIVEN, aggregation=mean
    )
    assert_row(of_the_case(config), loss, slopes)


DECOUPLED = (-0.107143, -0.157143, 0, 0.078571)
OTHERS = {
    "decoupled, token": (
        Config(correction=Correction("proximal", "truncate", cap=2.0), advantage=GIVEN),
        -0.401694,
        (-0.177143, -0.340136, *DECOUPLED, 0.272727),
    ),
    "decoupled, row": (
        Config(correction=Correction("proximal", "truncate", "sequence", 2.0), advantage=GIVEN),
        -0.922112,
        (-0.322078, -0.340136, -0.244898, -0.314286, 0, 0.086429, 0.150000),
    ),
    "a3po": (
        Config(correction=BEHAVIOR, advantage=GIVEN, interpolation=0.5),
        -0.305338,
        (-0.177143, 0, *DECOUPLED, 0.300000),
    ),
    "topr, token": (
        Config(
            surrogate=Surrogate("token", "logprob", "none", cap=1.0, positive="one"),
            correction=BEHAVIOR,
            advantage=GIVEN,
            aggregation="rows",
        ),
        1.133403,
        (*[-0.5] * 4, 0.062500, 0.250000, 0.250000),
    ),
    "topr, row": (
        Config(
            surrogate=Surrogate("sequence", "logprob", "none", cap=1.0, positive="one"),
            correction=BEHAVIOR,
            advantage=GIVEN,
            aggregation="rows",
        ),
        0.701668,
        (*[-0.5] * 4, *[0.25] * 3),
    ),
    **{
        f"prime-rl, {gate} {bound}": (
            Config(
                surrogate=Surrogate(gate=gate, low=bound, high=bound),
                correction=BEHAVIOR,
                advantage=GIVEN,
                penalty=Penalty(drift=1e-3),
            ),
            loss,
            slopes,
        )
        for gate, bound, loss, slopes in (
            ("total_variation", 0.1, 0.114995,
             (0.000061, 0.000262, -0.107225, -0.157116, -0.000396, 0.078599, 0.300410)),
            ("total_variation", 0.2, -0.062147,
             (-0.177081, 0.000262, -0.107225, -0.157116, -0.000396, 0.078599, 0.300410)),
            ("variation_band", 0.1, -0.077862,
             (0.000061, 0.000262, -0.000082, -0.157116, -0.000396, 0.078599, 0.000410)),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_weights_and_penalties_beside_a_surrogate(name) -> None:
    config, loss, slopes = OTHERS[name]
    assert_row(of_the_case(config), loss, slopes)


@pytest.mark.parametrize(
    ("kind", "loss", "slopes"),
    [
        ("k3", 0.241390, (0.027650, 0.071429, -0.035714, -0.012987, -0.285714, 0.012987, 0.102041)),
        ("k3_weighted", 0.432261, (0.038105, 0.247553, -0.023908, -0.013673, -0.039236, 0.014977, 0.751658)),
        ("k3_detached", 0.432261, (0.034286, 0.178571, -0.026786, -0.014286, -0.071429, 0.014286, 0.428571)),
        ("k2", 0.240681, (0.030730, 0.099021, -0.031878, -0.012430, -0.156945, 0.013616, 0.178966)),
    ],
)  # fmt: skip
def test_divergences_from_the_reference(kind, loss, slopes) -> None:
    """Advantages are 0. The weight of the KL scales loss and gradient."""
    for weight in (1.0, 0.25):
        config = Config(correction=BEHAVIOR, advantage=GIVEN, penalty=Penalty(kind, weight))
        found, gradient = of_the_case(config, score=(0.0, 0.0))
        assert_row((found / weight, gradient / weight), loss, slopes)


def test_a_shift_of_the_baseline() -> None:
    """AsymRE: scores 1 and 0, mean ½, shift −0.1: advantages .6 and −.4."""
    plain = Surrogate(flow="logprob", gate="none", floor=1.0, cap=1.0)
    config = Config(
        surrogate=plain,
        correction=BEHAVIOR,
        advantage=Advantage(power=0.0, shift=-0.1),
        aggregation="rows",
    )
    found = of_the_case(config, score=(1.0, 0.0), per_prompt=2)
    assert_row(found, 0.172406, (*[-0.3] * 4, *[0.2] * 3))


def test_entropy_is_subtracted_with_its_weight() -> None:
    entropy = jnp.asarray(np.where(case.MASK, 0.5 + np.arange(8).reshape(2, 4), np.nan))
    config = Config(correction=BEHAVIOR, advantage=GIVEN, penalty=Penalty(entropy=0.1))
    zeros = jnp.zeros(2)
    loss, _ = divided(
        policy_gradient(config),
        samples_of(case.MASK, case.BEHAVIOR),
        Scores(zeros, zeros, zeros),
        case.POLICY,
        entropy,
    )
    assert float(loss) == pytest.approx(-0.1 * (3.5 + 21) / 7)


# Four rows of two groups of 2, 4, 4 and 6 tokens: scores 1 and −1, and a flat group.
LENGTHS = np.array([2, 4, 4, 6])
RAGGED = np.arange(6) < LENGTHS[:, None]


@pytest.mark.parametrize(
    ("mean", "kept", "left_out"),
    [("token", 2 / 16, 2 / 6), ("constant_length", 2 / 24, 2 / 12), ("sequence", 0, 0)],
)
def test_flat_groups_leave_the_denominator_by_count(mean, kept, left_out) -> None:
    """On-policy, through the ratio: the sum of the losses is −(2 − 4) = 2."""
    score = jnp.array([1.0, -1.0, 5.0, 5.0])
    behavior = np.where(RAGGED, -1.0, np.nan)
    for flat, expected in (("keep", kept), ("leave_out", left_out)):
        config = Config(
            correction=BEHAVIOR,
            filter=RowFilter(flat=flat),
            advantage=Advantage(power=0.0),
            penalty=Penalty(entropy=0.3),
            aggregation=mean,
        )
        samples = samples_of(RAGGED, behavior, per_prompt=2)
        entropy = jnp.zeros(RAGGED.shape).at[2:].set(0.0 if flat == "keep" else 9.0)
        loss, gradient = divided(
            policy_gradient(config), samples, Scores(score, score, score), behavior, entropy
        )
        assert float(loss) == pytest.approx(expected, abs=1e-12)
        assert not np.asarray(gradient)[2:].any()


def test_truncated_rows_have_no_gradient_and_no_place() -> None:
    finished = np.array([True, True, False, True])
    score = jnp.array([1.0, 0.0, 3.0, 0.0])
    behavior = np.where(RAGGED, -1.0, 0.0)
    samples = samples_of(RAGGED, behavior, per_prompt=2, finished=finished)
    config = Config(
        correction=BEHAVIOR,
        filter=RowFilter(truncated="leave_out"),
        advantage=Advantage(power=0.0),
        penalty=Penalty(drift=0.1),
    )
    _, gradient = divided(
        policy_gradient(config), samples, Scores(score, score, score), behavior + 0.1 * RAGGED
    )
    counted = 2 + 4 + 6
    slope = np.array([-0.5, 0.5, 0.0, 1.5]) * np.exp(0.1) + 0.02 * finished
    np.testing.assert_allclose(gradient, slope[:, None] * RAGGED / counted, atol=1e-9)


def test_nothing_counted_is_a_loss_of_0() -> None:
    score = jnp.ones(4)
    config = Config(filter=RowFilter(flat="leave_out"))
    samples = samples_of(RAGGED, np.where(RAGGED, -1.0, 0.0), per_prompt=2)
    loss, gradient = divided(
        policy_gradient(config), samples, Scores(score, score, score), -0.5 * RAGGED
    )
    assert float(loss) == 0.0
    assert not np.asarray(gradient).any()


def test_a_filter_reads_the_policy_that_it_names() -> None:
    """Row products: π / μ 2.5575 and 1.155; ξ / μ 2.02125 and 1.1. The surrogate has no clip."""
    for policy, kept in (("current", (0, 1)), ("proximal", (1, 1))):
        config = Config(
            surrogate=Surrogate(gate="none"),
            correction=BEHAVIOR,
            filter=RowFilter("product", 0.5, 2.3, policy=policy),
            advantage=GIVEN,
        )
        assert ("proximal" in policy_gradient(config).needs) == (policy == "proximal")
        _, gradient = of_the_case(config)
        np.testing.assert_array_equal(np.asarray(gradient).any(axis=1), np.array(kept, bool))


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_a_baseline_of_least_variance_reads_the_energies(aggregation) -> None:
    """Energies (16, 1/4, 9, 1/8) of the rows' gradients, spread over their tokens: b = 0.635468. A
    mean over tokens divides each gradient by its tokens; garbage under the mask is not read.
    """
    mask = RAGGED
    config = Config(
        advantage=Advantage("minimum_variance", power=0.0),
        correction=BEHAVIOR,
        aggregation=aggregation,
    )
    algorithm = policy_gradient(config)
    assert algorithm.needs == {"gradient_energy"}
    score_B, energy_B = np.array([1.0, 0, 0, 1]), np.array([16.0, 0.25, 9, 0.125])
    if aggregation == "sequence":
        energy_B *= mask.sum(1) ** 2
    spread = np.where(mask, (energy_B / mask.sum(1))[:, None], np.nan)
    scores = Scores(*[jnp.array(score_B)] * 3, extra={"gradient_energy_BC": jnp.array(spread)})
    batch = algorithm.credit(samples_of(mask, np.where(mask, -1.0, 0.0), 4), scores)
    assert batch.advantage_RC is not None
    np.testing.assert_allclose(batch.advantage_RC[:, 0], score_B - 0.635468, atol=1e-6)


def test_shares_that_are_cut_are_counted_by_sign() -> None:
    """A clip at 0.8 and 1.2 cuts 1.24 and 2.5 of the four tokens of the first row, and 0.25 of the
    three of the second.
    """
    samples, scores = samples_of(case.MASK, case.BEHAVIOR), Scores(*[jnp.array([1.0, -0.5])] * 3)
    algorithm = policy_gradient(Config(advantage=GIVEN, correction=BEHAVIOR))
    batch = algorithm.credit(samples, scores)
    outputs = Outputs(jnp.array(case.POLICY), jnp.zeros(case.MASK.shape))
    _, metrics = algorithm.losses["policy"](outputs, batch)
    assert metrics["cut_share_positive"].value() == 2 / 4
    np.testing.assert_allclose(metrics["cut_share_negative"].value(), 1 / 3, rtol=1e-6)


def test_positive_tokens_of_topr_are_not_cut() -> None:
    """Their coefficient is 1. Of the negative ones, 1.1 and 4.2 are held at 1, and 0.25 is not."""
    samples, scores = samples_of(case.MASK, case.BEHAVIOR), Scores(*[jnp.array([1.0, -0.5])] * 3)
    topr = Surrogate("token", "logprob", "none", cap=1.0, positive="one")
    algorithm = policy_gradient(Config(surrogate=topr, advantage=GIVEN, correction=BEHAVIOR))
    outputs = Outputs(jnp.array(case.POLICY), jnp.zeros(case.MASK.shape))
    _, metrics = algorithm.losses["policy"](outputs, algorithm.credit(samples, scores))
    assert metrics["cut_share_positive"].value() == 0
    np.testing.assert_allclose(metrics["cut_share_negative"].value(), 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["clip_share"].value(), 2 / 7, rtol=1e-6)


def test_tokens_that_a_mask_of_weights_cuts_are_cut() -> None:
    """ξ / μ is 1.1, 2.1, 0.875, 1 and 0.5, 1, 2.2: a band of 0.6 to 2 cuts three. π / ξ leaves the clip
    once, at 0.5 of the second row.
    """
    score = jnp.array([1.0, -0.5])
    scores = Scores(*[score] * 3, proximal_logprob_BC=jnp.asarray(case.PROXIMAL))
    band = Correction("proximal", "mask", floor=0.6, cap=2.0)
    algorithm = policy_gradient(Config(advantage=GIVEN, correction=band))
    outputs = Outputs(jnp.array(case.POLICY), jnp.zeros(case.MASK.shape))
    batch = algorithm.credit(samples_of(case.MASK, case.BEHAVIOR), scores)
    _, metrics = algorithm.losses["policy"](outputs, batch)
    assert metrics["cut_share_positive"].value() == 1 / 4
    np.testing.assert_allclose(metrics["cut_share_negative"].value(), 2 / 3, rtol=1e-6)


def test_shares_that_are_cut_are_of_rows_that_count() -> None:
    """The second row has no EOS and leaves the loss, and with it the denominator of its share."""
    samples = samples_of(case.MASK, case.BEHAVIOR, finished=np.array([True, False]))
    scores = Scores(*[jnp.array([1.0, -0.5])] * 3)
    config = Config(advantage=GIVEN, correction=BEHAVIOR, filter=RowFilter(truncated="leave_out"))
    algorithm = policy_gradient(config)
    outputs = Outputs(jnp.array(case.POLICY), jnp.zeros(case.MASK.shape))
    _, metrics = algorithm.losses["policy"](outputs, algorithm.credit(samples, scores))
    assert metrics["cut_share_positive"].value() == 2 / 4
    assert np.isnan(metrics["cut_share_negative"].value())


def of_ages(config: Config, version, trained: int):
    """Loss and gradient of the seven tokens, drawn by params of `version` and trained at `trained`."""
    samples = replace(
        samples_of(case.MASK, case.BEHAVIOR), version_BC=jnp.asarray(version, jnp.int32)
    )
    algorithm = policy_gradient(config)
    batch = algorithm.credit(samples, Scores(*[jnp.array([1.0, -0.5], jnp.float64)] * 3))
    batch = of_minibatch(batch, jnp.int32(trained))

    def loss(logprob_RC):
        outputs = Outputs(logprob_RC, jnp.zeros_like(logprob_RC))
        return algorithm.losses["policy"](outputs, batch)[0]

    return jax.value_and_grad(loss)(jnp.asarray(case.POLICY))


BY_AGE = Config(correction=BEHAVIOR, advantage=GIVEN, interpolation_by="age")


def test_an_interpolation_by_age_is_the_constant_one_where_ages_are_equal() -> None:
    constant = of_ages(
        replace(BY_AGE, interpolation_by="constant", interpolation=0.5), 0 * case.MASK, 9
    )
    for version in (np.full(case.MASK.shape, 5), np.where(case.MASK, 5, 0)):
        by_age = of_ages(BY_AGE, version, 7)
        assert by_age[0] == constant[0]
        np.testing.assert_array_equal(by_age[1], constant[1])


def test_an_interpolation_by_age_is_that_of_each_token() -> None:
    """Ages 0, 1, 2, 4 and 1, 8, 0: α 0, 0, ½, ¾ and 0, ⅞, 0; the clip is on r^(1 − α)."""
    alpha = np.array([[0, 0, 0.5, 0.75], [0, 0.875, 0, 0]])
    version = 8 - np.array([[0, 1, 2, 4], [1, 8, 0, 0]])
    _, gradient = of_ages(BY_AGE, version, 8)
    ratio = np.where(case.MASK, np.exp(np.where(case.MASK, case.POLICY - case.BEHAVIOR, 0)), 0)
    fresh = np.where(case.MASK, ratio ** (1 - alpha), 1)
    kept = np.where(np.array([[True], [False]]), fresh < 1.2, fresh > 0.8)
    slope = -np.array([[1.0], [-0.5]]) * ratio * kept
    np.testing.assert_allclose(gradient, np.where(case.MASK, slope, 0), rtol=1e-9)


def test_ages_are_asked_of_the_update() -> None:
    algorithm = policy_gradient(BY_AGE)
    batch = algorithm.credit(samples_of(case.MASK, case.BEHAVIOR), Scores(*[jnp.ones(2)] * 3))
    with pytest.raises(Refusal, match="interpolation_by is 'age' and the rows have age_RC None"):
        algorithm.losses["policy"](Outputs(jnp.zeros((2, 4)), jnp.zeros((2, 4))), batch)


REFUSED = [
    (lambda: Correction("behavior", "truncate"), r"correction is 'truncate' with ratio_to 'behavior'; accepted: auto, none"),
    (lambda: Correction("behavior", "mask"), r"correction.correction is 'mask' with ratio_to 'behavior'"),
    (lambda: Surrogate(flow="logprob", gate="clip"), r"surrogate.flow is 'logprob' with gate 'clip'; accepted: ratio"),
    (lambda: Surrogate(flow="logprob", gate="soft"), r"surrogate.flow is 'logprob' with gate 'soft'; accepted: ratio"),
    *(
        (lambda gate=gate, level=level: Surrogate(level=level, gate=gate),
         rf"surrogate.level is '{level}' with gate '{gate}'; accepted: token")
        for gate in ("total_variation", "variation_band", "binary_kl")
        for level in ("sequence", "sequence_mean")
    ),
    *(
        (lambda gate=gate, base=base: Config(surrogate=Surrogate(gate=gate), correction=Correction(base, "none")),
         rf"correction.ratio_to is '{base}' with surrogate.gate '{gate}'; accepted: behavior")
        for gate in ("total_variation", "variation_band", "binary_kl")
        for base in ("auto", "proximal")
    ),
    (lambda: Surrogate(far=1.2), r"surrogate.far is 1.2 with gate 'clip' and high 0.2; accepted: 0, or more than 1 \+ high"),
    (lambda: Surrogate(flow="logprob", gate="none", cap=0.2), r"floor is 0.0 and cap 0.2; accepted: floor <= 1 <= cap"),
    (lambda: Surrogate(flow="logprob", gate="none", floor=1.1), r"surrogate.floor is 1.1 and cap 0.0; accepted"),
    *(
        (lambda kind=kind: Config(surrogate=Surrogate(gate="soft"), correction=Correction(correction=kind)),
         rf"correction.correction is '{kind}' with surrogate.gate 'soft'; accepted: none")
        for kind in ("auto", "truncate", "mask", "second_moment")
    ),
    (lambda: Config(surrogate=Surrogate("sequence", "logprob", "gamma")),
     r"correction.correction is 'auto' with surrogate.gate 'gamma'"),
    (lambda: Config(interpolation=0.5), r"interpolation is 0.5 with correction.ratio_to 'auto'"),
    (lambda: Config(interpolation_by="age"), r"interpolation_by is 'age' with correction.ratio_to 'auto'"),
    (lambda: Config(correction=BEHAVIOR, interpolation=0.5, interpolation_by="age"),
     r"interpolation is 0.5 with interpolation_by 'age'; accepted: 0"),
    (lambda: Config(correction=BEHAVIOR, interpolation_by="lag"), r"interpolation_by is 'lag'; accepted: constant, age"),
    (lambda: Config(advantage=Advantage(noise=0.05), filter=RowFilter(flat="leave_out")),
     r"advantage.noise is 0.05 with advantage.power 1.0 and filter.flat 'leave_out'; accepted: noise 0"),
    *(
        (lambda base=base, kind=kind: Correction(base, kind, normalise=True),
         rf"correction.normalise is True with correction '{kind}' and ratio_to '{base}'; accepted: False")
        for base, kind in (("proximal", "none"), ("proximal", "mask"), ("behavior", "auto"),
                           ("behavior", "second_moment"))
    ),
    (lambda: Config(surrogate=Surrogate(level="sequence_mean"), penalty=Penalty("k3_weighted", 0.1)),
     r"penalty.kl is 'k3_weighted' with surrogate.level 'sequence_mean'; accepted: k2 or k3"),
    (lambda: Penalty(kl_weight=0.1), r"penalty.kl_weight is 0.1 with kl 'none'; accepted: 0, or a kl of k2"),
    (lambda: Penalty("k4"), r"penalty.kl is 'k4'; accepted: none, k2"),
    (lambda: Advantage(power=1.0, shift=-0.1), r"advantage.power is 1.0 with shift -0.1; accepted: power 0"),
    (lambda: Advantage("none"), r"advantage.power is 1.0 with baseline 'none'; accepted: power 0"),
    (lambda: Advantage("median"), r"advantage.baseline is 'median'; accepted: mean"),
    (lambda: RowFilter(high=0.1), r"filter.high is 0.1 with rows 'none'; accepted: 0"),
    (lambda: Config(aggregation="pair"), r"aggregation is 'pair'; accepted: token"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "said"), REFUSED)
def test_what_does_not_go_together_is_refused_in_a_line(make, said) -> None:
    with pytest.raises(Refusal, match=said) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_too_few_samples_are_refused_by_the_name_of_the_algorithm() -> None:
    score = jnp.ones(4)
    samples = samples_of(RAGGED, np.where(RAGGED, -1.0, 0.0))
    for config in (Config(), Config(filter=RowFilter(flat="leave_out"), advantage=GIVEN)):
        with pytest.raises(Refusal, match="samples_per_prompt is 1; mine needs at least 2"):
            policy_gradient(config, "mine").credit(samples, Scores(score, score, score))


LEGAL = [
    Config(advantage=Advantage(noise=0.05)),
    Config(advantage=Advantage(noise=0.05, power=0.0), filter=RowFilter(flat="leave_out")),
    Config(correction=Correction("proximal", "truncate", normalise=True)),
    Config(surrogate=Surrogate(far=1.3)),
    Config(surrogate=Surrogate(level="sequence_mean", low=0.3, high=0.3), aggregation="sequence"),
    Config(surrogate=Surrogate(gate="band", floor=0.5, cap=2.0), correction=Correction("proximal", "truncate")),
    Config(surrogate=Surrogate(gate="soft"), correction=Correction("proximal", "none")),
    Config(surrogate=Surrogate(flow="logprob", gate="total_variation", cap=1.0), correction=BEHAVIOR),
    Config(penalty=Penalty("k3_weighted", 0.1), advantage=Advantage("leave_one_out", 0.5, "bessel")),
    Config(surrogate=Surrogate(level="sequence"), penalty=Penalty("k2", 0.1)),
    Config(filter=RowFilter("largest", high=1.0, veto=0.5, flat="leave_out", truncated="leave_out")),
    Config(surrogate=Surrogate(gate="none"), correction=Correction("behavior", "second_moment")),
    Config(correction=BEHAVIOR, interpolation=0.9, filter=RowFilter("k3_mean", high=0.1, policy="proximal")),
    Config(correction=Correction("proximal", "mask", "sequence_mean", 5.0)),
    Config(advantage=Advantage("none", 0.0, shift=0.5, whiten="tokens"), penalty=Penalty("k1_in_return", 0.1)),
]  # fmt: skip


@pytest.mark.parametrize("config", LEGAL)
def test_what_goes_together_has_a_finite_gradient_on_ragged_rows(config) -> None:
    random = np.random.default_rng(3)
    log = [np.where(RAGGED, -1 - random.random(RAGGED.shape), np.nan) for _ in range(4)]
    score = jnp.array([1.0, -1.0, 0.3, 0.4])
    scores = replace(
        Scores(score, score, score),
        reference_logprob_BC=jnp.asarray(log[1]),
        proximal_logprob_BC=jnp.asarray(log[2]),
    )
    loss, gradient = divided(policy_gradient(config), samples_of(RAGGED, log[0], 2), scores, log[3])
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    assert np.asarray(gradient).any()
