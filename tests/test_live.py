"""The choice of live groups, by hand and on every case that a round may meet."""

import numpy as np
import pytest

from rlhf_jax.clock import choice, live

G = 2
FLAT, LIVE = (1.0, 1.0), (0.0, 1.0)


def kept_of(groups, num_kept: int = 2) -> live.Kept:
    return live.keep(live.live_groups(np.array(groups).reshape(-1), G), num_kept)


@pytest.mark.parametrize(
    ("groups", "kept", "flat", "surplus", "shares"),
    [
        # groups 1, 2 and 3 are live: the first two of them are kept, and 3 is one too many
        ((FLAT, LIVE, LIVE, LIVE), [1, 2], [8], [11], (0.75, 0.0)),
        # one is live: the first flat group fills up, and both stay in the order of the prompts
        ((FLAT, FLAT, LIVE, FLAT), [0, 2], [9, 11], [], (0.25, 0.5)),
        ((FLAT, FLAT, FLAT, FLAT), [0, 1], [10, 11], [], (0.0, 1.0)),
        ((LIVE, LIVE, LIVE, LIVE), [0, 1], [], [10, 11], (1.0, 0.0)),
        ((LIVE, FLAT, FLAT, LIVE), [0, 3], [9, 10], [], (0.5, 0.0)),
    ],
)
def test_the_first_live_groups_are_kept(groups, kept, flat, surplus, shares):
    found = kept_of(groups)
    assert found.group_P.tolist() == kept
    assert found.group_P.dtype == np.int32
    assert found.left_out(8) == {"flat": flat, "surplus": surplus}
    assert (found.live_share, found.flat_share) == shares


def test_equal_is_equal_in_float32_and_is_no_small_deviation():
    """0.1 + 0.2 is 0.3 in float32 and not in float64. The deviation of seven times 0.7 in float32 is
    6e-8 and not 0, though they are equal; 1 and 1 + 2^-23 differ, with a deviation as small.
    """
    assert 0.1 + 0.2 != 0.3
    assert not live.live_groups(np.array([0.1 + 0.2, 0.3]), 2).any()
    equal = np.full(7, 0.7, np.float32)
    assert equal.std() > 0
    assert not live.live_groups(equal, 7).any()
    assert live.live_groups(np.array([1.0, 1.0 + 2.0**-23], np.float32), 2).all()
    assert live.live_groups(np.array([1.0, 1.0, 2.0]), 3).tolist() == [True]


def test_indices_among_kept_groups_become_indices_among_sampled_ones():
    """Two rounds of four sampled groups of which two are kept: kept group 3 is the second one of the
    second round.
    """
    kept = [np.array([1, 2]), np.array([0, 3])]
    assert choice.within_sampled(np.array([3, 0, 2, 3]), kept, 4).tolist() == [7, 1, 4, 7]
