"""Draws a study of staleness: win-rate against KL by age, final figures against age, differences of drops, progress.

After Figures 3-5, 7 and 8 of Noukhovitch et al. 2024, arXiv 2410.18252. Every function takes the groups of one axis.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.studies.offpolicyness import measures as robustness
from experiments.studies.offpolicyness.measures import SYMBOL, Group
from rlhf_jax.report import style
from rlhf_jax.report.statistics import OfSeed, Result, interval
from rlhf_jax.report.style import HELDOUT, INK, PART_COLORS, REST, SECOND, TRAINING

COLD_TO_HOT = (HELDOUT, "#56b4e9", SECOND, TRAINING, "#d55e00")  # from fresh to old
MARKERS = "os^Dv*"
AXIS_LABELS = {
    "num_minibatches": "minibatches a round (lag 0)",
    "lag": "lag, rounds (one minibatch a round)",
    "num_epochs": "epochs T",
    "samples_per_prompt": "samples a prompt K",
}
KL = "KL to the reference, nats a completion"


def look(place: int, count: int) -> dict[str, Any]:
    """Colour and marker of the place-th of `count` values, the first cold and the last hot."""
    shade = round(place * (len(COLD_TO_HOT) - 1) / max(1, count - 1))
    return {"color": COLD_TO_HOT[shade], "marker": MARKERS[place % len(MARKERS)]}


def mean_curve(results: Sequence[Result], *names: str) -> list[np.ndarray]:
    """Figures of a curve's evaluations, each a mean over seeds."""
    return [np.mean([[line[name] for line in result["curve"]] for result in results], axis=0) for name in names]


def legend(ax: Axes, place: Any = "best", columns: int = 1) -> None:
    ax.legend(loc=place, fontsize=7.5, frameon=False, labelcolor=INK, ncols=columns)


def against_kl(groups: Sequence[Group]) -> Figure:
    """Win-rate against true KL, a panel a group, a line a value, the end of training marked; of a single group gold as well.

    What lies between the SFT policy and the first evaluation in training was not measured, and is dotted.
    """
    panels = [(group, "win_rate") for group in groups]
    panels += [(group, "gold_mean") for group in groups if len(groups) == 1]
    figure, axes = style.panels(len(panels), 3 if len(panels) == 3 else 2, 3.8)
    for ax, (group, name) in zip(axes, panels, strict=True):
        style.axes(ax, group.name, KL, "gold win-rate" if name == "win_rate" else "gold score, points")
        for place, value in enumerate(group.values):
            kl, figures = mean_curve(group.arms[value], "kl", name)
            seen = look(place, len(group.values))
            label = f"{SYMBOL[group.axis]} {value}, mean age {group.age(value)['mean']:.3g}"
            ax.plot(kl[:2], figures[:2], ":", color=seen["color"], linewidth=1)
            ax.plot(kl[1:], figures[1:], linewidth=1.3, markersize=3, label=label, **seen)
            ax.plot(kl[-1:], figures[-1:], markersize=8, markeredgecolor=INK, markeredgewidth=0.8, zorder=3, **seen)
        legend(ax)
        if name == "win_rate":
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    if len(groups) > 1:
        share_limits(axes)
    return figure


def share_limits(axes: Sequence[Axes]) -> None:
    """The same limits in all panels: they are there to be compared."""
    for get, put in (("get_xlim", "set_xlim"), ("get_ylim", "set_ylim")):
        limits = np.array([getattr(ax, get)() for ax in axes])
        for ax in axes:
            getattr(ax, put)(limits[:, 0].min(), limits[:, 1].max())


