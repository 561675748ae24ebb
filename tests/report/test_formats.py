"""Numbers of a page: true minus signs, decimals that go with an interval, times that a person
reads.
"""

import math

import pytest

from rlhf_jax.report import formats


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (0.773, 0.0051, "0.773 ± 0.010"),
        (0.773, 0.00714, "0.773 ± 0.014"),  # as many decimals as its neighbour
        (-3.2675, 0.03716, "−3.268 ± 0.073"),
        (31250.0, 812.0, "31250 ± 1592"),
        (0.5, 0.0, "0.500 ± 0"),
        (0.5, math.nan, "0.500"),
        (0.5, None, "0.500"),
        (math.nan, 0.1, "nan"),
        (0.00012, 4e-9, "0.00012 ± 7.8e−09"),
        (1.0, 0.05099, "1.00 ± 0.10"),  # 0.09994 rounds to 0.10
    ],
)
def test_value_and_interval_have_as_many_decimals(value, stderr, text):
    assert formats.with_interval(value, stderr) == text


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.0132, 12.4], ["0.0", "12.4"]),
        ([0.0, 0.0], ["0.00", "0.00"]),
        ([-0.9996, 0.5], ["−1.00", "0.50"]),
    ]
    + [
        ([1234.0, 2.0], ["1234", "2"]),
        ([math.nan, 0.5], ["nan", "0.500"]),
        ([1e-9, 2e-9], ["1.0e−09", "2.0e−09"]),
    ],
)
def test_values_beside_each_other_have_as_many_decimals(values, texts):
    assert formats.alike(values) == texts


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.2e-5, "under 1 ms"),
        (0.0042, "4.2 ms"),
        (0.042, "42 ms"),
        (0.316, "0.316 s"),
        (12.34, "12.3 s"),
        (185, "3 min 05 s"),
    ],
)
def test_durations(seconds, text):
    assert formats.duration(seconds) == text


def test_shares_and_lists():
    assert [formats.percent(share) for share in (0.0, 0.001, 0.126, 1.0)] == [
        "0 %",
        "under 1 %",
        "13 %",
        "100 %",
    ]
    assert formats.listed([]) == ""
    assert formats.listed([3, 9]) == "3 and 9"
