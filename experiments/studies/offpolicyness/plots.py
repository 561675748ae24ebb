"""Draws a study of staleness: win-rate against KL by age, and final figures against age.

After Figures 3 and 4 of Noukhovitch et al. 2024, arXiv 2410.18252. Every function takes the groups
of one axis.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from matplotlib.typing import LegendLocType

from experiments.studies.offpolicyness.measures import SYMBOL, Group
from rlhf_jax.report.plots import style
from rlhf_jax.report.plots.style import HELDOUT, INK, PART_COLORS, SECOND, TRAINING
from rlhf_jax.report.statistics import Result, interval

COLD_TO_HOT = (HELDOUT, "#56b4e9", SECOND, TRAINING, "#d55e00")  # from fresh to old
MARKERS = "os^Dv*"
LINES = {"": "-", "behavior": "--", "proximal": ":", "truncate": "-"}  # by correction
AXIS_LABELS = {
    "num_minibatches": "minibatches per round (lag 0)",
    "lag": "lag, rounds (one minibatch per round)",
    "num_epochs": "epochs T",
    "samples_per_prompt": "samples per prompt K",
}
LONG_LABEL = 12  # letters of which a row of a panel's legend holds two
KL = "KL to the reference, nats per completion"


def look(index: int, count: int) -> dict[str, Any]:
    """Colour and marker of the place-th of `count` values, the first cold and the last hot."""
    shade = round(index * (len(COLD_TO_HOT) - 1) / max(1, count - 1))
    return {"color": COLD_TO_HOT[shade], "marker": MARKERS[index % len(MARKERS)]}


def mean_curve(results: Sequence[Result], *names: str) -> list[np.ndarray]:
    """Figures of a curve's evaluations, each a mean over the seeds that came to their end."""
    whole = [result for result in results if not result.get("diverged")]
    return [
        np.mean([[line[name] for line in result["curve"]] for result in whole], axis=0)
        for name in names
    ]


def legend(ax: Axes, location: LegendLocType = "best", columns: int = 1) -> None:
    ax.legend(loc=location, fontsize=7.5, frameon=False, labelcolor=INK, ncols=columns)


def against(groups: Sequence[Group], divergence: str) -> Figure:
    """Win-rate against a measure of KL, a panel for each group, a line for each value, the end of
    training marked.

    Args:
      groups: of one axis.
      divergence: "kl", true KL of samples at temperature 1; or "kl_perplexity", the paper's
        measure.

    The segment between the SFT policy and the first evaluation in training is dotted. An arm with a
    collapsed run has a thin line for each seed in the place of the mean, cut at the limits of the
    means' panels.
    """
    figure, axes = style.panels(len(groups), 4 if len(groups) > 3 else len(groups), 3.6)
    for ax, group in zip(axes, groups, strict=True):
        style.axes(
            ax,
            group.name,
            KL if divergence == "kl" else "KL as perplexity, greedy",
            "gold win-rate",
        )
        for index, value in enumerate(group.values):
            if group.num_collapsed(value):
                continue
            seen = look(index, len(group.values))
            kl, figures = mean_curve(group.arms[value], divergence, "win_rate")
            ax.plot(kl[:2], figures[:2], ":", color=seen["color"], linewidth=1)
            ax.plot(
                kl[1:],
                figures[1:],
                linewidth=1.3,
                markersize=3,
                label=f"{SYMBOL[group.axis]} {value}",
                **seen,
            )
            ax.plot(
                kl[-1:],
                figures[-1:],
                markersize=8,
                markeredgecolor=INK,
                markeredgewidth=0.8,
                zorder=3,
                **seen,
            )
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    share_limits(axes)
    for ax, group in zip(axes, groups, strict=True):
        ax.autoscale(False)  # a collapsed run may be far outside of all others
        for index, value in enumerate(group.values):
            if group.num_collapsed(value):
                label = f"{SYMBOL[group.axis]} {value}, each seed"
                seen = look(index, len(group.values))
                seed_by_seed(ax, group.arms[value], divergence, label, seen)
        legend(ax)
    return figure


