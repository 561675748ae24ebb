"""Draws what was gained for how much KL: the win-rate beside best-of-n's, and the learned reward beside gold.

Best-of-n by gold has, where no two completions tie, KL log n - (n - 1) / n to the policy that it draws from, and its
answer beats one more draw of that policy with probability n / (n + 1). Measured points are evaluations of "best_of_n"
with "n" and "win_rate", where the reward that was trained on picks. The other figures are those of `plots.py`, and
"gold_std", the standard deviation of gold over the SFT policy's samples.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rlhf_jax.observe.lines import Line
from rlhf_jax.report import read, style
from rlhf_jax.report.plots import INTERVAL
from rlhf_jax.report.read import BEST_OF_N, TRAINED
from rlhf_jax.report.style import HELDOUT, INK, MUTED, SECOND, TRAINING


def trade_off(lines: Sequence[Line], stage: str = TRAINED) -> Figure | None:
    """What was gained for how much KL: the win-rate beside best-of-n, and the learned reward beside gold."""
    evaluated = [line for line in read.policy_evaluations(lines, stage) if _finite(line, "kl")]
    if not any(_finite(line, "win_rate") for line in evaluated):
        return None
    figure, (left, right) = style.panels(2, 2, 4.2)
    _draw_win_rate_against_kl(left, evaluated, read.evaluations(lines, BEST_OF_N))
    _draw_rewards_against_kl(right, evaluated)
    return figure


def best_of_n_kl(n: np.ndarray | float) -> np.ndarray:
    """KL of best-of-n to the policy that it draws from, in nats a completion: log n - (n - 1) / n (no ties)."""
    return np.log(n) - (np.asarray(n) - 1) / n


def best_of_n_win_rate(n: np.ndarray | float) -> np.ndarray:
    """Probability that the best of n draws beats one more draw of the same policy: n / (n + 1) (no ties)."""
    return np.asarray(n) / (np.asarray(n) + 1)


def _draw_win_rate_against_kl(ax: Axes, evaluated: Sequence[Line], best: Sequence[Line]) -> None:
    style.axes(ax, "Win-rate against KL", "KL to the reference policy, nats a completion", "gold win-rate")
    evaluated = [line for line in evaluated if _finite(line, "win_rate")]
    kl, win_rate = _points(evaluated, "kl", "win_rate")
    end = max(kl.max(), 1.0) * 1.05
    n = np.geomspace(1, math.exp(min(end + 1, 700)), 400)  # best-of-n's KL is above log n - 1
    n = n[best_of_n_kl(n) <= end]
    ax.plot(
        best_of_n_kl(n),
        best_of_n_win_rate(n),
        color=MUTED,
        linestyle="--",
        label="best of n by gold against the policy itself, analytic",
    )
    for count in (2, 4, 16, 64, 256):
        if 0.06 * end < best_of_n_kl(count) <= end:
            ax.plot(best_of_n_kl(count), best_of_n_win_rate(count), "o", color=MUTED, markersize=3.5)
            place = (float(best_of_n_kl(count)), float(best_of_n_win_rate(count)))
            ax.annotate(f"n={count}", place, (-3, 5), textcoords="offset points", ha="right", fontsize=7.5, color=MUTED)
    if best:
        best = sorted(best, key=lambda line: line["n"])
        kl_of_best = best_of_n_kl(np.asarray([line["n"] for line in best], float))
        measured = [line["win_rate"] for line in best]
        ax.plot(kl_of_best, measured, "s:", color=SECOND, markersize=4, label="best of n by the reward, measured")
    stderr = np.asarray([line.get("win_rate_stderr", math.nan) for line in evaluated])
    ax.errorbar(
        kl, win_rate, INTERVAL * stderr, color=HELDOUT, marker="o", markersize=4, linewidth=1.8, label="trained"
    )
    for place in sorted({0, len(evaluated) - 1}):
        text, point = f"update {evaluated[place]['update']}", (float(kl[place]), float(win_rate[place]))
        ax.annotate(text, point, (7, -10), textcoords="offset points", fontsize=8, color=INK)
    ax.margins(x=0.1)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.legend(frameon=False, fontsize=8, labelcolor=INK)


def _draw_rewards_against_kl(ax: Axes, evaluated: Sequence[Line]) -> None:
    """Gold in the same unit as the learned reward, so that over-optimisation shows as the curves part."""
    unit = "SFT standard deviations above the SFT policy"
    style.axes(ax, "Learned reward and gold against KL", "KL to the reference policy, nats a completion", unit)
    first = evaluated[0]
    for name, spread, label, color in (
        ("reward_mean", 1.0, "learned reward", TRAINING),
        ("gold_mean", first.get("gold_std", math.nan), "gold score", HELDOUT),
    ):
        lines = [line for line in evaluated if _finite(line, name)]
        if lines and spread > 0:
            kl, values = _points(lines, "kl", name)
            ax.plot(
                kl, (values - values[0]) / spread, color=color, marker="o", markersize=4, linewidth=1.8, label=label
            )
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=8, labelcolor=INK)


def _finite(line: Line, name: str) -> bool:
    return isinstance(line.get(name), int | float) and math.isfinite(line[name])


def _points(lines: Sequence[Line], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray([line[x] for line in lines], float), np.asarray([line[y] for line in lines], float)
