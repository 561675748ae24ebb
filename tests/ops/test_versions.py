"""Versions of tokens, worked out by hand: rows of one version, of two, and of one token."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import versions

MASK_BC = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
VERSION_BC = np.array([[2, 2, 4, 6], [3, 3, 3, 0], [5, 0, 0, 0], [0, 0, 0, 0]], np.int32)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_a_mask_hides_the_versions_under_it(kind):
    version_BC, mask_BC = kind(VERSION_BC), kind(MASK_BC)
    assert versions.oldest(version_BC, mask_BC)[:3].tolist() == [2, 3, 5]
    assert versions.newest(version_BC, mask_BC)[:3].tolist() == [6, 3, 5]
    assert versions.is_mixed(version_BC, mask_BC).tolist() == [True, False, False, False]


def test_runs_are_the_versions_of_a_row_in_order():
    runs = versions.runs(VERSION_BC, MASK_BC)
    assert runs == [[[2, 2], [4, 1], [6, 1]], [[3, 3]], [[5, 1]], []]
    for row, mask_C, version_C in zip(runs, MASK_BC, VERSION_BC, strict=True):
        assert [v for v, n in row for _ in range(n)] == version_C[mask_C].tolist()


def test_one_version_is_that_of_every_token():
    version_BC = versions.broadcast(np.int32(3), jnp.asarray(MASK_BC))
    assert version_BC.dtype == jnp.int32
    np.testing.assert_array_equal(version_BC, np.where(MASK_BC, 3, 0))
