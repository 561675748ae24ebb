"""Writes the page of the study of scaled learning rates from its ended cells; the rules are those of
`protocol.md`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.studies import markdown
from experiments.studies.curves import by_update, mean_of_planned
from experiments.studies.hypotheses import wrong_signs_sentence
from experiments.studies.markdown import Contrast, contrasts_table, number, table, with_interval
from experiments.studies.staleness.passage import below
from rlhf_jax.report.plots import style
from rlhf_jax.report.statistics import OfSeed, Result, by_seed, differences, final

MARGIN = 0.05  # of win-rate
DRAWS = 10_000  # of the bootstrap
CONTRASTS = (("sqrt_ess", "constant"), ("sqrt_ess", "yoked"), ("constant", "plain"))
NAMES = {
    "plain": "not scaled",
    "sqrt_ess": "√ESS",
    "constant": "constant, same mean",
    "yoked": "factors of another seed",
}


def parts(arm: str) -> tuple[str, int, float]:
    """Kind, lag and learning rate by an arm's name, such as `yoked-lag8-0.001`."""
    kind, lag, rate = arm.split("-", 2)
    return kind, int(lag.removeprefix("lag")), float(rate)


def outcome(line: Result) -> float:
    """The mean win-rate of a run over its planned evaluations after update 2 S; those that a run
    which diverged did not reach are 0.
    """
    return mean_of_planned(line, "win_rate", 2 * parts(line["arm"])[1] + 1)


def of_kind(lines: Sequence[Result], kind: str) -> list[Result]:
    """Results of the arms of a kind."""
    return [line for line in lines if parts(line["arm"])[0] == kind]


def fallen(lines: Sequence[Result]) -> int:
    """Runs that were below their best win-rate by more than the study of staleness allows, or
    diverged.
    """
    return sum(bool(line.get("diverged")) or any(below(line)) for line in lines)


def contrasts(lines: Sequence[Result]) -> list[Contrast]:
    """The three primary contrasts, one value per seed."""
    found = []
    for index, (a, b) in enumerate(CONTRASTS, 1):
        pair = of_kind(lines, a), of_kind(lines, b)
        values = differences(*(by_seed(some, outcome) for some in pair))
        note = f"{fallen(pair[0])} and {fallen(pair[1])} of {len(pair[0])} runs collapsed"
        name = f"{index}. {NAMES[a]} − {NAMES[b]}"
        found.append(Contrast(name, values, MARGIN, "of win-rate", 3, note))
    return found


def bootstrap(values: OfSeed) -> tuple[float, float]:
    """A 95 % interval of a mean by resampling seeds."""
    value_S = np.array(list(values.values()))
    drawn = np.random.default_rng(0).integers(0, len(value_S), (DRAWS, len(value_S)))
    low, high = np.quantile(value_S[drawn].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def bootstraps(lines: Sequence[Result]) -> str:
    """A sentence with the interval of every contrast, and one on each seed alone."""
    said, tests = [], contrasts(lines)
    for contrast in tests:
        low, high = (number(end, 3, signed=True) for end in bootstrap(contrast.values))
        said.append(f"{low} to {high}")
    return f"By resampling seeds the intervals are {', '.join(said)}. {wrong_signs_sentence(tests)}"


def control(lines: Sequence[Result]) -> str:
    """A sentence on the positive control: the third contrast, by the protocol's rule."""
    found = contrasts(lines)
    if markdown.verdict(found[2], markdown.adjusted(found)[2]) == "larger":
        return "The positive control, contrast 3, holds: a smaller learning rate helps here."
    return (
        "The positive control, contrast 3, was not shown. So contrasts 1 and 2 were asked where there "
        "may be little to gain."
    )


def groups(lines: Sequence[Result]) -> dict[tuple[int, float], dict[str, list[Result]]]:
    """Results by lag and learning rate, and then by kind."""
    found: dict[tuple[int, float], dict[str, list[Result]]] = {}
    for line in lines:
        kind, lag, rate = parts(line["arm"])
        found.setdefault((lag, rate), {}).setdefault(kind, []).append(line)
    return found


def factor(line: Result) -> float:
    """The mean factor of a run's updates, by which the learning rate of its config is multiplied."""
    return float(np.mean([value or 0.0 for value in line["measured"]["learning_rate_scale"]]))


def cells_table(lines: Sequence[Result]) -> str:
    """A row for each lag, learning rate and arm: outcome, last win-rate, mean factor, collapses."""
    rows = []
    for (lag, rate), kinds in groups(lines).items():
        for kind, some in kinds.items():
            factors = by_seed(some, factor)
            if kind == "constant":
                factors = by_seed(
                    some,
                    lambda line, rate=rate: line["config"]["rlhf.optimizer.learning_rate"] / rate,
                )
            rows.append(
                [
                    str(lag),
                    f"{rate:g}",
                    NAMES[kind],
                    with_interval(by_seed(some, outcome), 3),
                    with_interval(by_seed(some, lambda line: final(line, "win_rate")), 3),
                    with_interval(factors, 2),
                    f"{fallen(some)} of {len(some)}",
                ]
            )
    head = ("lag", "learning rate", "updates", "mean win-rate", "win-rate at the end")
    return table((*head, "mean factor", "collapsed"), rows)


def curves_plot(lines: Sequence[Result]) -> Figure:
    """Win-rate against updates, the mean over seeds with its interval; a panel for each lag and
    learning rate.
    """
    found = groups(lines)
    figure, axes = style.panels(len(found), 2, 2.8)
    for ax, ((lag, rate), kinds) in zip(axes, found.items(), strict=True):
        style.axes(ax, f"lag {lag}, learning rate {rate:g}", "update", "held-out win-rate")
        for color, kind in zip(style.PART_COLORS, NAMES, strict=False):
            _draw(ax, kinds[kind], color, NAMES[kind])
        ax.set_ylim(0, 1)
    axes[0].legend(loc="lower right", ncols=2, fontsize=7.5, frameon=False, labelcolor=style.INK)
    return figure


def _draw(ax: style.Axes, lines: Sequence[Result], color: str, label: str) -> None:
    """Draws the curve of some runs of one arm, up to the first evaluation that one did not reach."""
    points = by_update(lines, "win_rate")
    updates = list(points)
    middle, half = (np.array(values) for values in zip(*points.values(), strict=True))
    ax.plot(updates, middle, color=color, linewidth=1.2, label=label)
    if len(lines) > 1:
        ax.fill_between(updates, middle - half, middle + half, color=color, alpha=0.12, linewidth=0)


def pages(lines: Sequence[Result]) -> dict[str, str | Figure]:
    """The files of the page by their names in `docs/results/`."""
    text = markdown.fill(
        Path(__file__).with_name("page.md"),
        sources=markdown.sources(lines),
        contrasts=contrasts_table(contrasts(lines)),
        bootstraps=bootstraps(lines),
        control=control(lines),
        cells=cells_table(lines),
        margin=f"{MARGIN:.2f}",
    )
    return {
        "learning_rate_scale.md": text,
        "learning_rate_scale_curves.png": curves_plot(lines),
    }
