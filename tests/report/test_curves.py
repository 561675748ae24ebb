"""Curves go through the points of the lines, in the run's own units, and nothing is drawn that was
not measured.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from rlhf_jax.report import html, read, units
from rlhf_jax.report.plots import curves, style, trade_off
from rlhf_jax.report.plots.style import Picture

pytestmark = pytest.mark.pictures

CONFIG = {
    "reward": "learned",
    "reward_model": {"standardize": True},
    "rlhf": {"temperature": 1.0, "loop": "synchronous"},
}
UNITS = units.resolve(CONFIG, [])


@pytest.fixture
def lines(run_directory: Path) -> list[dict]:
    return read.read_run(run_directory).lines


def names(pictures: Sequence[Picture]) -> list[str]:
    return [picture.name for picture in pictures]


def panel(pictures: Sequence[Picture], title: str) -> Axes:
    (found,) = [picture for picture in pictures if picture.name == title]
    (ax,) = style.sheet([found]).axes
    assert ax.get_title(loc="left") == title
    return ax


def labels(ax: Axes) -> list[str]:
    return ax.get_legend_handles_labels()[1]


def points(ax: Axes, label: str) -> list[tuple[float, float]]:
    (line,) = [line for line in ax.get_lines() if line.get_label() == label]
    return list(
        zip(
            map(float, np.asarray(line.get_xdata())),
            map(float, np.asarray(line.get_ydata())),
            strict=True,
        )
    )


def test_learning_curves_show_the_evaluations(lines: list[dict]) -> None:
    pictures = curves.learning_curves(lines, UNITS)
    win_rate = panel(pictures, "Win-rate against references (gold)")
    expected = [(update, 0.5 + 0.4 * update / 60) for update in range(0, 61, 10)]
    np.testing.assert_allclose(points(win_rate, "ties count ½"), expected)
    assert len(points(win_rate, "greedy")) == len(points(win_rate, "ties lose")) == 7
    assert len(points(panel(pictures, "KL to the SFT policy"), "training samples")) == 60
    for ax in style.sheet(pictures, 3).axes:
        assert ax.get_xlabel() == "update"
        assert ax.get_ylabel()
    assert all(picture.note for picture in pictures)


def test_the_band_is_two_standard_errors_wide(lines: list[dict]) -> None:
    gold = panel(curves.learning_curves(lines, UNITS), "Gold score")
    (band,) = gold.collections
    heights = band.get_paths()[0].vertices[:, 1]  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue, reportCallIssue, reportArgumentType]
    assert heights.min() == pytest.approx(0.4 - 1.96 * 0.03)
    assert heights.max() == pytest.approx(1.3 + 1.96 * 0.03)


def test_what_was_not_measured_is_not_drawn() -> None:
    assert curves.learning_curves([], UNITS) == []
    assert curves.time_per_stage([]) == []
    assert trade_off.trade_off([], UNITS) == []
    lines = [{"stage": "rlhf", "update": 0, "loss": 0.5}]
    assert names(curves.learning_curves(lines, UNITS)) == ["Loss"]
    assert curves.stage_curves(lines, UNITS, "rlhf") == []
    assert curves.stage_curves(lines, UNITS, "sft") == []


def test_values_that_are_not_finite_are_counted_on_the_panel() -> None:
    values = [0.5, math.nan, math.inf, 0.25, 0.125]
    lines = [
        {"stage": "rlhf", "update": update, "loss": value} for update, value in enumerate(values)
    ]
    loss = panel(curves.learning_curves(lines, UNITS), "Loss")
    assert "2 of 5 not finite" in [text.get_text() for text in loss.texts]
    found = points(loss, "training samples")
    assert found[0] == (0, 0.5)
    assert math.isnan(found[1][1])
    assert math.isnan(found[2][1])


def test_other_figures_of_a_stage_have_a_panel_each(lines: list[dict]) -> None:
    found = names(curves.stage_curves(lines, UNITS, "rlhf"))
    assert found == ["reward", "accuracy", "margin", "Gradient norm", "Age, updates"]


def test_moving_mean_against_a_loop() -> None:
    values = np.sin(np.arange(97.0))
    values[[5, 40, 41]] = math.nan
    half = 97 // 30
    expected = [np.nanmean(values[max(place - half, 0) : place + half + 1]) for place in range(97)]
    np.testing.assert_allclose(curves.moving_mean(values), expected, rtol=1e-12, atol=1e-12)
    assert curves.moving_mean(values[:29]) is None
    assert np.isnan(curves.moving_mean(np.full(31, math.nan))).all()  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_a_long_curve_is_thinned_and_looks_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many points as a picture has dots are drawn, the greatest and the least among them, and
    each figure is read once, however often it is drawn.
    """
    count, reads = 20_000, []
    losses = np.sin(np.arange(count) / 3000)
    losses[[777, 15_001]] = 9.0, -9.0
    losses[4000:4100] = math.nan
    lines = [
        {"stage": "rlhf", "update": update, "loss": loss} for update, loss in enumerate(losses)
    ]
    series = read.series
    monkeypatch.setattr(
        read, "series", lambda lines, name: reads.append(name) or series(lines, name)
    )
    pictures = curves.learning_curves(lines, UNITS)
    for _ in range(2):
        (ax,) = style.sheet(pictures).axes
        raw, smooth = (np.asarray(line.get_xydata()) for line in ax.lines)
        assert len(raw) <= curves.MAX_POINTS + 2
        assert len(smooth) <= curves.MAX_POINTS + 2
        assert raw[[0, -1], 0].tolist() == [0, count - 1]
        assert {(777, 9.0), (15_001, -9.0)} <= set(map(tuple, raw))
        np.testing.assert_array_equal(raw[:, 1], losses[raw[:, 0].astype(int)])
        assert np.isnan(raw[:, 1]).any(), "the gap is seen"
    assert reads.count("loss") == 1


