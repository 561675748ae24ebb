"""Curves go through the points of the lines, and nothing is drawn that was not measured."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_jax.report import plots, read, style, trade_off


@pytest.fixture
def lines(run_directory: Path) -> list[dict]:
    return read.read_run(run_directory).lines


def panel(figure: Figure | None, title: str) -> Axes:
    assert figure is not None
    (found,) = [ax for ax in figure.axes if ax.get_title(loc="left") == title]
    return found


def points(ax: Axes, label: str) -> list[tuple[float, float]]:
    (line,) = [line for line in ax.get_lines() if line.get_label() == label]
    return list(zip(map(float, np.asarray(line.get_xdata())), map(float, np.asarray(line.get_ydata())), strict=True))


def test_learning_curves_show_the_evaluations(lines: list[dict]) -> None:
    figure = plots.learning_curves(lines)
    win_rate = panel(figure, "Win-rate against references (gold)")
    expected = [(update, 0.5 + 0.4 * update / 60) for update in range(0, 61, 10)]
    np.testing.assert_allclose(points(win_rate, "ties count ½"), expected)
    assert len(points(win_rate, "greedy")) == len(points(win_rate, "strict")) == 7
    assert len(points(panel(figure, "KL to the reference policy"), "training samples")) == 60
    for ax in figure.axes:  # pyright: ignore[reportOptionalMemberAccess]
        assert ax.get_xlabel() == "update"
        assert ax.get_ylabel()


def test_the_band_is_two_standard_errors_wide(lines: list[dict]) -> None:
    gold = panel(plots.learning_curves(lines), "Gold score")
    (band,) = gold.collections
    heights = band.get_paths()[0].vertices[:, 1]  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue, reportCallIssue, reportArgumentType]
    assert heights.min() == pytest.approx(0.4 - 1.96 * 0.03)
    assert heights.max() == pytest.approx(1.3 + 1.96 * 0.03)


def test_what_was_not_measured_is_not_drawn() -> None:
    assert plots.learning_curves([]) is None
    assert plots.time_per_stage([]) is None
    assert trade_off.trade_off([]) is None
    lines = [{"stage": "rlhf", "update": 3, "loss": 0.5}]
    figure = plots.learning_curves(lines)
    assert figure is not None
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["Loss"]
    assert plots.stage_curves(lines, "rlhf") is None
    assert plots.stage_curves(lines, "sft") is None


def test_values_that_are_not_finite_are_counted_on_the_panel() -> None:
    values = [0.5, math.nan, math.inf, 0.25, 0.125]
    lines = [{"stage": "rlhf", "update": update, "loss": value} for update, value in enumerate(values)]
    loss = panel(plots.learning_curves(lines), "Loss")
    assert "2 of 5 not finite" in [text.get_text() for text in loss.texts]
    found = points(loss, "training samples")
    assert found[0] == (0, 0.5)
    assert math.isnan(found[1][1])
    assert math.isnan(found[2][1])


def test_other_figures_of_a_stage_have_a_panel_each(lines: list[dict]) -> None:
    figure = plots.stage_curves(lines, "rlhf")
    assert figure is not None
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["reward", "accuracy", "margin", "grad norm", "age"]


def test_moving_mean_against_a_loop() -> None:
    values = np.sin(np.arange(97.0))
    values[[5, 40, 41]] = math.nan
    half = 97 // 30
    expected = [np.nanmean(values[max(place - half, 0) : place + half + 1]) for place in range(97)]
    np.testing.assert_allclose(plots.moving_mean(values), expected, rtol=1e-12, atol=1e-12)
    assert plots.moving_mean(values[:29]) is None
    assert np.isnan(plots.moving_mean(np.full(31, math.nan))).all()  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_best_of_n_by_enumeration() -> None:
    # best of 3 draws, 7 equally likely completions ordered by gold: P(rank k) = ((k + 1)^3 - k^3) / 7^3. A continuous law is
    # the limit of many completions; with 7 ties lower both the KL and the win-rate, with 7^4 they are within 1e-3.
    n = 3
    for size, tolerance in ((7, 0.2), (7**4, 1e-3)):
        rank = np.arange(size)
        probability = ((rank + 1.0) ** n - rank**n) / size**n
        kl = (probability * np.log(probability * size)).sum()
        win_rate = (probability * (rank + 0.5) / size).sum()
        assert trade_off.best_of_n_kl(n) == pytest.approx(kl, abs=tolerance)
        assert trade_off.best_of_n_win_rate(n) == pytest.approx(win_rate, abs=tolerance)


def test_the_trade_off_has_three_ways_to_spend_kl(lines: list[dict]) -> None:
    figure = trade_off.trade_off(lines)
    ax = panel(figure, "Win-rate against KL")
    analytic = points(ax, "best of n by gold against the policy itself, analytic")
    assert analytic[0] == (0.0, 0.5)
    assert max(kl for kl, _ in analytic) <= 2.0 * 1.05
    measured = points(ax, "best of n by the reward, measured")
    assert measured[2] == pytest.approx((math.log(4) - 3 / 4, 4 / 5 - 0.04))
    rewards = panel(figure, "Learned reward and gold against KL")
    assert points(rewards, "learned reward")[-1] == pytest.approx((2.0, 2.0))
    assert points(rewards, "gold score")[-1] == pytest.approx((2.0, 0.9 / 0.8))


def test_a_policy_that_ran_away_is_drawn() -> None:
    line = {"stage": "evaluate", "of": "rlhf", "kl": 900.0, "win_rate": 0.97, "update": 3}
    assert trade_off.trade_off([line]) is not None
    assert trade_off.trade_off([line | {"kl": math.nan}]) is None


def test_bars_end_at_the_wall_time(lines: list[dict]) -> None:
    ax = panel(plots.time_per_stage(lines), "Time per stage")
    ends = [max(bar.get_x() + bar.get_width() for bar in bars) for bars in zip(*ax.containers, strict=True)]  # pyright: ignore
    assert ends == pytest.approx([14.2, 4.2, 21.0, 48.0, 3.0])


def test_svg_follows_the_page_and_has_ids_of_its_own() -> None:
    def draw(name: str) -> str:
        figure = plots.time_per_stage([{"stage": "sft", "kind": "timing", "wall_seconds": 3.0}])
        assert figure is not None
        return style.svg(figure, name)

    first = draw("first one")
    assert first == draw("first one")
    assert "var(--color-22272e)" in first
    assert not [color for color in style.DARK if color in first]
    for variables in (style.css_variables(dark=True), style.css_variables(dark=False)):
        assert variables.count("--color-") == len(style.DARK)
    ids = {part.split('"')[0] for part in first.split(' id="')[1:]}
    assert ids
    assert all(name.startswith("first-one-") for name in ids)
    used = {part.split('"')[0] for part in first.split('href="#')[1:]}
    used |= {part.split(")")[0] for part in first.split("url(#")[1:]}
    assert used <= ids
