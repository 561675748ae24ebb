"""Draws a run: each function takes lines of `metrics.jsonl` and gives a Figure of matplotlib, or None without data.

Figures that are looked for by name, and their units:

    of an evaluation   gold_mean (points of the task's judge), win_rate, win_rate_strict, win_rate_greedy, finished
                       (shares), reward_mean (standard deviations of the SFT policy), kl (nats a completion), entropy
                       (nats a token), completion_length (tokens), distinct_completions (share), and `<name>_stderr`
                       of any of them
    of an update       loss, and of the samples of its round: reward_standardized, behavior_kl_k1, entropy,
                       sampled_length, finished, in the units above

Whatever else an update says is drawn by `stage_curves` under its own name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rlhf_jax.observe.lines import Line
from rlhf_jax.observe.progress import format_seconds
from rlhf_jax.report import read, style
from rlhf_jax.report.read import TRAINED, Series
from rlhf_jax.report.style import HELDOUT, INK, MUTED, PART_COLORS, REST, SECOND, THIRD, TRAINING

INTERVAL = 1.96  # standard errors of a 95 % interval
COLUMNS = 3


@dataclass(frozen=True)
class Curve:
    """A figure in a panel: its name, whether evaluations or updates have it, and how it looks."""

    name: str
    label: str
    color: str = HELDOUT
    evaluated: bool = True
    line: str = "-"


@dataclass(frozen=True)
class Panel:
    """A pair of axes; `level` is a value to read the curves against."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    level: float | None = None
    share: bool = False


def _both(name: str, training_name: str | None = None) -> tuple[Curve, ...]:
    return (
        Curve(training_name or name, "training samples", TRAINING, evaluated=False),
        Curve(name, "held-out prompts"),
    )


PANELS = (
    Panel("Gold score", "points", (Curve("gold_mean", "held-out prompts"),)),
    Panel(
        "Win-rate against references (gold)",
        "share of samples",
        (
            Curve("win_rate", "ties count ½"),
            Curve("win_rate_greedy", "greedy", SECOND, line="--"),
            Curve("win_rate_strict", "strict", THIRD, line=":"),
        ),
        level=0.5,
        share=True,
    ),
    Panel("Learned reward", "SFT standard deviations", _both("reward_mean", "reward_standardized")),
    Panel("KL to the reference policy", "nats a completion", _both("kl", "behavior_kl_k1")),
    Panel("Entropy", "nats a token", _both("entropy")),
    Panel("Completion length", "tokens", _both("completion_length", "sampled_length")),
    Panel("Distinct completions", "share of samples", (Curve("distinct_completions", "held-out prompts"),), share=True),
    Panel("Completions that end (EOS)", "share of samples", _both("finished"), share=True),
    Panel("Loss", "minibatch mean", (Curve("loss", "training samples", TRAINING, evaluated=False),)),
)
SHOWN = frozenset(curve.name for panel in PANELS for curve in panel.curves)


def learning_curves(lines: Sequence[Line], stage: str = TRAINED) -> Figure | None:
    """What a policy's training did: a panel for each figure of `PANELS` that the lines have."""
    trained, evaluated = read.updates(lines, stage), read.policy_evaluations(lines, stage)
    panels = [panel for panel in PANELS if _drawable(panel, trained, evaluated)]
    figure, axes = _grid(len(panels))
    for panel, ax in zip(panels, axes, strict=True):
        _draw_panel(ax, panel, trained, evaluated)
    return figure


def stage_curves(lines: Sequence[Line], stage: str) -> Figure | None:
    """Every figure of a stage's updates that `learning_curves` does not show, each in a panel under its own name."""
    trained = read.updates(lines, stage)
    skipped = SHOWN if stage == TRAINED else frozenset()
    names = [name for name in read.figure_names(trained) if name not in skipped and read.series(trained, name)]
    figure, axes = _grid(len(names), height=2.1)
    for name, ax in zip(names, axes, strict=True):
        curve = Curve(name, "training samples", TRAINING, evaluated=False)
        _draw_panel(ax, Panel(name.replace("_", " "), "", (curve,)), trained, [])
    return figure


