"""Draws a run: each function takes lines of `metrics.jsonl` and gives pictures, none where nothing
was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from rlhf_jax.records.jsonl import Line
from rlhf_jax.records.progress import format_seconds
from rlhf_jax.report import glossary, read
from rlhf_jax.report.formats import INTERVAL
from rlhf_jax.report.plots import style
from rlhf_jax.report.plots.panels import Curve, Panel, panels_of
from rlhf_jax.report.plots.style import (
    INK,
    MUTED,
    PART_COLORS,
    REST,
    TRAINING,
    Picture,
)
from rlhf_jax.report.read import Series
from rlhf_jax.report.units import Units

COLUMNS = 3
LEAST_SHARE_SPAN = 0.1
"""Panels of shares span at least this much: a rise from 99 to 100 % is to look like one."""
MAX_TICKS = 9
MAX_POINTS = 1000
"""Points of a curve, but for its ends: three to a dot of its picture."""
AGES_OF_TOKENS = {
    *("age_mean", "age_p95", "age_max", "mixed_share"),
    *(f"age_mean_{part}" for part in ("positive", "negative", "short", "long")),
}
LEGEND_ROW, SECONDS_WIDTH = 0.16, 0.8
"""Inches: of a row of a legend, and of "12 min 05 s" beside a bar."""


def learning_curves(lines: Sequence[Line], units: Units, stage: str = "") -> list[Picture]:
    """Learning curves: a picture for each panel that the lines have something for.

    Args:
      lines: of metrics.jsonl.
      units: of the run.
      stage: that trained the policy; "": see `read.trained`.
    """
    stage = stage or read.trained(lines)
    trained, evaluated = read.updates(lines, stage), read.policy_evaluations(lines, stage)
    found = [(panel, _curves(panel, trained, evaluated)) for panel in panels_of(stage, units)]
    return [_picture(panel, curves, evaluated) for panel, curves in found if curves]


def stage_curves(lines: Sequence[Line], units: Units, stage: str) -> list[Picture]:
    """Every figure of a stage's updates that `learning_curves` does not show, each in a panel under
    its own name. Figures of the ages of tokens are left out where the tokens of every update have one
    age.
    """
    trained = read.updates(lines, stage)
    of_tokens = set() if read.has_several_ages(trained) else AGES_OF_TOKENS
    shown = (
        {curve.name for panel in panels_of(stage, units) for curve in panel.curves}
        if stage == read.trained(lines)
        else set()
    )
    pictures = []
    for name in read.figure_names(trained):
        curve = Curve(name, "updates", TRAINING, evaluated=False)
        panel = Panel(glossary.title(name, units), "", glossary.note(name), (curve,))
        if name not in shown | of_tokens and (curves := _curves(panel, trained, [])):
            pictures.append(replace(_picture(panel, curves, []), height=2.3))
    return pictures


def _curves(
    panel: Panel, trained: Sequence[Line], evaluated: Sequence[Line]
) -> list[tuple[Curve, Series]]:
    """The curves of a panel that the lines have something for, each read once, however often it is
    drawn.
    """
    found = [
        (curve, read.series(evaluated if curve.evaluated else trained, curve.name))
        for curve in panel.curves
    ]
    return [(curve, series) for curve, series in found if series is not None]


def _picture(
    panel: Panel, curves: Sequence[tuple[Curve, Series]], evaluated: Sequence[Line]
) -> Picture:
    evaluated_at = [line["update"] for line in evaluated]
    drawn = [_drawn(curve, series) for curve, series in _told_apart(curves)]
    paint = partial(_draw_panel, panel, drawn, evaluated_at)
    return Picture(panel.title, panel.note, paint)


def _draw_panel(
    panel: Panel, curves: Sequence["_Drawn"], evaluated_at: Sequence[int], ax: Axes
) -> None:
    style.plain_axes(ax, panel.title, "update", panel.unit, panel.share)
    if panel.level is not None:
        ax.axhline(panel.level, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    for curve in curves:
        _draw_curve(ax, curve)
    if panel.share:
        _widen(ax)
    ax.xaxis.set_major_locator(_ticks(evaluated_at))
    style.legend(ax)


def _told_apart(drawn: Sequence[tuple[Curve, Series]]) -> list[tuple[Curve, Series]]:
    """Curves without those that would hide an earlier one, which is labelled with both names."""
    distinct: list[tuple[Curve, Series]] = []
    for curve, series in drawn:
        for index, (earlier, earlier_series) in enumerate(distinct):
            if _coincide(series, earlier_series):
                distinct[index] = (
                    replace(earlier, label=f"{earlier.label}, {curve.label}"),
                    earlier_series,
                )
                break
        else:
            distinct.append((curve, series))
    return distinct


def _coincide(first: Series, second: Series) -> bool:
    """True for two curves that a reader could not tell apart: within half a hundredth of their
    range everywhere.
    """
    if first.updates != second.updates or len(first.values) < 2:
        return False
    a, b = np.asarray(first.values), np.asarray(second.values)
    span = np.ptp(np.concatenate([a, b]))
    return bool(np.isfinite(a).all() and np.isfinite(b).all() and abs(a - b).max() <= 0.005 * span)


def _widen(ax: Axes) -> None:
    """Limits of a panel of shares: at least `LEAST_SHARE_SPAN` apart, and little outside of 0 to 1."""
    low, high = ax.get_ylim()
    missing = max(0.0, LEAST_SHARE_SPAN - (high - low)) / 2
    low, high = low - missing, high + missing
    low, high = low - max(0.0, high - 1), high - min(0.0, low)  # moved inside, as wide as before
    ax.set_ylim(max(low, 0.0) - 0.01 * (high - low), min(high, 1.0) + 0.03 * (high - low))


def _ticks(evaluated_at: Sequence[int]) -> FixedLocator | MaxNLocator:
    """Ticks at evaluations, at most `MAX_TICKS` of them; whole numbers where there are none."""
    updates = sorted(set(evaluated_at))
    if len(updates) < 2:
        return MaxNLocator(integer=True, nbins=6, min_n_ticks=1)
    step = -(-(len(updates) - 1) // (MAX_TICKS - 1))
    ticks, span = updates[::step], updates[-1] - updates[0]
    spaced = [ticks[0]]
    for tick in ticks[1:]:  # evaluations may lie densely at the beginning
        if tick - spaced[-1] >= span / MAX_TICKS * 0.7:
            spaced.append(tick)
    return FixedLocator(spaced)


@dataclass(frozen=True)
class _Drawn:
    """A curve and the points of it that are drawn, arrays of floats: made once, because a picture
    is drawn several times. `smooth` is None where the values need no moving mean.
    """

    curve: Curve
    points: tuple[np.ndarray, np.ndarray]
    stderr: np.ndarray
    smooth: tuple[np.ndarray, np.ndarray] | None
    not_finite: str


def _drawn(curve: Curve, series: Series) -> _Drawn:
    x, y, stderr = (
        np.asarray(column, float) for column in (series.updates, series.values, series.stderr)
    )
    lost, kept, smooth = int(np.isnan(y).sum()), thinned(y), None
    if not curve.evaluated and (means := moving_mean(y)) is not None:
        of_means = thinned(means)
        smooth = x[of_means], means[of_means]
    not_finite = f"{lost} of {len(y)} not finite" if lost else ""
    return _Drawn(curve, (x[kept], y[kept]), stderr[kept], smooth, not_finite)


def _draw_curve(ax: Axes, drawn: _Drawn) -> None:
    curve, label, (x, y) = drawn.curve, drawn.curve.label, drawn.points
    if drawn.not_finite:
        place = {"transform": ax.transAxes, "ha": "center", "fontsize": 8, "color": MUTED}
        ax.text(0.5, 0.5, drawn.not_finite, **place)
    if curve.evaluated:
        ax.plot(
            x,
            y,
            curve.line,
            color=curve.color,
            marker="o",
            markersize=3.5,
            linewidth=1.8,
            label=label,
        )
        ax.fill_between(
            x,
            y - INTERVAL * drawn.stderr,
            y + INTERVAL * drawn.stderr,
            color=curve.color,
            alpha=0.18,
            linewidth=0,
        )
        return
    if drawn.smooth is not None:
        ax.plot(x, y, color=curve.color, linewidth=0.7, alpha=0.4)
    marker = "." if len(x) == 1 else None
    ax.plot(
        *(drawn.smooth or drawn.points),
        color=curve.color,
        linewidth=1.6,
        marker=marker,
        label=label,
    )


def thinned(values: np.ndarray) -> np.ndarray:
    """The indices of the values that are drawn: all of a short curve; of a long one the least and
    the greatest of each of `MAX_POINTS` / 2 stretches, so that it looks the same.

    The first and the last value are among them. A stretch of NaN alone keeps its first.
    """
    count = len(values)
    if count <= MAX_POINTS:
        return np.arange(count)
    edges = np.linspace(0, count, MAX_POINTS // 2 + 1).astype(int)[:-1]
    stretch = np.repeat(np.arange(len(edges)), np.diff([*edges, count]))
    order = np.lexsort((values, stretch))  # NaN come last in their stretch
    finite = np.add.reduceat(np.isfinite(values).astype(int), edges)
    greatest = order[edges + np.maximum(finite - 1, 0)]
    return np.unique(np.concatenate([[0], order[edges], greatest, [count - 1]]))


def moving_mean(values: np.ndarray) -> np.ndarray | None:
    """The mean over a window of a fifteenth of the values around each; None where they are too few
    to need one.

    Near the ends the window is cut, and values that are not finite are left out of it.
    """
    if len(values) < 30:
        return None
    half = max(len(values) // 30, 1)
    finite = np.isfinite(values)
    totals = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    indices = np.arange(len(values))
    low, high = np.maximum(indices - half, 0), np.minimum(indices + half + 1, len(values))
    count = counts[high] - counts[low]
    return np.where(count > 0, (totals[high] - totals[low]) / np.maximum(count, 1), np.nan)


def time_per_stage(lines: Sequence[Line]) -> list[Picture]:
    """Seconds of wall time, a bar a stage, split into the parts that are known."""
    seconds = read.stage_seconds(lines)
    if not seconds:
        return []
    note = "Wall time of each stage, of all processes that worked on it."
    height = 1.15 + 0.34 * len(seconds)
    paint = partial(_draw_seconds, seconds, None)
    broad = Picture("Time per stage", note, paint, width=9.0, height=height, left=1.2, wide=True)
    rows = len({part for parts in seconds.values() for part in parts})
    narrow = replace(
        broad,
        paint=partial(_draw_seconds, seconds, 1),
        width=3.9,
        height=height + LEGEND_ROW * (rows - 1),
        top=broad.top + LEGEND_ROW * (rows - 1),
    )
    return [replace(broad, narrow=narrow)]


def _draw_seconds(
    seconds: dict[str, dict[str, float]], legend_columns: int | None, ax: Axes
) -> None:
    names = sorted(
        {part for parts in seconds.values() for part in parts},
        key=lambda name: (name == "other", name),
    )
    style.plain_axes(ax, "Time per stage", "seconds of wall time", "")
    left = np.zeros(len(seconds))
    for index, name in enumerate(names):
        width = np.asarray([parts.get(name, 0.0) for parts in seconds.values()])
        color = (
            REST if name == "other" and len(names) > 1 else PART_COLORS[index % len(PART_COLORS)]
        )
        label = glossary.part(name)
        ax.barh(list(range(len(seconds))), width, left=left, height=0.62, color=color, label=label)
        left += width
    for index, total in enumerate(left):
        ax.annotate(
            format_seconds(total),
            (total, index),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
        )
    ax.set_yticks(range(len(seconds)), [stage.replace("_", " ") for stage in seconds])
    ax.invert_yaxis()
    # room for the seconds, which stand to the right of a bar
    ax.set_xlim(0, max(left.max(), 1e-9) / (1 - SECONDS_WIDTH / style.PICTURES[ax].axes_width))
    ax.grid(visible=False, axis="y")
    if len(names) > 1:
        style.legend(ax, columns=legend_columns)
