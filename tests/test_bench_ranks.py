"""The bench of ranks: its statistics by hand, and plans whose expected seconds are spread."""

import pytest

from experiments.bench import ranks
from rlhf_jax.types import Placement, Plan


def test_an_order_that_agrees_has_a_share_of_one():
    seconds = [1.0, 2.0, 3.0, 5.0]
    found = ranks.agreement(seconds, seconds, [1.1, 2.2, 2.9, 6.0])
    assert found == pytest.approx(dict.fromkeys(found, 1.0))


def test_ranks_are_correlated_by_hand():
    """Of (1, 2, 3, 4) and (2, 1, 3, 4): 1 − 6 · 2 / (4 · 15)."""
    assert ranks.correlation([1, 2, 3, 4], [20, 10, 30, 40]) == pytest.approx(0.8)
    found = ranks.agreement([1, 2, 3, 4], [20, 10, 30, 40], [10, 20, 30, 40])
    assert found["expected_measured"] == pytest.approx((0.8 + 1) / 2)
    assert found["share"] == pytest.approx(0.9 / 0.8)


def test_intervals_hold_the_share(monkeypatch):
    monkeypatch.setattr(ranks, "RESAMPLES", 200)
    expected = [float(each) for each in range(1, 41)]
    first = [each * (1.2 if index % 3 else 0.9) for index, each in enumerate(expected)]
    low, high = ranks.intervals(expected, first, expected)["expected_measured"]
    found = ranks.agreement(expected, first, expected)["expected_measured"]
    assert 0.9 < low < found < high <= 1.0


def plan(index: int) -> Plan:
    return Plan({"generate": Placement((index,), (1, 1, 1))})


def test_plans_are_spread_on_a_logarithmic_scale():
    seconds = [1.0, 1.1, 1.2, 1.9, 2.1, 3.7, 4.0]
    chosen = ranks.spread([plan(index) for index in range(7)], seconds, 3)
    assert [each.placements["generate"].devices for each in chosen] == [
        (0,),
        (4,),
        (6,),
    ]  # 2.1 is nearer to 2 than 1.9
    with pytest.raises(ValueError, match="less than threefold"):
        ranks.spread([plan(index) for index in range(3)], seconds[:3], 3)
