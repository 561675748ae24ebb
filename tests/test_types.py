"""The carriers travel through JAX, and metrics merge into what they would have been over all rows
at once.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhf_jax.types import Algorithm, EffectiveShare, Max, Mean, Quantile


def test_carriers_are_frozen_pytrees():
    prompts, batch = tiny.make_prompts(), tiny.make_batch(3)
    doubled = jax.jit(lambda tree: jax.tree.map(lambda x: x + x, tree))((prompts, batch))
    np.testing.assert_array_equal(doubled[0].tokens_PQ, 2 * prompts.tokens_PQ)
    assert doubled[1].advantage_RC is None
    with pytest.raises(AttributeError):
        prompts.tokens_PQ = None


def test_samples_per_prompt_is_no_array():
    samples = tiny.draw(tiny.make_model(), tiny.law(), tiny.make_prompts())
    assert samples.samples_per_prompt == tiny.G
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(samples))


def test_means_merge_by_total_and_count():
    """(1 + 2) / 2 and 9 / 1 merge to 12 / 3 = 4, and not to the mean of means, 5.25."""
    merged = Mean(jnp.float32(3), jnp.float32(2)).merge(Mean(jnp.float32(9), jnp.float32(1)))
    assert merged.value() == 4.0


def test_a_mean_of_nothing_is_not_a_number():
    assert math.isnan(Mean(jnp.float32(0), jnp.float32(0)).value())


def test_largest_of_two():
    assert Max(jnp.float32(2)).merge(Max(jnp.float32(-3))).value() == 2.0


def effective_share(weights) -> EffectiveShare:
    weights = jnp.asarray(weights, jnp.float32)
    return EffectiveShare(jnp.sum(weights), jnp.sum(jnp.square(weights)), jnp.float32(weights.size))


def test_effective_shares_merge_by_their_sums():
    """Weights 1, 1 and 3: each part is all effective, together 5² / (3 · 11).

    One weight of four: a quarter.
    """
    parts = effective_share([1, 1]), effective_share([3])
    assert [part.value() for part in parts] == [1.0, 1.0]
    assert parts[0].merge(parts[1]).value() == pytest.approx(25 / 33)
    assert effective_share([0, 7, 0, 0]).value() == 0.25
    assert math.isnan(effective_share([0, 0]).value())


def quantile_of(counts, quantile) -> Quantile:
    return Quantile(jnp.asarray(counts, jnp.float32), -1.0, 3.0, quantile)


def test_quantiles_merge_by_their_counts():
    """Four bins of width 1 from −1.

    The medians of 3 values in the first bin and of 4 in the last: −½, 2½; of all 7: 2½.
    """
    low, high = quantile_of([3, 0, 0, 0], 0.5), quantile_of([0, 0, 0, 4], 0.5)
    assert (low.value(), high.value(), low.merge(high).value()) == (-0.5, 2.5, 2.5)
    assert low.merge(low).merge(high).value() == -0.5
    assert [quantile_of([1, 1, 1, 1], q).value() for q in (0.2, 0.3, 0.7, 0.99, 1.0)] == [
        -0.5,
        0.5,
        1.5,
        2.5,
        2.5,
    ]
    assert math.isnan(quantile_of([0, 0, 0, 0], 0.5).value())


def test_metrics_travel_through_jit():
    """Only arrays are leaves: bounds and the quantile stay numbers."""
    merged = jax.jit(lambda a, b: (a[0].merge(b[0]), a[1].merge(b[1])))(
        (quantile_of([1, 0, 0, 0], 0.9), effective_share([1, 1])),
        (quantile_of([0, 1, 0, 0], 0.9), effective_share([3])),
    )
    assert (merged[0].low, merged[0].high, merged[0].quantile) == (-1.0, 3.0, 0.9)
    assert merged[0].value() == 0.5
    assert merged[1].value() == pytest.approx(25 / 33)


@pytest.mark.parametrize(("unit", "expected"), [(1, 1), (2, 2), ("group", 3)])
def test_rows_of_a_unit(unit, expected):
    algorithm = Algorithm("x", frozenset(), unit, "token", lambda *_: None, {}, lambda g: g)  # type: ignore[arg-type]
    assert algorithm.unit_rows(3) == expected