def by_value(
    ax: Axes, groups: Sequence[Group], of: Callable[[Group, int], OfSeed], without: Group | None = None, skip: int = 0
) -> None:
    """Means with 95 % intervals against the axis's values, side by side for each group.

    `without` leaves a group out, whose colour no other takes; `skip` values are left out at the start.
    """
    values = sorted({value for group in groups for value in group.values[skip:]})
    for place, group in enumerate(groups):
        if group is without:
            continue
        found = [interval(of(group, value)) for value in group.values[skip:]]
        shift = 0.12 * (place - (len(groups) - 1) / 2)
        at = [values.index(value) + shift for value in group.values[skip:]]
        means, halves = zip(*found, strict=True)
        color, marker = PART_COLORS[place % len(PART_COLORS)], MARKERS[place % len(MARKERS)]
        ax.errorbar(
            at, means, np.nan_to_num(halves), color=color, marker=marker, markersize=5, linewidth=1.2, label=group.name
        )
    ax.set_xticks(range(len(values)), [str(value) for value in values])
    ax.set_xlim(-0.5, len(values) - 0.5)
    ax.grid(visible=False, axis="x")


def legend_above(ax: Axes) -> None:
    """A legend in a strip of its own above the data."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.16 * (high - low))
    legend(ax, "upper left", columns=4)


def final_figures(groups: Sequence[Group]) -> Figure:
    """Win-rate, gold and KL at the end of training against the axis's values."""
    figure, axes = style.panels(3, 3, 3.8)
    for ax, name, title, unit in zip(
        axes,
        ("win_rate", "gold_mean", "kl"),
        ("Gold win-rate at the end", "Gold score at the end", "KL at the end"),
        ("share of samples", "points", "nats a completion"),
        strict=True,
    ):
        style.axes(ax, title, AXIS_LABELS[groups[0].axis], unit)
        by_value(ax, groups, lambda group, value, name=name: group.figure(value, name))
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    legend_above(axes[0])
    return figure


def compared(groups: Sequence[Group], reference: Group) -> Figure:
    """Drops beside the reference group's, and gold at one KL beside the fresh arm's; above and below 0."""
    figure, axes = style.panels(2 if len(groups) > 1 else 1, 2, 3.8)
    if len(groups) > 1:
        title = f"Drop in win-rate beyond that of {reference.name}"
        style.axes(axes[0], title, AXIS_LABELS[reference.axis], "percentage points; above 0: less robust")

        def beyond(group: Group, value: int) -> OfSeed:
            return robustness.difference_of_drops(group, reference, value, "win_rate")

        by_value(axes[0], groups, beyond, without=reference, skip=1)
        axes[0].yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    first = f"{SYMBOL[reference.axis]} {reference.first}"
    style.axes(axes[-1], f"Gold at one KL, minus that of {first}", AXIS_LABELS[reference.axis], "points")
    by_value(axes[-1], groups, lambda group, value: robustness.at_one_kl(group, value)[0], skip=1)
    for ax in axes:
        ax.axhline(0, color=REST, linewidth=1.2, zorder=0)
        legend_above(ax)
    return figure


def progress(groups: Sequence[Group]) -> Figure:
    """Win-rate against prompts and against updates, two panels a group: what more updates or samples a prompt buy."""
    figure, axes = style.panels(2 * len(groups), 2, 3.8)
    for place, group in enumerate(groups):
        left, right = axes[2 * place : 2 * place + 2]
        style.axes(left, f"{group.name}: win-rate against prompts", "prompts sampled", "gold win-rate")
        style.axes(right, f"{group.name}: win-rate against updates", "updates", "gold win-rate")
        for number, value in enumerate(group.values):
            update, rate = mean_curve(group.arms[value], "update", "win_rate")
            cost = group.arms[value][0]["trained"]
            seen: dict[str, Any] = look(number, len(group.values)) | {"label": f"{SYMBOL[group.axis]} {value}"}
            left.plot(update * cost["prompts"] / cost["updates"], rate, linewidth=1.5, markersize=4, **seen)
            right.plot(update, rate, linewidth=1.5, markersize=4, **seen)
        for ax in (left, right):
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
            legend(ax)
    return figure
