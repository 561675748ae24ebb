"""Writes the page of the study of staleness from its ended cells; the rules are those of
`protocol.md`.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.studies import markdown
from experiments.studies.censored import pseudo_values
from experiments.studies.curves import legend_above
from experiments.studies.hypotheses import wrong_signs
from experiments.studies.markdown import LEVEL, number, probability, table, with_interval
from experiments.studies.staleness.passage import (
    AGE,
    DROP,
    LAW,
    PREDICTORS,
    RATE,
    areas,
    below,
    oldest_of,
    passage,
    slopes,
)
from rlhf_jax.report.plots import style
from rlhf_jax.report.statistics import (
    OfSeed,
    Result,
    by_seed,
    final,
    holm,
    interval,
    p_value_below,
    p_value_equivalent,
)

SLOPE_MARGIN = 0.25  # of b_S around 1
CYCLE_MARGIN = 0.35  # of δ around 0 and around −log 2
AREA_MARGIN = 0.05
OTHER_DROPS = (0.10, 0.30)


def of_seeds(lines: Sequence[Result], statistic: Callable[[list[Result]], float]) -> OfSeed:
    """Jackknife pseudo-values of a statistic of several runs, one per seed."""
    return pseudo_values(
        {line["seed"] for line in lines},
        lambda seeds: statistic([line for line in lines if line["seed"] in seeds]),
    )


def coefficients(lines: Sequence[Result]) -> dict[str, OfSeed]:
    """Every coefficient of `passage.slopes`, by seed."""
    known: dict[frozenset[int], dict[str, float]] = {}

    def found(seeds: frozenset[int]) -> dict[str, float]:
        if seeds not in known:
            known[seeds] = slopes([passage(line) for line in lines if line["seed"] in seeds])
        return known[seeds]

    seeds = {line["seed"] for line in lines}
    return {
        name: pseudo_values(seeds, lambda some, name=name: found(some)[name])
        for name in ("age", "rate", "cycle")
    }


def constant_lags(lines: Sequence[Result]) -> list[Result]:
    """Results of the arms whose sampler is as old in every round."""
    return [line for line in lines if not oldest_of(line["arm"])[0]]


def slope_result(values: OfSeed, p: float) -> str:
    """The result of hypothesis 1: the whole 95 % interval must lie within the margin."""
    mean, half = interval(values)
    low, high = mean - half, mean + half
    if abs(mean - 1) + half < SLOPE_MARGIN and p < LEVEL:
        return f"supported: within {1 - SLOPE_MARGIN:g} to {1 + SLOPE_MARGIN:g}"
    if low > 1 or high < 1:
        return "refuted: the interval excludes 1"
    return f"undecided: {number(low, 2)} to {number(high, 2)}"


def primary_table(lines: Sequence[Result], slope: OfSeed) -> str:
    """The primary tests with Holm's p-values.

    Args:
      lines: of all cells.
      slope: b_S by seed.
    """
    lags = constant_lags(lines)
    cycle = coefficients(lines)["cycle"]
    gain = of_seeds(lags, lambda some: (found := areas(some))["row ESS"] - found[AGE])
    shifted = {seed: value + math.log(2) for seed, value in cycle.items()}
    p = [
        p_value_equivalent([value - 1 for value in slope.values()], SLOPE_MARGIN),
        min(
            p_value_equivalent(list(cycle.values()), CYCLE_MARGIN),
            p_value_equivalent(list(shifted.values()), CYCLE_MARGIN),
        ),
        p_value_below([-value for value in gain.values()], -AREA_MARGIN),
    ]
    adjusted = holm(p)
    results = [
        slope_result(slope, adjusted[0]),
        cycle_result(cycle, adjusted[1]),
        area_result(gain, adjusted[2]),
    ]
    names = (
        "1. b_S, the exponent of age in the time to collapse",
        "2. δ, log of a cycle's effective age over its largest (mean: −0.69)",
        f"3. Area of row ESS − area of {AGE}",
    )
    rows = [
        [name, with_interval(values, 2), probability(one), probability(corrected), result]
        for name, values, one, corrected, result in zip(
            names, (slope, cycle, gain), p, adjusted, results, strict=True
        )
    ]
    return table(("hypothesis", "estimate, 95 % interval", "p", "p, Holm", "result"), rows)


def cycle_result(values: OfSeed, p: float) -> str:
    """The result of hypothesis 2: which age of a cycle counts."""
    mean, half = interval(values)
    for where, name in ((0.0, "the largest age counts"), (-math.log(2), "the mean age counts")):
        if abs(mean - where) + half < CYCLE_MARGIN and p < LEVEL:
            return f"supported: {name}"
    return f"undecided: {number(mean - half, 2)} to {number(mean + half, 2)}"


def area_result(values: OfSeed, p: float) -> str:
    """The result of hypothesis 3: whether row ESS says more than age."""
    mean, half = interval(values)
    if p < LEVEL:
        return f"supported: more than {AREA_MARGIN:g}"
    if mean + half < AREA_MARGIN:
        return f"refuted: less than {AREA_MARGIN:g}"
    return f"undecided: {number(mean - half, 2)} to {number(mean + half, 2)}"


def other_drops(lines: Sequence[Result]) -> str:
    """A sentence with b_S of the runs of constant lag for other Δ."""
    lags = constant_lags(lines)
    said = []
    for drop in OTHER_DROPS:
        values = of_seeds(
            lags, lambda some, drop=drop: slopes([passage(line, drop) for line in some])["age"]
        )
        said.append(f"{with_interval(values, 2)} with a Δ of {drop:.2f}")
    return f"b_S is {' and '.join(said)}."


def predictors_table(lines: Sequence[Result]) -> str:
    """The area under the operating curve of every predictor, over the runs of constant lag."""
    lags = constant_lags(lines)
    found = {seed: areas([line for line in lags if line["seed"] == seed]) for seed in _seeds(lags)}
    rows = [
        [name, with_interval({seed: values[name] for seed, values in found.items()}, 2)]
        for name in (*PREDICTORS, AGE, LAW)
    ]
    return table(("predictor", "area, 95 % interval over seeds"), rows)


def _seeds(lines: Sequence[Result]) -> list[int]:
    return sorted({line["seed"] for line in lines})


def cells(lines: Sequence[Result]) -> dict[tuple[str, float], list[Result]]:
    """Results by arm and learning rate, in the order of the cells."""
    found: dict[tuple[str, float], list[Result]] = {}
    for line in lines:
        found.setdefault((line["arm"], line["setting"][RATE]), []).append(line)
    return found


def clock_name(arm: str) -> str:
    """An arm in words."""
    cyclic, oldest = oldest_of(arm)
    return f"renewed every {oldest + 1} rounds" if cyclic else f"lag {oldest}"


def times(lines: Sequence[Result]) -> str:
    """First passages of some runs: "52, 56, > 128", those that are too early with "≤"."""
    found = sorted((passage(line) for line in lines), key=lambda item: (item.high, item.low))
    shown = []
    for item in found:
        if not item.happened:
            shown.append(f"> {item.low:.0f}")
        else:
            shown.append(f"≤ {2 * item.oldest}" if item.too_early else f"{item.high:.0f}")
    return ", ".join(shown)


def cells_table(lines: Sequence[Result]) -> str:
    """A row for each clock and learning rate: first passages, recoveries, time below, last
    win-rate.
    """
    rows = []
    for (arm, rate), some in cells(lines).items():
        fallen = [below(line) for line in some]
        recovered = sum(any(values) and not values[-1] for values in fallen)
        rows.append(
            [
                clock_name(arm),
                f"{rate:g}",
                times(some),
                f"{recovered} of {sum(any(values) for values in fallen)}",
                with_interval([float(np.mean(values)) for values in fallen], 2),
                with_interval(by_seed(some, lambda line: final(line, "win_rate")), 3),
            ]
        )
    head = ("sampler", "learning rate", "first passages, updates", "recovered")
    return table((*head, "share of evaluations below", "win-rate at the end"), rows)


def stable_rates(lines: Sequence[Result]) -> dict[str, str]:
    """The largest learning rate at which at most one run collapsed, by arm."""
    by_arm: dict[str, dict[float, int]] = {}
    for (arm, rate), some in cells(lines).items():
        by_arm.setdefault(arm, {})[rate] = sum(passage(line).happened for line in some)
    found = {}
    for arm, collapsed in by_arm.items():
        stable = [rate for rate, count in collapsed.items() if count <= 1]
        found[arm] = f"{max(stable):g}" if stable else f"below {min(collapsed):g}"
    return found


def largest_rates(lines: Sequence[Result]) -> str:
    """A row for each clock: the largest learning rate at which at most one run collapsed."""
    rows = [[clock_name(arm), rate] for arm, rate in stable_rates(lines).items()]
    return table(("sampler", "largest learning rate with at most one collapse"), rows)


def single_seeds(lines: Sequence[Result]) -> str:
    """A sentence on what one seed alone would have said."""
    lags = constant_lags(lines)
    alone = [
        slopes([passage(line) for line in lags if line["seed"] == seed])["age"]
        for seed in _seeds(lags)
    ]
    wrong, pairs = 0, 0
    by_cell = cells(lags)
    for arm, rate in by_cell:
        doubled = (f"lag{2 * oldest_of(arm)[1]}", rate)
        if doubled not in by_cell:
            continue
        a, b = (
            by_seed(by_cell[key], lambda line: final(line, "win_rate"))
            for key in ((arm, rate), doubled)
        )
        gaps = [a[seed] - b[seed] for seed in a]
        wrong += wrong_signs(gaps)
        pairs += len(gaps)
    listed = ", ".join(number(value, 2) for value in alone)
    return (
        f"One seed alone gives b_S of {listed}. Of {pairs} comparisons of a lag with twice that lag at one "
        f"learning rate, by the win-rate at the end, one seed alone has the other sign than the mean of the "
        f"other seeds in {wrong}."
    )


def times_plot(lines: Sequence[Result]) -> Figure:
    """The time of every run against age, a colour for each learning rate, with the fitted law.

    A dot is a collapse, a triangle that points down one that is known to lie below it, and one that
    points up a run that lasted longer. Rates, and the seeds of one rate, lie beside each other.
    """
    law = slopes([passage(line) for line in lines])
    rates, seeds = sorted({line["setting"][RATE] for line in lines}), _seeds(lines)
    figure, axes = style.panels(2, 2, 3.6)
    for ax, cyclic in zip(axes, (False, True), strict=True):
        title = "Renewed in cycles" if cyclic else "Constant lag"
        style.axes(ax, title, "largest age, updates", "updates at full age before the collapse")
        some = [line for line in lines if oldest_of(line["arm"])[0] == cyclic]
        for index, (color, rate) in enumerate(zip(style.PART_COLORS, rates, strict=False)):
            for line in (line for line in some if line["setting"][RATE] == rate):
                item = passage(line)
                low, high = item.bounds
                marker = "^" if not item.happened else "v" if item.too_early else "o"
                beside = (seeds.index(line["seed"]) + 0.5) / len(seeds) - 0.5
                x = item.oldest * 2 ** (0.15 * (index - (len(rates) - 1) / 2 + 0.8 * beside))
                y = high if item.happened else low
                filled = color if item.happened else "none"
                ax.plot(
                    x, y, marker, markersize=3.5, color=color, markerfacecolor=filled, alpha=0.8
                )
            ages = np.array(sorted({oldest_of(line["arm"])[1] for line in some}), float)
            effective = np.log(ages) + cyclic * law["cycle"]
            log_time = law["constant"] - law["age"] * effective - law["rate"] * math.log(rate)
            ax.plot(ages, np.exp(log_time), linewidth=1.2, color=color, label=f"{rate:g}")
        last = max(passage(line).low for line in lines)
        ax.set_ylim(1, 2 * last)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
        legend_above(ax)
    return figure


def curves_plot(lines: Sequence[Result]) -> Figure:
    """Win-rate against updates of every run at each constant lag, a panel for each."""
    lags = constant_lags(lines)
    arms = list(dict.fromkeys(line["arm"] for line in lags))
    figure, axes = style.panels(len(arms), min(3, len(arms)), 2.8)
    for ax, arm in zip(axes, arms, strict=True):
        style.axes(ax, clock_name(arm), "update", "held-out win-rate")
        rates = sorted({line["setting"][RATE] for line in lags})
        for color, rate in zip(style.PART_COLORS, rates, strict=False):
            some = [line for line in lags if line["arm"] == arm and line["setting"][RATE] == rate]
            for index, line in enumerate(some):
                ax.plot(
                    [evaluation["update"] for evaluation in line["curve"]],
                    [evaluation["win_rate"] for evaluation in line["curve"]],
                    color=color, linewidth=0.8, alpha=0.8, label=f"{rate:g}" if index == 0 else None,
                )  # fmt: skip
        ax.set_ylim(0, 1)
    axes[0].legend(
        title="learning rate",
        title_fontsize=7,
        ncols=2,
        fontsize=7,
        frameon=False,
        labelcolor=style.INK,
        loc="lower right",
    )
    return figure


def pages(lines: Sequence[Result]) -> dict[str, str | Figure]:
    """The files of the page by their names in `docs/results/`."""
    found = coefficients(constant_lags(lines))
    text = markdown.fill(
        Path(__file__).with_name("page.md"),
        sources=markdown.sources(lines),
        primary=primary_table(lines, found["age"]),
        drop=f"{DROP:.2f}",
        other_drops=other_drops(lines),
        age_slope=with_interval(found["age"], 2),
        rate_slope=with_interval(found["rate"], 2),
        predictors=predictors_table(lines),
        single_seeds=single_seeds(lines),
        largest_rates=largest_rates(lines),
        cells=cells_table(lines),
    )
    return {
        "staleness.md": text,
        "staleness_times.png": times_plot(lines),
        "staleness_curves.png": curves_plot(lines),
    }
