"""The picture of expected beside measured seconds: every point is there, on axes of one range."""

import pytest

from experiments.bench import estimates


def test_points_lie_where_they_should():
    points = estimates.Points(
        "ours", {"plans": ([0.4, 0.5, 0.6], [0.44, 0.5, 0.5]), "other": ([0.45], [0.4])}
    )
    (ax,) = estimates.draw([points]).axes
    plans, other = ax.collections
    assert plans.get_offsets().tolist() == [[0.4, 0.44], [0.5, 0.5], [0.6, 0.5]]
    assert other.get_offsets().tolist() == [[0.45, 0.4]]
    assert ax.get_xlim() == ax.get_ylim()
    assert ax.get_xscale() == "linear"
    slopes = [line.get_ydata()[1] / line.get_xdata()[1] for line in ax.lines]
    assert slopes == pytest.approx([1.0, 0.85, 1.15])


def test_seconds_that_differ_tenfold_are_drawn_on_logarithmic_axes():
    figure = estimates.draw(
        [estimates.Points("theirs", {"heuristic": ([31.0, 144.0, 2.0], [30.0, 137.0, 2.2])})] * 2
    )
    assert [ax.get_yscale() for ax in figure.axes] == ["log", "log"]
    assert not figure.axes[0].get_legend()
