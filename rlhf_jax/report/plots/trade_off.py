"""Draws what was gained for how much KL: the win-rate beside best-of-n's, and the learned reward
beside gold.

Best-of-n by gold has, where no two completions tie, KL log n - (n - 1) / n to the policy that it
draws from, and its answer beats one more draw of that policy with probability n / (n + 1). Measured
points are evaluations of "best_of_n" with "n" and "win_rate", where the reward model picks. The
other figures are those of `plots.py`, and "gold_std", the standard deviation of gold over the SFT
policy's samples.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from rlhf_jax.records.jsonl import Line
from rlhf_jax.report import read
from rlhf_jax.report.formats import INTERVAL
from rlhf_jax.report.plots import style
from rlhf_jax.report.plots.style import HELDOUT, INK, MUTED, SECOND, TRAINING, Picture
from rlhf_jax.report.read import BEST_OF_N
from rlhf_jax.report.units import Quantity, Units

KL = "KL to the SFT policy, nats per completion"
LABEL_WIDTH = 0.8
"""Inches of "update 1024" and its distance from the point."""


@dataclass(frozen=True)
class Gain:
    """A score against KL. Beside another it is drawn as gained over the SFT policy, in units of its
    deviation there.
    """

    name: str
    label: str
    color: str
    std: float
    quantity: Quantity


def trade_off(lines: Sequence[Line], units: Units, stage: str = "") -> list[Picture]:
    """Gains against KL: the win-rate beside best-of-n, and the learned reward beside gold."""
    evaluated = [line for line in read.policy_evaluations(lines, stage) if _finite(line, "kl")]
    pictures, judged = [], [line for line in evaluated if _finite(line, "win_rate")]
    if judged:
        paint = partial(_draw_win_rate, judged, read.evaluations(lines, BEST_OF_N))
        note = "Up and to the left is better. Best of n draws n samples of the SFT policy and keeps the best one."
        pictures.append(_picture("Win-rate against KL", note, paint))
    gains = _gains(evaluated, units)
    if gains:
        title = " and ".join(gain.label for gain in gains).capitalize() + " against KL"
        note = "In deviations of SFT samples, so that scores compare. " * (len(gains) > 1)
        note += (
            "Where the learned reward rises and gold does not, the reward model is over-optimised."
            * (len(gains) > 1)
        )
        paint = partial(_draw_gains, title, evaluated, gains)
        pictures.append(_picture(title, note, paint))
    return pictures


def _picture(title: str, note: str, paint: Callable[[Axes], None]) -> Picture:
    broad = Picture(title, note, paint, width=4.9, height=4.0, top=0.9)
    return replace(broad, narrow=replace(broad, width=3.9, height=3.4))


def best_of_n_kl(n: np.ndarray | float) -> np.ndarray:
    """KL of best-of-n to the policy that it draws from, in nats a completion: log n - (n - 1) / n
    (no ties).
    """
    return np.log(n) - (np.asarray(n) - 1) / n


def best_of_n_win_rate(n: np.ndarray | float) -> np.ndarray:
    """Probability that the best of n draws beats one more draw of the same policy: n / (n + 1) (no
    ties).
    """
    return np.asarray(n) / (np.asarray(n) + 1)


def _gains(evaluated: Sequence[Line], units: Units) -> list[Gain]:
    """The scores whose deviation over SFT samples is known; none where the SFT policy itself was
    not evaluated.
    """
    if len(evaluated) < 2 or evaluated[0]["update"] != 0:
        return []
    gold_std = evaluated[0].get("gold_std", math.nan)
    known = (
        Gain("reward_mean", "learned reward", TRAINING, units.learned_std, units.learned),
        Gain(
            "gold_mean",
            "exact match" if units.gold.share else "gold score",
            HELDOUT,
            gold_std,
            units.gold,
        ),
    )
    return [
        gain
        for gain in known
        if gain.std > 0 and all(_finite(line, gain.name) for line in evaluated[:1])
    ]


def _draw_win_rate(evaluated: Sequence[Line], best: Sequence[Line], ax: Axes) -> None:
    style.plain_axes(ax, "Win-rate against KL", KL, "gold win-rate", share=True)
    ax.xaxis.set_major_formatter(style.Numbers())
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
            ax.plot(
                best_of_n_kl(count), best_of_n_win_rate(count), "o", color=MUTED, markersize=3.5
            )
            best_point = (float(best_of_n_kl(count)), float(best_of_n_win_rate(count)))
            ax.annotate(
                f"n={count}",
                best_point,
                (-3, 5),
                textcoords="offset points",
                ha="right",
                fontsize=7.5,
                color=MUTED,
            )
    if best:
        best = sorted(best, key=lambda line: line["n"])
        kl_of_best = best_of_n_kl(np.asarray([line["n"] for line in best], float))
        measured = [line["win_rate"] for line in best]
        ax.plot(
            kl_of_best,
            measured,
            "s:",
            color=SECOND,
            markersize=4,
            label="best of n by the reward model, measured",
        )
    stderr = np.asarray([line.get("win_rate_stderr", math.nan) for line in evaluated], float)
    ax.errorbar(
        kl,
        win_rate,
        INTERVAL * stderr,
        color=HELDOUT,
        marker="o",
        markersize=4,
        linewidth=1.8,
        label="trained",
    )
    for best_point in sorted({0, len(evaluated) - 1}):
        text, point = (
            f"update {evaluated[best_point]['update']}",
            (float(kl[best_point]), float(win_rate[best_point])),
        )
        ax.annotate(text, point, (7, -10), textcoords="offset points", fontsize=8, color=INK)
    ax.margins(x=0.06, y=0.12)
    # room for the label of the last point, which stands to its right
    share = (LABEL_WIDTH - style.RIGHT) / style.PICTURES[ax].axes_width
    low, high = ax.get_xlim()
    ax.set_xlim(low, max(high, low + (float(kl[-1]) - low) / (1 - share)))
    style.legend(ax, columns=1)


def _draw_gains(title: str, evaluated: Sequence[Line], gains: Sequence[Gain], ax: Axes) -> None:
    alone = len(gains) == 1  # nothing to compare with, so that it is drawn as it was measured
    share = alone and gains[0].quantity.share
    unit = gains[0].quantity.unit if alone else "SFT standard deviations, gained"
    style.plain_axes(ax, title, KL, unit, share)
    ax.xaxis.set_major_formatter(style.Numbers())
    for gain in gains:
        kl, values = _points(
            [line for line in evaluated if _finite(line, gain.name)], "kl", gain.name
        )
        shown = values if alone else (values - values[0]) / gain.std
        ax.plot(
            kl, shown, color=gain.color, marker="o", markersize=4, linewidth=1.8, label=gain.label
        )
    style.legend(ax, columns=1)


def _finite(line: Line, name: str) -> bool:
    return isinstance(line.get(name), int | float) and math.isfinite(line[name])


def _points(lines: Sequence[Line], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray([line[x] for line in lines], float), np.asarray(
        [line[y] for line in lines], float
    )
