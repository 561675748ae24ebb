"""Weights for staleness against float64 loops, the second moment against brute force, and what is
resolved and refused.
"""

from itertools import combinations, product

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import corrections
from rlhf_jax.ops.corrections import Correction, resolve, staleness_weight, within_second_moment

B, C = 5, 7
LENGTHS = (C, 1, 3, C - 1, 2)
MASK_BC = np.arange(C) < np.array(LENGTHS)[:, None]


def two_laws(spread: float = 1.0, seed: int = 0):
    """Proximal and behaviour log-probabilities, 0 where the mask is false."""
    random = np.random.default_rng(seed)
    behavior_BC = np.where(MASK_BC, random.uniform(-3, -0.1, MASK_BC.shape), 0).astype(np.float32)
    step_BC = np.where(MASK_BC, random.normal(scale=spread, size=MASK_BC.shape), 0)
    return (behavior_BC + step_BC).astype(np.float32), behavior_BC


def weights(correction: Correction, proximal_BC, behavior_BC, mask_BC=MASK_BC) -> np.ndarray:
    return np.asarray(
        staleness_weight(correction, *map(jnp.asarray, (proximal_BC, behavior_BC, mask_BC)))
    )


def naive_weights(correction: Correction, proximal_BC, behavior_BC) -> np.ndarray:
    """Token by token in float64."""
    weight_BC = np.zeros(MASK_BC.shape)
    for row, length in enumerate(LENGTHS):
        log = [float(proximal_BC[row, t]) - float(behavior_BC[row, t]) for t in range(length)]
        for t in range(length):
            of_level = {"token": log[t], "sequence": sum(log), "sequence_mean": sum(log) / length}
            ratio = np.exp(of_level[correction.level])
            if correction.correction == "truncate":
                weight_BC[row, t] = min(ratio, correction.cap)
            elif correction.correction == "mask":
                weight_BC[row, t] = ratio if correction.floor <= ratio <= correction.cap else 0.0
            else:
                weight_BC[row, t] = 1.0
    return weight_BC


def test_weights_of_rows_of_several_versions_are_unbiased():
    """All 27 completions of three tokens, each token drawn by another version: with their weights
    they have the proximal policy's mean of any function. Log-probabilities of one version alone
    would not give it.
    """
    random, rows = np.random.default_rng(4), np.array(list(product(range(3), repeat=3)))
    logits_KCVV = random.normal(size=(4, 3, 3, 3))  # version, position, token before, token
    previous_BC = np.concatenate([np.zeros((27, 1), int), rows[:, :-1]], axis=1)
    law_KCVV = logits_KCVV - np.log(np.exp(logits_KCVV).sum(axis=-1, keepdims=True))
    logprob_KBC = law_KCVV[:, np.arange(3), previous_BC, rows]
    *drew_KBC, proximal_BC = logprob_KBC
    behavior_BC = np.stack([drew_KBC[version][:, version] for version in range(3)], axis=1)
    function_B, mask_BC = random.normal(size=27), np.ones((27, 3), bool)
    chance_B, expected = (
        np.exp(behavior_BC.sum(axis=1)),
        np.exp(proximal_BC.sum(axis=1)) @ function_B,
    )
    whole = Correction("proximal", "truncate", "sequence", cap=1e9)

    def mean(recorded_BC):
        weight_BC = weights(whole, proximal_BC, recorded_BC, mask_BC)
        assert np.ptp(weight_BC, axis=1).max() == 0
        return (chance_B * weight_BC[:, 0]) @ function_B

    assert chance_B.sum() == pytest.approx(1)
    assert mean(behavior_BC) == pytest.approx(expected, rel=1e-4)
    assert all(abs(mean(one_BC) - expected) > 0.05 for one_BC in drew_KBC)


@pytest.mark.parametrize("level", corrections.LEVELS)
@pytest.mark.parametrize("kind", ["none", "truncate", "mask"])
def test_weights_are_the_float64_loop(kind, level):
    correction = Correction("proximal", kind, level, cap=1.5, floor=0.6)
    proximal_BC, behavior_BC = two_laws(1.2 if level == "sequence_mean" else 0.3)
    found_BC, expected_BC = (
        f(correction, proximal_BC, behavior_BC) for f in (weights, naive_weights)
    )
    np.testing.assert_allclose(found_BC, expected_BC, rtol=1e-5)
    assert found_BC.dtype == np.float32
    if kind != "none":  # some tokens are on either side of each limit
        assert {"truncate": 1.5, "mask": 0.0}[kind] in found_BC[MASK_BC]
        assert len(set(np.round(found_BC[MASK_BC], 4))) > 2