def seed_by_seed(
    ax: Axes, results: Sequence[Result], divergence: str, label: str, seen: dict[str, Any]
) -> None:
    """A thin line for each run of an arm, its end marked by a hollow marker.

    Args:
      ax: the panel.
      results: runs of one arm; a diverged one is left out.
      divergence: as in `against`.
      label: of the arm, for the legend.
      seen: colour and marker of the arm.
    """
    labels = iter([label])  # one entry of the legend for all of them
    for result in results:
        if not result.get("diverged"):
            kl, figures = mean_curve([result], divergence, "win_rate")
            line: dict[str, Any] = seen | {"marker": "", "label": next(labels, "_seed")}
            ax.plot(kl[1:], figures[1:], linewidth=0.7, alpha=0.6, **line)
            ax.plot(kl[-1:], figures[-1:], markersize=5, markerfacecolor="none", **seen)


def share_limits(axes: Sequence[Axes]) -> None:
    """The same limits in all panels: they are there to be compared."""
    for get, put in (("get_xlim", "set_xlim"), ("get_ylim", "set_ylim")):
        limits = np.array([getattr(ax, get)() for ax in axes])
        for ax in axes:
            getattr(ax, put)(limits[:, 0].min(), limits[:, 1].max())


def by_value(ax: Axes, groups: Sequence[Group], name: str) -> None:
    """Means of a last figure with 95 % intervals against the axis's values, side by side for each
    group.

    A colour and marker for each algorithm, a kind of line for each correction; where groups differ in
    neither, a colour and marker for each group. Hollow markers are the single seeds of an arm with a
    collapsed run.
    """
    values = sorted({value for group in groups for value in group.values})
    losses = {(group.algorithm, group.correction) for group in groups}
    looks = [group.algorithm if len(losses) == len(groups) else group.name for group in groups]
    kinds = list(dict.fromkeys(looks))
    for index, group in enumerate(groups):
        shift = 0.5 * (index / max(1, len(groups) - 1) - 0.5)
        number = kinds.index(looks[index])
        look_of_group: dict[str, Any] = {
            "color": PART_COLORS[number],
            "marker": MARKERS[number],
            "label": group.name,
        }
        whole = [value for value in group.values if not group.num_collapsed(value)]
        for value in group.values:
            if value not in whole:
                ends = list(group.figure(value, name).values())
                hollow: dict[str, Any] = look_of_group | {
                    "label": "_seeds",
                    "markerfacecolor": "none",
                }
                at = [values.index(value) + shift] * len(ends)
                ax.plot(at, ends, linestyle="", markersize=5, **hollow)
        intervals = [interval(group.figure(value, name)) for value in whole]
        ax.errorbar(
            [values.index(value) + shift for value in whole],
            [mean for mean, _ in intervals],
            np.nan_to_num([half for _, half in intervals]),
            linestyle=LINES[group.correction],
            markersize=4,
            linewidth=1.2,
            **look_of_group,
        )
    ax.set_xticks(range(len(values)), [str(value) for value in values])
    ax.set_xlim(-0.5, len(values) - 0.5)
    ax.grid(visible=False, axis="x")


def legend_above(ax: Axes) -> None:
    """A legend in a strip of its own above the data."""
    low, high = ax.get_ylim()
    labels = ax.get_legend_handles_labels()[1]
    columns = 2 if len(labels) > 5 or max(map(len, labels)) > LONG_LABEL else 3
    rows = -(-len(labels) // columns)
    ax.set_ylim(low, high + 0.08 * (rows + 1) * (high - low))
    legend(ax, "upper left", columns=columns)


def final_figures(groups: Sequence[Group]) -> Figure:
    """Win-rate, gold and KL at the end of training against the axis's values."""
    figure, axes = style.panels(3, 3, 3.8)
    for ax, name, title, unit in zip(
        axes,
        ("win_rate", "gold_mean", "kl"),
        ("Gold win-rate at the end", "Gold score at the end", "KL at the end"),
        ("share of samples", "points", "nats per completion"),
        strict=True,
    ):
        style.axes(ax, title, AXIS_LABELS[groups[0].axis], unit)
        by_value(ax, groups, name)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    legend_above(axes[0])
    low, high = axes[0].get_ylim()
    axes[0].set_yticks([tick for tick in axes[0].get_yticks() if low <= tick <= min(high, 1.0)])
    return figure
