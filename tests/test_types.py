"""The carriers travel through JAX, and metrics merge into what they would have been over all rows at once."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhf_jax.types import Algorithm, Max, Mean


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


@pytest.mark.parametrize(("unit", "expected"), [(1, 1), (2, 2), ("group", 3)])
def test_rows_of_a_unit(unit, expected):
    algorithm = Algorithm("x", frozenset(), unit, "token", lambda *_: None, {}, lambda g: g)  # type: ignore[arg-type]
    assert algorithm.unit_rows(3) == expected
