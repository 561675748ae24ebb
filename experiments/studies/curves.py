"""Curves of studies: means over seeds with their intervals, against updates or settings."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from rlhf_jax.report.plots import style
from rlhf_jax.report.statistics import Result, interval

Point = tuple[float, float]
"""A mean over seeds and half of its 95 % interval; nan of one seed."""


def by_update(lines: Sequence[Result], figure: str) -> dict[int, Point]:
    """A figure's mean over seeds at every evaluation that all runs have reached, by update.

    Args:
      lines: runs of one arm, one per seed.
      figure: of an evaluation.
    """
    curves: list[Mapping[int, float]] = [
        {evaluation["update"]: evaluation[figure] for evaluation in line["curve"]} for line in lines
    ]
    reached = sorted(set.intersection(*map(set, curves)))
    return {
        update: interval({index: curve[update] for index, curve in enumerate(curves)})
        for update in reached
    }


def interval_line(
    ax: Axes, places: Sequence[float], points: Sequence[Point], color: str, label: str
) -> None:
    """Means with their intervals; one seed has a mean alone."""
    ax.errorbar(
        places,
        [mean for mean, _ in points],
        [0 if math.isnan(half) else half for _, half in points],
        marker="o",
        markersize=3,
        linewidth=1.2,
        color=color,
        label=label,
    )


def legend_above(ax: Axes) -> None:
    """A legend in one row above the axes, at the right of their title, where no line passes."""
    ax.legend(
        ncols=len(ax.get_legend_handles_labels()[1]),
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.1,
        columnspacing=1.2,
        fontsize=7.5,
        frameon=False,
        labelcolor=style.INK,
    )


def mean_of_planned(line: Result, figure: str, first: int) -> float:
    """The mean of a figure over the planned evaluations of a run from an update on; those that a run
    which diverged did not reach are 0.

    Args:
      line: of the run.
      figure: of an evaluation.
      first: the update.
    """
    planned = (*line["config"]["rlhf.evaluate_at"], line["num_updates"])
    reached = {evaluation["update"]: evaluation[figure] for evaluation in line["curve"]}
    return float(np.mean([reached.get(update) or 0.0 for update in planned if update >= first]))
