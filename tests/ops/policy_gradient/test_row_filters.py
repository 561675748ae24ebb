"""Filters keep the rows that their statistic says, on numbers that were computed by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops.policy_gradient.row_filters import RowFilter, kept_tokens
from rlhf_jax.refusal import Refusal
from tests.ops.policy_gradient import case

LOG = np.where(case.MASK, case.POLICY - case.BEHAVIOR, np.nan)


def kept(config: RowFilter, advantage: np.ndarray = case.ADVANTAGE, log: np.ndarray = LOG):
    arrays = (jnp.asarray(x) for x in (log, advantage, case.MASK))
    return np.asarray(kept_tokens(config, *arrays))


# Row statistics of the case: geometric 1.264602, 1.049206; product 2.5575, 1.155; mean k3 .162742,
# .801967; max |l| .916291, 1.435085; mean −l of the second row −.048033.
@pytest.mark.parametrize(
    ("config", "rows"),
    [
        (RowFilter(), (1, 1)),
        (RowFilter("geometric", 0.9, 1.2646), (0, 1)),
        (RowFilter("geometric", 0.9, 1.2647), (1, 1)),
        (RowFilter("geometric", 0.75, 1.04), (0, 0)),
        (RowFilter("product", 0.5, 2.0), (0, 1)),
        (RowFilter("product", 0.0, 2.558), (1, 1)),
        (RowFilter("k3_mean", high=0.5), (1, 0)),
        (RowFilter("k3_mean", high=0.16), (0, 0)),
        (RowFilter("largest", high=1.0), (1, 0)),
        (RowFilter("largest", high=1.4351), (1, 1)),
        (RowFilter("one_sided", high=0.1), (1, 1)),
    ],
)
def test_rows_are_kept_by_their_statistic(config, rows) -> None:
    np.testing.assert_array_equal(kept(config), case.MASK & np.array(rows, bool)[:, None])


def test_one_sided_asks_for_a_negative_advantage_and_a_policy_that_left() -> None:
    """The log ratio turned around: the policy has left the rows by .234757 and .048033 a token."""
    strict, lax = RowFilter("one_sided", high=0.048), RowFilter("one_sided", high=0.049)
    first, second = case.MASK
    np.testing.assert_array_equal(kept(strict, log=-LOG), [first, second & False])
    np.testing.assert_array_equal(kept(lax, log=-LOG), case.MASK)
    turned = -case.ADVANTAGE
    np.testing.assert_array_equal(kept(lax, turned, -LOG), [first & False, second])
    np.testing.assert_array_equal(kept(strict, turned, LOG), case.MASK)


def test_a_veto_leaves_out_what_follows_the_first_fall_in_a_negative_row() -> None:
    log = np.where(case.MASK, np.array([[0.0, -2.0, 0.0, 0.0], [0.1, -2.0, 0.3, 0.0]]), np.nan)
    advantage = np.array([[1.0], [-1.0]]) * case.MASK
    np.testing.assert_array_equal(
        kept(RowFilter(veto=1.0), advantage, log), [[1, 1, 1, 1], [1, 0, 0, 0]]
    )
    np.testing.assert_array_equal(kept(RowFilter(veto=3.0), advantage, log), case.MASK)


def test_an_empty_row_has_no_tokens_to_keep() -> None:
    mask = jnp.zeros((1, 3), bool)
    for config in (RowFilter("largest", high=1.0), RowFilter("geometric", 0.9, 1.1)):
        assert not kept_tokens(config, jnp.full((1, 3), jnp.nan), jnp.ones((1, 3)), mask).any()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rows": "geometric", "low": 1.1, "high": 2.0}, "low 1.1 and high 2.0"),
        ({"rows": "product"}, "low 0.0 and high 0.0 with rows 'product'"),
        ({"rows": "k3_mean"}, "high is 0 with rows 'k3_mean'"),
        ({"rows": "largest", "low": 0.1, "high": 1.0}, "low is 0.1 with rows 'largest'"),
        ({"rows": "median"}, "rows is 'median'; accepted: none, geometric"),
    ],
)
def test_bounds_that_keep_nothing_are_refused(settings, said) -> None:
    with pytest.raises(Refusal, match=said):
        RowFilter(**settings)
