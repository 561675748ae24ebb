"""Writes the page of the study of staleness with truncated importance weights from its ended cells and
the uncorrected ones beside them; the rules are those of `protocol.md`.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.studies import committed, markdown
from experiments.studies.censored import fit, pseudo_values
from experiments.studies.curves import interval_line, legend_above, mean_of_planned
from experiments.studies.hypotheses import wrong_signs_sentence
from experiments.studies.markdown import Contrast, probability, table, verdict, with_interval
from experiments.studies.staleness import findings as uncorrected_findings
from experiments.studies.staleness.passage import DROP, RATE, oldest_of, passage
from rlhf_jax.report.plots import style
from rlhf_jax.report.statistics import (
    OfSeed,
    Result,
    by_seed,
    differences,
    final,
    holm,
    interval,
    p_value,
    p_value_equivalent,
)

FROM = 32  # the first update whose evaluation counts: twice the largest age
COLLAPSE_MARGIN = 0.08  # of the share of a seed's 25 runs
MARGIN = 0.05  # of win-rate
LEAST_COLLAPSES = 20  # after update 2 S, for a slope to be tested
ARMS = ("without a correction", "token TIS")


def beside(lines: Sequence[Result], uncorrected: Sequence[Result]) -> list[Result]:
    """The uncorrected runs of constant lag that pair with corrected ones, in their order.

    Args:
      lines: corrected runs.
      uncorrected: of the study of staleness.
    """
    found = {_key(line): line for line in uncorrected}
    return [found[_key(line)] for line in lines]


def _key(line: Result) -> tuple[str, float, int]:
    return line["arm"], line["setting"][RATE], line["seed"]


def collapses(lines: Sequence[Result]) -> OfSeed:
    """The share of a seed's runs that collapse."""
    return by_seed(lines, lambda line: float(passage(line).happened))


def learned(lines: Sequence[Result]) -> OfSeed:
    """The mean win-rate of a seed's runs from update `FROM` on."""
    return by_seed(lines, lambda line: mean_of_planned(line, "win_rate", FROM))


def contrasts(lines: Sequence[Result], plain: Sequence[Result]) -> list[Contrast]:
    """Primary tests 1 and 2: corrected − uncorrected.

    Args:
      lines: corrected runs.
      plain: those beside them.
    """
    return [
        Contrast(
            "1. Share of runs that collapse, corrected − uncorrected",
            differences(collapses(lines), collapses(plain)),
            COLLAPSE_MARGIN,
            "of the runs",
        ),
        Contrast(
            "2. Mean win-rate, corrected − uncorrected",
            differences(learned(lines), learned(plain)),
            MARGIN,
            "of win-rate",
            3,
        ),
    ]


def testable(lines: Sequence[Result]) -> int:
    """Runs that collapse after update 2 S, whose time has two bounds."""
    found = [passage(line) for line in lines]
    return sum(item.happened and not item.too_early for item in found)


def primary_table(lines: Sequence[Result], plain: Sequence[Result]) -> str:
    """The primary tests with Holm's p-values."""
    tests = contrasts(lines, plain)
    p = [p_value(list(test.values.values())) for test in tests]
    count = testable(lines)
    slope = uncorrected_findings.coefficients(lines)["age"] if count >= LEAST_COLLAPSES else {}
    margin = uncorrected_findings.SLOPE_MARGIN
    p.append(p_value_equivalent([x - 1 for x in slope.values()], margin) if slope else 1.0)
    adjusted = holm(p)
    rows = [
        [test.name, with_interval(test.values, test.digits, signed=True), probability(one)]
        + [probability(corrected), verdict(test, corrected)]
        for test, one, corrected in zip(tests, p, adjusted, strict=False)
    ]
    result = (
        uncorrected_findings.slope_result(slope, adjusted[2])
        if slope
        else f"not tested: {count} collapses after update 2 S"
    )
    rows.append(
        ["3. b_S of the corrected runs", with_interval(slope, 2), probability(p[2])]
        + [probability(adjusted[2]), result]
    )
    return table(("hypothesis", "estimate, 95 % interval", "p", "p, Holm", "result"), rows)


def law_sentence(lines: Sequence[Result], plain: Sequence[Result]) -> str:
    """The exponents of the law in both arms."""
    said = []
    for name, some in zip(ARMS, (plain, lines), strict=True):
        count = testable(some)
        if count < LEAST_COLLAPSES:
            said.append(f"{name} the exponents have no estimate ({count} collapses after 2 S)")
            continue
        found = uncorrected_findings.coefficients(some)
        said.append(
            f"{name} b_S is {with_interval(found['age'], 2)} and b_η {with_interval(found['rate'], 2)} "
            f"({count} collapses after 2 S)"
        )
    return f"In log T = a − b_S log S − b_η log η, {'; with '.join(said)}."