def test_a_weight_by_hand():
    # Two tokens with ratios ½ and 3 under a cap of 2, a band of [¾, 2]: token by token, and their
    # product 3/2.
    proximal, behavior, mask = np.log([[0.25, 0.6]]), np.log([[0.5, 0.2]]), np.array([[True, True]])
    for kind, level, expected in (
        ("truncate", "token", [0.5, 2.0]),
        ("truncate", "sequence", [1.5, 1.5]),
        ("mask", "token", [0.0, 0.0]),
        ("mask", "sequence", [1.5, 1.5]),
    ):
        correction = Correction("proximal", kind, level, cap=2.0, floor=0.75)
        np.testing.assert_allclose(
            weights(correction, proximal, behavior, mask), [expected], rtol=1e-6
        )


@pytest.mark.parametrize("level", corrections.LEVELS)
@pytest.mark.parametrize(
    ("ratio_to", "kind"),
    [("proximal", "truncate"), ("proximal", "mask"), ("behavior", "second_moment")],
)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30, 1e3])
def test_what_is_masked_has_weight_zero_and_no_say(ratio_to, kind, level, garbage):
    correction = Correction(ratio_to, kind, level, second_moment=0.5)
    clean = two_laws()
    dirty = [np.where(MASK_BC, clean[0], garbage), np.where(MASK_BC, clean[1], -garbage)]
    found_BC = weights(correction, *dirty)
    np.testing.assert_array_equal(found_BC, weights(correction, *clean))
    assert not found_BC[~MASK_BC].any()
    assert found_BC[MASK_BC].any()


def test_a_row_of_a_thousand_tokens_stays_finite():
    """Sequence ratios of long completions are bounded by e^20, not infinite."""
    ones, mask = np.full((1, 1009), -1.0, np.float32), np.ones((1, 1009), bool)
    for correction in (
        Correction("proximal", "truncate", "sequence"),
        Correction("proximal", "mask", "sequence"),
    ):
        for behavior in (ones - 0.5, ones + 0.5):
            assert np.isfinite(weights(correction, ones, behavior, mask)).all()
    log = corrections.log_staleness(*map(jnp.asarray, (ones, ones - 0.5, mask)), level="sequence")
    np.testing.assert_array_equal(log, np.full(ones.shape, 20.0))


def sets_within(square_N: np.ndarray, limit: float) -> list[tuple[int, ...]]:
    """Every set whose mean is at most `limit`, the smallest first."""
    sets = (
        kept
        for size in range(1, len(square_N) + 1)
        for kept in combinations(range(len(square_N)), size)
    )
    return [(), *(kept for kept in sets if square_N[list(kept)].mean() <= limit)]


@pytest.mark.parametrize("seed", range(11))
def test_the_second_moment_keeps_the_largest_set(seed):
    """Squares are whole numbers times 1/64, so that the means are exact; every other seed has
    equals.
    """
    random = np.random.default_rng(seed)
    log_N = random.integers(-9, 10, 7) / 8 if seed % 2 else random.permutation(np.arange(1, 8)) / 8
    mask_N = np.arange(7) != 4
    square_N = np.where(mask_N, log_N**2, np.inf)
    for limit in (0.015, 0.04, 0.2, 0.3, 0.5, 100.0):
        kept_N = within_second_moment(
            jnp.array(log_N[None], jnp.float32), jnp.array(mask_N[None]), limit
        )[0]
        sets = sets_within(square_N, limit)
        if seed % 2:  # no token is kept before a smaller or an equal one
            sets = [
                kept
                for kept in sets
                if all(np.delete(square_N, kept) > max(square_N[list(kept)], default=0.0))
            ]
        assert len(sets[-1]) == sum(kept_N), limit
        if seed % 2:
            assert set(np.flatnonzero(kept_N)) == set(sets[-1]), limit


def test_the_second_moment_by_hand():
    # Squares 0.01, 0.04, 0.09, 1: means 0.01, 0.025, 0.0467, 0.285. At 0.04 the first two stay, at
    # 0.05 three.
    log, mask = jnp.array([[0.1, -0.2], [0.3, 1.0]]), jnp.ones((2, 2), bool)
    for limit, expected in (
        (0.005, [0, 0, 0, 0]),
        (0.04, [1, 1, 0, 0]),
        (0.05, [1, 1, 1, 0]),
        (0.3, [1, 1, 1, 1]),
    ):
        assert np.ravel(within_second_moment(log, mask, limit)).tolist() == expected


