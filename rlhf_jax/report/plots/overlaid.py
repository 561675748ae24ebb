"""Draws curves of several groups of runs over each other, in the colours by which a page names
them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from rlhf_jax.records.jsonl import Line
from rlhf_jax.report.plots import style
from rlhf_jax.report.plots.style import PART_COLORS, Picture

LINES = ("-", "--", ":")


@dataclass(frozen=True)
class Axis:
    """The labels of a picture."""

    title: str
    x_label: str
    unit: str
    share: bool = False


def color(index: int) -> str:
    """The colour of a group."""
    return PART_COLORS[index % len(PART_COLORS)]


def line(index: int) -> str:
    """The line of a group: groups of one colour have different ones."""
    return LINES[index // len(PART_COLORS) % len(LINES)]


def picture(axis: Axis, note: str, curves: Mapping[str, Sequence[Line]]) -> Picture | None:
    """A picture with the curve of each group; None where no group has two points.

    Args:
      axis: the labels.
      note: one line below the picture.
      curves: points {"x", "mean", "half"} by a group's letter, for every group, in order.
    """
    if not any(len(points) > 1 for points in curves.values()):
        return None
    return Picture(axis.title, note, partial(_draw, axis, curves))


def _draw(axis: Axis, curves: Mapping[str, Sequence[Line]], ax: Axes) -> None:
    style.plain_axes(ax, axis.title, axis.x_label, axis.unit, axis.share)
    for index, (letter, points) in enumerate(curves.items()):
        if not points:
            continue
        x, mean, half = (
            np.array([point[key] for point in points], float) for key in ("x", "mean", "half")
        )
        ax.plot(
            x,
            mean,
            line(index),
            color=color(index),
            marker="o",
            markersize=3,
            linewidth=1.8,
            label=letter,
        )
        if np.isfinite(half).any():
            ax.fill_between(
                x, mean - half, mean + half, color=color(index), alpha=0.16, linewidth=0
            )
    style.legend(ax, columns=min(len(curves), 8))