def log_factor(lines: Sequence[Result], plain: Sequence[Result]) -> float:
    """γ of log T = a − b_S log S − b_η log η + γ [corrected], over the runs of both arms."""
    runs = [passage(line) for line in (*plain, *lines)]
    bounds = np.array([item.bounds for item in runs])
    columns = [
        np.ones(len(runs)),
        [-math.log(item.oldest) for item in runs],
        [-math.log(item.rate) for item in runs],
        [0.0] * len(plain) + [1.0] * len(lines),
    ]
    return float(fit(bounds[:, 0], bounds[:, 1], np.stack(columns, axis=1))[-1])


def shift_sentence(lines: Sequence[Result], plain: Sequence[Result]) -> str:
    """The factor by which a corrected run lasts longer, in words; lower bounds alone give none."""
    if not testable(lines):
        return "No corrected run collapses after update 2 S, so that its time has no estimate."

    def of(seeds: frozenset[int]) -> float:
        return log_factor(*([x for x in some if x["seed"] in seeds] for some in (lines, plain)))

    mean, half = interval(pseudo_values({line["seed"] for line in lines}, of))
    low, middle, high = (math.exp(value) for value in (mean - half, mean, mean + half))
    return (
        f"At one lag and learning rate a corrected run lasts {middle:.2f} times as long before its collapse "
        f"(95 % interval {low:.2f} to {high:.2f}, one regression of both arms)."
    )


def largest_rates(lines: Sequence[Result], plain: Sequence[Result]) -> str:
    """A row for each lag: the largest learning rate at which at most one run collapsed, by arm."""
    found = [uncorrected_findings.stable_rates(some) for some in (plain, lines)]
    rows = [
        [uncorrected_findings.clock_name(arm), *(rates[arm] for rates in found)] for arm in found[1]
    ]
    return table(("sampler", *(f"{name}: largest learning rate with at most one collapse" for name in ARMS)), rows)  # fmt: skip


def cells_table(lines: Sequence[Result], plain: Sequence[Result]) -> str:
    """A row for each lag and learning rate: first passages and win-rates at the end of both arms."""
    by_cell = [uncorrected_findings.cells(some) for some in (plain, lines)]
    rows = []
    for key in by_cell[1]:
        pair = [found[key] for found in by_cell]
        row = [uncorrected_findings.clock_name(key[0]), f"{key[1]:g}"]
        row += [uncorrected_findings.times(some) for some in pair]
        row += [
            with_interval(by_seed(some, lambda line: final(line, "win_rate")), 3) for some in pair
        ]
        rows.append(row)
    head = [f"first passages, {name}" for name in ARMS] + [f"win-rate, {name}" for name in ARMS]
    return table(("sampler", "learning rate", *head), rows)


def cells_plot(lines: Sequence[Result], plain: Sequence[Result]) -> Figure:
    """Share of collapsed runs and win-rate at the end against lag, over learning rates, by arm."""
    figure, axes = style.panels(2, 2, 3.4)
    ages = sorted({oldest_of(line["arm"])[1] for line in lines})
    panels: tuple[tuple[str, str, Callable[[Result], float]], ...] = (
        ("Runs that have collapsed", "share", lambda line: float(passage(line).happened)),
        ("Win-rate at the end", "win-rate", lambda line: final(line, "win_rate")),
    )
    for ax, (title, unit, value) in zip(axes, panels, strict=True):
        style.axes(ax, title, "lag, updates", unit)
        for name, some, color in zip(
            ARMS, (plain, lines), (style.TRAINING, style.HELDOUT), strict=True
        ):
            points = [
                interval(by_seed([x for x in some if oldest_of(x["arm"])[1] == age], value))
                for age in ages
            ]
            interval_line(ax, ages, points, color, name)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.set_ylim(0, 1)
    legend_above(axes[0])
    return figure


def pages(
    lines: Sequence[Result], uncorrected: Sequence[Result] | None = None
) -> dict[str, str | Figure]:
    """The files of the page by their names in `docs/results/`.

    Args:
      lines: of the corrected cells.
      uncorrected: of the study of staleness; its committed ones by default.
    """
    plain = beside(lines, committed.results("staleness") if uncorrected is None else uncorrected)
    text = markdown.fill(
        Path(__file__).with_name("page.md"),
        sources=markdown.sources(lines),
        plain_sources=markdown.sources(plain),
        drop=f"{DROP:.2f}",
        primary=primary_table(lines, plain),
        law=law_sentence(lines, plain),
        shift=shift_sentence(lines, plain),
        wrong=wrong_signs_sentence(contrasts(lines, plain)),
        largest_rates=largest_rates(lines, plain),
        cells=cells_table(lines, plain),
    )
    return {
        "staleness_token_tis.md": text,
        "staleness_token_tis_cells.png": cells_plot(lines, plain),
    }