def _drawable(panel: Panel, trained: Sequence[Line], evaluated: Sequence[Line]) -> bool:
    return any(read.series(evaluated if curve.evaluated else trained, curve.name) for curve in panel.curves)


def _grid(count: int, height: float = 2.5) -> tuple[Figure | None, list[Axes]]:
    if not count:
        return None, []
    return style.panels(count, COLUMNS, height)


def _draw_panel(ax: Axes, panel: Panel, trained: Sequence[Line], evaluated: Sequence[Line]) -> None:
    style.axes(ax, panel.title, "update", panel.unit)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    if panel.level is not None:
        ax.axhline(panel.level, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    for curve in panel.curves:
        found = read.series(evaluated if curve.evaluated else trained, curve.name)
        if found is not None:
            _draw_curve(ax, curve, found)
    if panel.share:
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    if len(ax.get_legend_handles_labels()[0]) > 1:
        ax.legend(frameon=False, fontsize=8, labelcolor=INK)


def _draw_curve(ax: Axes, curve: Curve, found: Series) -> None:
    x, y, stderr = (np.asarray(part, float) for part in (found.updates, found.values, found.stderr))
    lost, label = int(np.isnan(y).sum()), curve.label
    if lost:
        text = f"{lost} of {len(y)} not finite"
        ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", fontsize=8, color=MUTED)
    if curve.evaluated:
        ax.plot(x, y, curve.line, color=curve.color, marker="o", markersize=3.5, linewidth=1.8, label=label)
        ax.fill_between(x, y - INTERVAL * stderr, y + INTERVAL * stderr, color=curve.color, alpha=0.18, linewidth=0)
        return
    smooth = moving_mean(y)
    if smooth is not None:
        ax.plot(x, y, color=curve.color, linewidth=0.7, alpha=0.4)
    marker = "." if len(x) == 1 else None
    ax.plot(x, y if smooth is None else smooth, color=curve.color, linewidth=1.6, marker=marker, label=label)


def moving_mean(values: np.ndarray) -> np.ndarray | None:
    """The mean over a window of a fifteenth of the values around each; None where they are too few to need one.

    Near the ends the window is cut, and values that are not finite are left out of it.
    """
    if len(values) < 30:
        return None
    half = max(len(values) // 30, 1)
    finite = np.isfinite(values)
    totals = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    places = np.arange(len(values))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    count = counts[high] - counts[low]
    return np.where(count > 0, (totals[high] - totals[low]) / np.maximum(count, 1), np.nan)


def time_per_stage(lines: Sequence[Line]) -> Figure | None:
    """Seconds of wall time, a bar a stage, split into the parts that its timing names."""
    seconds = read.stage_seconds(lines)
    if not seconds:
        return None
    names = sorted({part for parts in seconds.values() for part in parts}, key=lambda name: (name == "other", name))
    figure, (ax,) = style.panels(1, 1, 0.9 + 0.36 * len(seconds))
    figure.subplots_adjust(left=1.15 / 12)
    style.axes(ax, "Time per stage", "seconds of wall time", "")
    left = np.zeros(len(seconds))
    for place, name in enumerate(names):
        width = np.asarray([parts.get(name, 0.0) for parts in seconds.values()])
        color = REST if name == "other" and len(names) > 1 else PART_COLORS[place % len(PART_COLORS)]
        ax.barh(list(seconds), width, left=left, height=0.62, color=color, label=name.replace("_", " "))
        left += width
    for place, total in enumerate(left):
        ax.annotate(
            format_seconds(total),
            (total, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
        )
    ax.invert_yaxis()
    ax.margins(x=0.08)
    ax.grid(visible=False, axis="y")
    if len(names) > 1:
        ax.legend(
            frameon=False, fontsize=8, labelcolor=INK, ncols=len(names), loc="lower right", bbox_to_anchor=(1, 0.99)
        )
    return figure