def test_a_completion_is_kept_or_left_out_whole():
    """At level "sequence" its tokens have one square.

    Squares 0 (2 tokens) and 0.09 (3): mean 0.054 of all.
    """
    proximal = np.array([[0.0, 0.0, 0.0], [0.1, 0.1, 0.1]], np.float32)
    mask = np.array([[True, True, False], [True, True, True]])
    for limit, kept in ((0.05, 0.0), (0.06, 1.0)):
        correction = Correction("behavior", "second_moment", "sequence", second_moment=limit)
        found = weights(correction, proximal, np.zeros_like(proximal), mask)
        np.testing.assert_array_equal(found, [[1, 1, 0], [kept] * 3])


SCHEDULES = {
    "synchronous": {},
    "lag": {"lag": 1},
    "trace": {"scheduled": True},
    "bfloat16": {"exact_sampler": False},
}
RESOLVED = [
    ("auto", "auto", {"synchronous": ("behavior", "none")}),
    ("auto", "auto", dict.fromkeys(("lag", "trace", "bfloat16"), ("proximal", "truncate"))),
    ("behavior", "auto", dict.fromkeys(SCHEDULES, ("behavior", "none"))),
    ("proximal", "auto", {"synchronous": ("proximal", "none"), "lag": ("proximal", "truncate")}),
    ("auto", "none", {"synchronous": ("behavior", "none"), "lag": ("proximal", "none")}),
    ("auto", "second_moment", dict.fromkeys(SCHEDULES, ("behavior", "second_moment"))),
    ("auto", "truncate", dict.fromkeys(SCHEDULES, ("proximal", "truncate"))),
    ("auto", "mask", dict.fromkeys(SCHEDULES, ("proximal", "mask"))),
]


@pytest.mark.parametrize(("ratio_to", "kind", "expected"), RESOLVED)
def test_auto_is_resolved_by_the_schedule(ratio_to, kind, expected):
    for schedule, (resolved_to, resolved_kind) in expected.items():
        found = resolve(
            Correction(ratio_to, kind, "sequence", 5.0, 0.1, 0.2), **SCHEDULES[schedule]
        )
        assert found == Correction(resolved_to, resolved_kind, "sequence", 5.0, 0.1, 0.2), schedule


def test_what_is_named_stays():
    for ratio_to, kinds in corrections.CORRECTIONS.items():
        for kind, schedule in product(kinds, SCHEDULES.values()):
            assert resolve(Correction(ratio_to, kind), **schedule) == Correction(ratio_to, kind)


def test_what_a_correction_needs():
    needs = {
        (r, k): Correction(r, k).needs_proximal
        for r, kinds in corrections.CORRECTIONS.items()
        for k in kinds
    }
    assert [pair for pair, needed in needs.items() if not needed] == [("behavior", "none")]
    assert [k for k in ("none", "second_moment") if not Correction("behavior", k).clips] == [
        "second_moment"
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio_to": "old"}, "ratio_to is 'old'; accepted: auto, behavior, proximal"),
        *(
            (
                {"ratio_to": r, "correction": k},
                f"correction is '{k}' with ratio_to '{r}'; accepted: auto, none, {other}",
            )
            for r, k, other in [
                ("behavior", "truncate", "second_moment"),
                ("behavior", "mask", "second_moment"),
                ("proximal", "second_moment", "truncate, mask"),
                ("proximal", "clip", "truncate, mask"),
                ("auto", "clip", "second_moment, truncate, mask"),
            ]
        ),
        ({"level": "prompt"}, "level is 'prompt'; accepted: token, sequence"),
        ({"floor": 3.0}, r"floor 3\.0, cap 2\.0, second_moment 0\.04; accepted: 0 <= floor < cap"),
        ({"floor": -0.1}, r"floor -0\.1, .* accepted: 0 <= floor < cap"),
        ({"second_moment": 0.0}, r"second_moment 0\.0; accepted: .* a positive second_moment"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Correction(**settings)


def test_effective_sums():
    weight, mask = jnp.array([[1.0, 2.0, np.nan]]), jnp.array([[True, True, False]])
    assert tuple(map(float, corrections.effective_sums(weight, mask))) == (3.0, 5.0)
