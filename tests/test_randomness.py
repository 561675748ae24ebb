"""Random keys are a function of the seed, whatever JAX's switches say."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import rlhf_jax
from rlhf_jax import randomness

SEEDS = (0, 1, 7, 2**31 - 1, 2**31, 2**32 - 1, 2**32 + 5, 2**40 + 3, -1, -7)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_key_is_the_one_of_the_defaults(seed):
    """Params and samples of earlier runs come out again."""
    np.testing.assert_array_equal(
        jax.random.key_data(randomness.key(seed)), jax.random.key_data(jax.random.key(seed))
    )


@pytest.mark.parametrize(
    ("switch", "value"),
    [
        ("jax_default_prng_impl", "rbg"),
        ("jax_default_prng_impl", "unsafe_rbg"),
        ("jax_random_seed_offset", 5),
    ],
)
def test_switches_do_not_change_it(switch, value):
    """Each of them changes what `jax.random.key` gives."""
    expected = np.asarray(jax.random.bits(jax.random.fold_in(randomness.key(3), 1), (4,)))
    before = jax.config.values[switch]
    jax.config.update(switch, value)
    try:
        found = np.asarray(jax.random.bits(jax.random.fold_in(randomness.key(3), 1), (4,)))
        other = np.asarray(jax.random.bits(jax.random.fold_in(jax.random.key(3), 1), (4,)))
    finally:
        jax.config.update(switch, before)
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(other, expected)


def test_no_other_module_makes_keys():
    package = Path(rlhf_jax.__file__).parent
    makers = [
        path.name
        for path in package.rglob("*.py")
        if re.search(r"random\.(key|PRNGKey)\(", path.read_text())
    ]
    assert makers == ["randomness.py"]
