"""Draws a run: each function takes lines of `metrics.jsonl` and gives pictures, none where nothing
was measured.
"""

from collections.abc import Sequence
from dataclasses import replace
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
    drawable = [panel for panel in panels_of(stage, units) if _drawable(panel, trained, evaluated)]
    return [_picture(panel, trained, evaluated) for panel in drawable]


def stage_curves(lines: Sequence[Line], units: Units, stage: str) -> list[Picture]:
    """Every figure of a stage's updates that `learning_curves` does not show, each in a panel under
    its own name.
    """
    trained = read.updates(lines, stage)
    shown = (
        {curve.name for panel in panels_of(stage, units) for curve in panel.curves}
        if stage == read.trained(lines)
        else set()
    )
    names = [
        name
        for name in read.figure_names(trained)
        if name not in shown and read.series(trained, name)
    ]
    pictures = []
    for name in names:
        curve = Curve(name, "updates", TRAINING, evaluated=False)
        panel = Panel(glossary.title(name, units), "", glossary.note(name), (curve,))
        pictures.append(replace(_picture(panel, trained, []), height=2.3))
    return pictures


def _picture(panel: Panel, trained: Sequence[Line], evaluated: Sequence[Line]) -> Picture:
    return Picture(panel.title, panel.note, partial(_draw_panel, panel, trained, evaluated))


def _drawable(panel: Panel, trained: Sequence[Line], evaluated: Sequence[Line]) -> bool:
    return any(
        read.series(evaluated if curve.evaluated else trained, curve.name) for curve in panel.curves
    )


def _draw_panel(panel: Panel, trained: Sequence[Line], evaluated: Sequence[Line], ax: Axes) -> None:
    style.plain_axes(ax, panel.title, "update", panel.unit, panel.share)
    if panel.level is not None:
        ax.axhline(panel.level, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    drawn = [
        (curve, series)
        for curve in panel.curves
        if (series := read.series(evaluated if curve.evaluated else trained, curve.name))
        is not None
    ]
    for curve, series in _told_apart(drawn):
        _draw_curve(ax, curve, series)
    if panel.share:
        _widen(ax)
    ax.xaxis.set_major_locator(_ticks([line["update"] for line in evaluated]))
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


def _draw_curve(ax: Axes, curve: Curve, series: Series) -> None:
    x, y, stderr = (
        np.asarray(column, float) for column in (series.updates, series.values, series.stderr)
    )
    lost, label = int(np.isnan(y).sum()), curve.label
    if lost:
        text = f"{lost} of {len(y)} not finite"
        ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", fontsize=8, color=MUTED)
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
            y - INTERVAL * stderr,
            y + INTERVAL * stderr,
            color=curve.color,
            alpha=0.18,
            linewidth=0,
        )
        return
    smooth = moving_mean(y)
    if smooth is not None:
        ax.plot(x, y, color=curve.color, linewidth=0.7, alpha=0.4)
    marker = "." if len(x) == 1 else None
    ax.plot(
        x,
        y if smooth is None else smooth,
        color=curve.color,
        linewidth=1.6,
        marker=marker,
        label=label,
    )


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