@pytest.mark.parametrize("count", [1, 2, 999, 1000, 1001, 1499, 2000, 12_345])
def test_thinning_keeps_the_extremes_of_every_stretch(count: int) -> None:
    values = np.random.default_rng(3).normal(size=count)
    kept = curves.thinned(values)
    assert (np.diff(kept) > 0).all()
    assert kept[0] == 0
    assert kept[-1] == count - 1
    if count <= curves.MAX_POINTS:
        assert len(kept) == count
        return
    edges = np.linspace(0, count, curves.MAX_POINTS // 2 + 1).astype(int)
    for begin, end in itertools.pairwise(edges):
        stretch = range(begin, end)
        extremes = {min(stretch, key=lambda i: values[i]), max(stretch, key=lambda i: values[i])}
        assert extremes <= set(kept.tolist())


def test_best_of_n_by_enumeration() -> None:
    # best of 3 draws, 7 equally likely completions ordered by gold: P(rank k) = ((k + 1)^3 - k^3) /
    # 7^3. A continuous law is the limit of many completions; with 7 ties lower both the KL and the
    # win-rate, with 7^4 they are within 1e-3.
    n = 3
    for size, tolerance in ((7, 0.2), (7**4, 1e-3)):
        rank = np.arange(size)
        probability = ((rank + 1.0) ** n - rank**n) / size**n
        kl = (probability * np.log(probability * size)).sum()
        win_rate = (probability * (rank + 0.5) / size).sum()
        assert trade_off.best_of_n_kl(n) == pytest.approx(kl, abs=tolerance)
        assert trade_off.best_of_n_win_rate(n) == pytest.approx(win_rate, abs=tolerance)


def test_the_trade_off_has_three_ways_to_spend_kl(lines: list[dict]) -> None:
    pictures = trade_off.trade_off(lines, UNITS)
    ax = panel(pictures, "Win-rate against KL")
    analytic = points(ax, "best of n by gold against the policy itself, analytic")
    assert analytic[0] == (0.0, 0.5)
    assert max(kl for kl, _ in analytic) <= 2.0 * 1.05
    measured = points(ax, "best of n by the reward model, measured")
    assert measured[2] == pytest.approx((math.log(4) - 3 / 4, 4 / 5 - 0.04))
    rewards = panel(pictures, "Learned reward and gold score against KL")
    assert points(rewards, "learned reward")[-1] == pytest.approx((2.0, 2.0))
    assert points(rewards, "gold score")[-1] == pytest.approx((2.0, 0.9 / 0.8))


def test_a_raw_learned_reward_is_compared_with_gold_in_its_own_deviations(
    lines: list[dict],
) -> None:
    """Not standardised, it rises by 2; its deviation over SFT samples was measured as 4, so that it
    gained ½ of one.
    """
    raw = CONFIG | {"reward_model": {"standardize": False}}
    measured = {"stage": "evaluate", "of": "reward_model", "update": 40, "raw_std": 4.0}
    pictures = trade_off.trade_off(lines, units.resolve(raw, [measured]))
    assert (
        points(panel(pictures, "Learned reward and gold score against KL"), "learned reward")[-1][1]
        == 0.5
    )
    unknown = trade_off.trade_off(lines, units.resolve(raw, []))
    assert names(unknown) == ["Win-rate against KL", "Gold score against KL"]
    alone = panel(unknown, "Gold score against KL")
    assert points(alone, "gold score")[-1] == pytest.approx(
        (2.0, 1.3)
    )  # as it was measured, in its own unit
    assert alone.get_ylabel() == "points of the gold judge"


def test_a_gain_over_the_sft_policy_needs_its_evaluation(lines: list[dict]) -> None:
    later = [line for line in lines if not (line.get("of") == "rlhf" and line["update"] == 0)]
    assert names(trade_off.trade_off(later, UNITS)) == ["Win-rate against KL"]


def test_a_policy_that_ran_away_is_drawn() -> None:
    line = {"stage": "evaluate", "of": "rlhf", "kl": 900.0, "win_rate": 0.97, "update": 3}
    assert style.sheet(trade_off.trade_off([line], UNITS))
    assert trade_off.trade_off([line | {"kl": math.nan}], UNITS) == []


def test_bars_end_at_the_wall_time(lines: list[dict]) -> None:
    ax = panel(curves.time_per_stage(lines), "Time per stage")
    ends = [
        max(bar.get_x() + bar.get_width() for bar in bars)
        for bars in zip(*ax.containers, strict=True)
    ]  # pyright: ignore
    assert ends == pytest.approx([14.2, 4.2, 21.0, 48.0, 3.0])


@pytest.mark.parametrize(
    ("reward", "standardize", "title", "unit"),
    [
        ("learned", True, "Learned reward", "SFT standard deviations"),
        ("learned", False, "Learned reward", "reward model's unit"),
        ("gold", True, "Reward (gold)", "points of the gold judge"),
        ("exact_match", True, "Reward (exact match)", "share of samples"),
        ("my_lab.rewards:brevity", True, "Reward", "reward's own unit"),
        ("learned + 0.1 * brevity", True, "Reward", "reward's own unit"),
    ],
)
def test_the_unit_of_a_reward_is_that_of_its_run(
    reward: str, standardize: bool, title: str, unit: str
) -> None:
    config = CONFIG | {"reward": reward, "reward_model": {"standardize": standardize}}
    trained = [
        {"stage": "rlhf", "update": update, "reward_standardized": 0.25} for update in range(2)
    ]
    evaluated = {"stage": "evaluate", "of": "rlhf", "update": 2, "reward_mean": 0.5}
    pictures = curves.learning_curves([*trained, evaluated], units.resolve(config, []))
    assert panel(pictures, title).get_ylabel() == unit
    if (
        title != "Learned reward"
    ):  # the reward model's scores are another quantity then, and have a panel of their own
        assert labels(panel(pictures, title)) == ["training samples"]
        assert panel(pictures, "Learned reward").get_ylabel() == "SFT standard deviations"


def test_without_a_config_no_unit_is_claimed() -> None:
    trained = [
        {"stage": "rlhf", "update": update, "reward_standardized": 0.25} for update in range(2)
    ]
    (picture,) = curves.learning_curves(trained, units.resolve(None, trained))
    assert panel([picture], picture.name).get_ylabel() == "unit not recorded"


def test_samples_of_two_temperatures_say_so(lines: list[dict]) -> None:
    warm = units.resolve(CONFIG | {"rlhf": {"temperature": 0.7}}, [])
    assert labels(panel(curves.learning_curves(lines, warm), "Entropy")) == [
        "training, temperature 0.7",
        "held-out, temperature 1",
    ]
    assert labels(panel(curves.learning_curves(lines, UNITS), "Entropy")) == [
        "training samples",
        "held-out prompts",
    ]


@pytest.mark.parametrize(
    "shares", [[0.99, 1.0], [0.0, 0.004], [0.5, 0.502], [0.2, 0.9], [1.0, 1.0]]
)
def test_panels_of_shares_have_sensible_limits_and_labels(shares: list[float]) -> None:
    evaluated = [
        {"stage": "evaluate", "of": "rlhf", "update": update, "distinct_completions": share}
        for update, share in enumerate(shares)
    ]
    ax = panel(curves.learning_curves(evaluated, UNITS), "Distinct completions")
    low, high = ax.get_ylim()
    assert high - low >= curves.LEAST_SHARE_SPAN
    assert low <= min(shares)
    assert high >= max(shares)
    assert low > -0.05
    assert high < 1.05
    ax.figure.draw_without_rendering()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(len(label.get_text()) <= 6 for label in ax.get_yticklabels())


def test_a_curve_that_would_hide_another_is_named_with_it(lines: list[dict]) -> None:
    same = [
        line | {"win_rate_strict": line["win_rate"]} if "win_rate" in line else line
        for line in lines
    ]
    ax = panel(curves.learning_curves(same, UNITS), "Win-rate against references (gold)")
    assert labels(ax) == ["ties count ½, ties lose", "greedy"]
    rates = ("win_rate", "win_rate_strict", "win_rate_greedy")
    flat = [line | {name: 0.0 for name in rates if name in line} for line in lines]
    ax = panel(curves.learning_curves(flat, UNITS), "Win-rate against references (gold)")
    assert labels(ax) == ["ties count ½, greedy, ties lose"]


@pytest.mark.parametrize(
    ("evaluated_at", "ticks"),
    [
        ([0, 16, 32, 48, 64], [0, 16, 32, 48, 64]),
        (list(range(0, 200, 10)), [0, 30, 60, 90, 120, 150, 180]),
        ([0, 1, 2, 4, 8, 16, 64], [0, 8, 16, 64]),
    ],
)
def test_ticks_are_where_evaluations_are(evaluated_at: list[int], ticks: list[int]) -> None:
    lines = [
        {"stage": "evaluate", "of": "rlhf", "update": update, "gold_mean": update / 9}
        for update in evaluated_at
    ]
    ax = panel(curves.learning_curves(lines, UNITS), "Gold score")
    assert ax.xaxis.get_major_locator()().tolist() == ticks  # pyright: ignore


def tick_labels(axis: Axis) -> list[Text]:
    """The labels that are drawn: those beyond the limits are not."""
    return [tick.label1 for tick in axis._update_ticks()]  # pyright: ignore[reportAttributeAccessIssue]


def texts(ax: Axes) -> list[Text]:
    legend = ax.get_legend()
    inside = list(legend.get_texts()) if legend else []
    titles = [ax.title, ax._left_title]  # pyright: ignore[reportAttributeAccessIssue]
    ticks = [*tick_labels(ax.xaxis), *tick_labels(ax.yaxis)]
    found = [*titles, ax.xaxis.label, ax.yaxis.label, *ticks, *inside]
    return [text for text in found if text.get_text() and text.get_visible()]


SIZES = (1.0, 99.5, 1250.0, -123456.0, 0.000123, 3.2e9)
OTHER = {
    "reward": "my_lab.rewards:brevity",
    "reward_model": {"standardize": False},
    "rlhf": {"temperature": 0.7},
}


@pytest.mark.parametrize(("size", "config"), [*((size, {}) for size in SIZES), (1.0, OTHER)])
def test_no_label_is_cut_off_or_lies_on_another(
    run_directory: Path, size: float, config: dict
) -> None:
    """Every text lies inside of its picture, also with numbers of other sizes, and tick labels
    leave the axis's name alone.
    """
    run = read.read_run(run_directory)
    run.config.update(config)  # pyright: ignore[reportOptionalMemberAccess]
    for line in run.lines:
        for name in (
            "gold_mean",
            "reward_mean",
            "kl",
            "entropy",
            "completion_length",
            "loss",
            "grad_norm",
        ):
            if name in line:
                line[name] *= size
    pictures = [picture for found in html.draw(run).values() for picture in found]
    assert len(pictures) > 15
    for picture in pictures:
        figure = style.sheet([picture])
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        (ax,) = figure.axes
        for text in texts(ax):
            box = text.get_window_extent(canvas.get_renderer())
            assert box.x0 >= 0, (picture.name, text.get_text())
            assert box.y0 >= 0, (picture.name, text.get_text())
            assert box.x1 <= figure.bbox.x1, (picture.name, text.get_text())
            assert box.y1 <= figure.bbox.y1, (picture.name, text.get_text())
        name = ax.yaxis.label.get_window_extent(canvas.get_renderer())
        for text in tick_labels(ax.yaxis):
            if ax.get_ylabel() and text.get_text():
                assert text.get_window_extent(canvas.get_renderer()).x0 >= name.x1 - 1, (
                    picture.name,
                    text.get_text(),
                )
        legend = ax.get_legend()
        if legend is not None:  # above the axes, where no curve passes through it
            assert legend.get_window_extent(canvas.get_renderer()).y0 >= ax.bbox.y1 - 1, (
                picture.name
            )


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([0.99, 0.995, 1.0], True, ["99.0 %", "99.5 %", "100.0 %"]),
        ([0.0, 0.25, 0.5], False, ["0.00", "0.25", "0.50"]),
        ([-2.0, -1.0, 0.0], False, ["−2", "−1", "0"]),
        ([200000.0, 400000.0], False, ["2e5", "4e5"]),
        ([0.00001, 0.00002], False, ["1e-5".replace("-", "−"), "2e−5"]),
    ],
)
def test_tick_labels_have_the_decimals_that_they_need(
    values: list[float], share: bool, expected: list[str]
) -> None:
    assert style.Numbers(share).format_ticks(values) == expected


def test_svg_follows_the_page_and_has_ids_of_its_own() -> None:
    def draw(name: str) -> str:
        pictures = curves.time_per_stage([{"stage": "sft", "kind": "timing", "wall_seconds": 3.0}])
        return style.svg(style.sheet(pictures), name)

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
