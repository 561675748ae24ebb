"""Expected decoding steps against enumeration and against the loop that they describe."""

import itertools
from collections import Counter

import numpy as np
import pytest

from rlhf_jax.planner.costs.lengths import binomial_at_most, decode_steps, expected_tokens


def simulated(lengths, limit, row_shards, num_compactions):
    """Steps at each size by walking through `sampling._decode`'s loop: lengths by shard, `[S, n]`."""
    ends, drawn, steps = np.minimum(lengths, limit), 1, Counter()
    size = ends.shape[1]
    while True:
        kept = size // 4 if num_compactions > 0 else 0
        while drawn < limit and (ends > drawn).sum(axis=1).max() > kept:
            drawn, steps[size] = drawn + 1, steps[size] + 1
        if not kept:
            return steps
        size, num_compactions = kept, num_compactions - 1


@pytest.mark.parametrize(("row_shards", "num_compactions"), [(1, 0), (1, 1), (2, 0)])
def test_steps_are_the_mean_over_all_draws(row_shards, num_compactions):
    lengths, limit, rows = (1, 2, 2, 5, 9), 7, 5 if row_shards == 1 else 2
    total, draws = Counter(), list(itertools.product(lengths, repeat=rows * row_shards))
    for draw in draws:
        total.update(
            simulated(
                np.asarray(draw).reshape(row_shards, rows), limit, row_shards, num_compactions
            )
        )
    expected = {size: count / len(draws) for size, count in total.items()}
    found = dict(decode_steps(lengths, limit, rows, row_shards, num_compactions))
    assert set(found) == set(expected)
    for size, steps in expected.items():
        assert found[size] == pytest.approx(steps, abs=1e-12)


def test_the_maximum_of_two_dice():
    # P(max <= t) = (t / 6)^2, so the mean is 6 - (1 + 4 + 9 + 16 + 25) / 36 = 161 / 36.
    assert expected_tokens((1, 2, 3, 4, 5, 6), 10, 2, 1, 0) == pytest.approx(161 / 36)


def test_without_lengths_every_row_has_every_token():
    assert decode_steps((), 7, 11, 1, 2) == ((11, 6.0), (2, 0.0))


def test_rows_that_end_at_once_take_no_step():
    assert decode_steps((1,), 7, 11, 1, 0) == ((11, 0.0),)


def test_more_rows_wait_longer_and_never_beyond_the_limit():
    steps = [decode_steps((2, 3, 5, 40), 17, rows, 1, 0)[0][1] for rows in (1, 2, 4, 64, 4096)]
    assert steps == sorted(steps)
    assert steps[0] == pytest.approx((1 + 2 + 4 + 16) / 4)
    assert steps[-1] == pytest.approx(16)


def test_binomial_sums_agree_with_enumeration():
    for most, chance in itertools.product(range(4), (0.0, 0.3, 1.0)):
        outcomes = itertools.product((0, 1), repeat=3)
        naive = sum(
            np.prod([chance if hit else 1 - chance for hit in hits])
            for hits in outcomes
            if sum(hits) <= most
        )
        assert binomial_at_most(most, 3, np.asarray([chance]))[0] == pytest.approx(naive, abs=1e-12)
