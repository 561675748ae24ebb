"""Draws seconds of a round as plans are expected to take beside what they took: points on a
diagonal, if all is well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from rlhf_jax.report.plots import style

COLORS = (style.HELDOUT, style.TRAINING, style.SECOND, style.THIRD)


@dataclass(frozen=True)
class Points:
    """A panel: seconds of rounds by what they are of; `lines` are ratios of expected to measured
    that are drawn.
    """

    title: str
    series: dict[str, tuple[Sequence[float], Sequence[float]]]  # name -> (measured, expected)
    lines: tuple[float, ...] = (0.85, 1.15)


def draw(panels: Sequence[Points]) -> Figure:
    """A panel each, both axes in seconds and of one range: logarithmic where seconds differ
    tenfold.
    """
    figure, axes = style.panels(len(panels), len(panels), 4.6)
    for ax, points in zip(axes, panels, strict=True):
        style.axes(ax, points.title, "seconds a round, measured", "seconds a round, expected")
        _diagonals(ax, points)
        for color, (name, (measured, expected)) in zip(COLORS, points.series.items(), strict=False):
            ax.scatter(
                measured,
                expected,
                s=26,
                color=color,
                label=name,
                edgecolors="white",
                linewidths=0.6,
                zorder=3,
            )
        if len(points.series) > 1:
            ax.legend(frameon=False, fontsize=8, labelcolor=style.INK, loc="upper left")
    return figure


def _diagonals(ax: Any, points: Points) -> None:
    values = [value for pair in points.series.values() for of in pair for value in of]
    low, high = min(values) / 1.12, max(values) * 1.12
    if high > 10 * low:
        ax.set_xscale("log")
        ax.set_yscale("log")
    ax.plot([low, high], [low, high], color=style.MUTED, linewidth=1)
    for ratio in points.lines:
        ax.plot(
            [low, high], [ratio * low, ratio * high], color=style.REST, linewidth=1, linestyle="--"
        )
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)
    ax.set_aspect("equal")
