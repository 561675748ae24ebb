"""Surrogates are those of the published codes, and their gradients are −A times the coefficient."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops.policy_gradient.surrogates import Surrogate, surrogate
from rlhf_jax.refusal import Refusal
from tests.ops.policy_gradient import case

SHAPES, CISPO = case.SHAPES, case.CISPO


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def gradient(config: Surrogate, divisor: np.ndarray | float = 1.0, **changes: np.ndarray):
    """Loss and its gradient with respect to log π on the case, or on other arrays."""
    arrays = {"logprob": case.POLICY, "base": case.BEHAVIOR, "advantage": case.ADVANTAGE}
    arrays |= {"mask": case.MASK} | changes

    def loss(logprob):
        loss_RC, *_ = surrogate(
            config, logprob, *(jnp.asarray(arrays[k]) for k in ("base", "advantage", "mask"))
        )
        return jnp.sum(loss_RC / divisor)

    return jax.value_and_grad(loss)(jnp.asarray(arrays["logprob"]))


@pytest.mark.parametrize(
    ("settings", "mean", "loss", "slopes"),
    [row[1:] for row in case.PUBLISHED],
    ids=[r[0] for r in case.PUBLISHED],
)
def test_loss_and_gradient_are_the_published_ones(settings, mean, loss, slopes) -> None:
    found, found_gradient = gradient(Surrogate(**settings), case.divisor(mean))
    assert float(found) == pytest.approx(loss, abs=1e-6)
    np.testing.assert_allclose(found_gradient, case.row(*slopes), atol=1e-6)


def test_topr_leaves_positive_rows_their_weight() -> None:
    topr = CISPO | {"cap": 1.0, "positive": "one"}
    halved = case.ADVANTAGE * np.array([[0.5], [0.5]])
    for level, slopes in (("token", (0.0625, 0.25, 0.25)), ("sequence", (0.25,) * 3)):
        _, found = gradient(Surrogate(**topr, level=level), advantage=2 * halved, divisor=2.0)
        np.testing.assert_allclose(found, case.row(*[-0.5] * 4, *slopes), atol=1e-6)


GATES = {
    "none": ({"flow": "ratio"}, {"flow": "logprob", "cap": 1.7, "floor": 0.4}),
    "clip": ({"low": 0.1, "high": 0.3}, {"far": 1.9}),
    "band": ({"floor": 0.5, "cap": 2.0, "flow": "ratio"}, {"floor": 0.5, "cap": 2.0, "flow": "logprob"}),
    "total_variation": ({"flow": "ratio", "low": 0.05}, {"flow": "logprob", "cap": 3.0, "high": 0.1}),
    "binary_kl": ({"flow": "ratio", "low": 0.02}, {"flow": "logprob", "cap": 3.0, "high": 0.05}),
    "soft": ({}, {"shape_positive": (2.0, 0.0), "shape_negative": (0.3, 0.0)}),
    "log_clip": ({"low": 0.4, "high": 0.4}, {"low": 0.1, "high": 0.7}),
    "gamma": (SHAPES | {"flow": "logprob", "level": "sequence"},),
}  # fmt: skip
ALL = [
    pytest.param({"gate": gate} | settings | level, id=f"{gate}{n}{level.get('level', '')}")
    for gate, variants in GATES.items()
    for n, settings in enumerate(variants)
    for level in (
        ({},)
        if gate in ("gamma", "log_clip", "total_variation", "binary_kl")
        else ({}, {"level": "sequence"}, {"level": "sequence_mean"})
    )
]


def ragged(seed: int, spread: float) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 8, size=6)
    mask = np.arange(7)[None] < lengths[:, None]
    base = np.log(random.uniform(0.02, 0.9, size=mask.shape))
    policy = np.minimum(base + spread * random.normal(size=mask.shape), -0.01)
    return {
        "mask": mask,
        "base": np.where(mask, base, np.nan),
        "logprob": np.where(mask, policy, np.nan),
        "advantage": np.where(mask, random.normal(size=mask.shape), np.inf),
    }


@pytest.mark.parametrize("settings", ALL)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient_is_minus_the_advantage_times_the_coefficient(settings, seed) -> None:
    """By automatic differentiation on ragged rows. What the mask hides is NaN."""
    config, arrays = Surrogate(**settings), ragged(seed, 0.5)
    loss, found = gradient(config, **arrays)
    inputs = (jnp.asarray(arrays[k]) for k in ("logprob", "base", "advantage", "mask"))
    loss_RC, coefficient_RC, _ = surrogate(config, *inputs)
    assert np.isfinite(loss)
    advantage = np.where(arrays["mask"], arrays["advantage"], 0.0)
    np.testing.assert_allclose(found, -advantage * coefficient_RC, rtol=1e-9, atol=1e-12)
    assert not np.asarray(loss_RC)[~arrays["mask"]].any()


@pytest.mark.parametrize(
    "settings", [p for p in ALL if "sequence" not in p.id and "gamma" not in p.id]
)
def test_the_gradient_through_the_ratio_is_that_of_finite_differences(settings) -> None:
    config, arrays = Surrogate(**settings), ragged(3, 0.5)
    if config.flow == "logprob" or config.gate == "log_clip":
        pytest.skip("the coefficient is a constant there, or another token's")
    _, found = gradient(config, **arrays)
    step = 1e-6
    for r, c in np.argwhere(arrays["mask"]):
        above, below = (arrays["logprob"].copy() for _ in range(2))
        above[r, c] += step
        below[r, c] -= step
        slope = gradient(config, **arrays | {"logprob": above})[0]
        slope -= gradient(config, **arrays | {"logprob": below})[0]
        assert float(slope) / (2 * step) == pytest.approx(float(found[r, c]), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("settings", ALL)
def test_samples_of_the_policy_itself_have_coefficient_1(settings) -> None:
    arrays = ragged(5, 0.0)
    arrays["logprob"] = arrays["base"]
    inputs = (jnp.asarray(arrays[k]) for k in ("logprob", "base", "advantage", "mask"))
    _, coefficient_RC, cut_RC = surrogate(Surrogate(**settings), *inputs)
    np.testing.assert_allclose(np.asarray(coefficient_RC)[arrays["mask"]], 1.0, rtol=1e-12)
    assert not np.asarray(cut_RC).any()


def test_what_is_cut() -> None:
    """Of the case: the tokens that the gate or the cap holds."""
    arrays = [jnp.asarray(x) for x in (case.POLICY, case.BEHAVIOR, case.ADVANTAGE, case.MASK)]
    expected = {
        Surrogate(): (1, 1, 0, 0, 1, 0, 0),
        Surrogate(far=3.0): (1, 1, 0, 0, 1, 0, 1),
        Surrogate(flow="logprob", gate="none", cap=2.0): (0, 1, 0, 0, 0, 0, 1),
        Surrogate(gate="log_clip", low=0.4, high=0.4): (0, 1, 0, 0, 1, 0, 0),
        Surrogate(gate="soft"): (0, 0, 0, 0, 0, 0, 1),
        Surrogate(level="sequence_mean", low=3e-4, high=4e-4): (1, 1, 1, 1, 0, 0, 0),
    }
    for config, cut in expected.items():
        np.testing.assert_array_equal(surrogate(config, *arrays)[2], case.row(*cut).astype(bool))


def test_a_ratio_beyond_e20_has_a_finite_loss() -> None:
    far = np.where(case.MASK, 90.0, 0.0)
    for level in ("token", "sequence", "sequence_mean"):
        config = Surrogate(level=level, flow="ratio", gate="none")
        loss, slopes = gradient(config, logprob=case.BEHAVIOR + far)
        assert np.isfinite(loss)
        assert np.isfinite(slopes).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"flow": "logprob"}, "flow is 'logprob' with gate 'clip'; accepted: ratio"),
        ({"gate": "soft", "flow": "logprob"}, "flow is 'logprob' with gate 'soft'"),
        ({"gate": "total_variation", "level": "sequence"}, "level is 'sequence' with gate 'total_variation'"),
        ({"gate": "binary_kl", "level": "sequence_mean"}, "accepted: token"),
        ({"far": 1.1}, "far is 1.1 with gate 'clip' and high 0.2"),
        ({"gate": "none", "far": 3.0}, "accepted: 0, or more than 1 . high"),
        ({"gate": "none", "flow": "logprob", "cap": 0.2}, "cap 0.2; accepted: floor <= 1 <= cap"),
        ({"gate": "none", "flow": "logprob", "floor": 1.5}, "floor is 1.5"),
        ({"gate": "none", "cap": 2.0}, "cap 2.0 with flow 'ratio'"),
        ({"gate": "band"}, "cap is 0.0 with gate 'band'"),
        ({"gate": "none", "positive": "one"}, "positive is 'one' with flow 'ratio'"),
        ({"gate": "gspo"}, "gate is 'gspo'; accepted: none, clip, band"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(settings, said) -> None:
    with pytest.raises(Refusal, match=said):
        Surrogate(**settings)
