"""Writes the page of the study of younger losses from its ended cells; the rules are those of
`protocol.md`.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.studies import markdown
from experiments.studies.markdown import Contrast, number, table, with_interval
from experiments.studies.offpolicyness import findings, plots
from experiments.studies.offpolicyness.measures import (
    Group,
    collapsed,
    difference_of_drops,
    drop,
    groups,
    note_on_collapsed,
    reported,
)
from rlhf_jax.report.statistics import OfSeed, Result, differences, final

ROBUST, YOUNGER = findings.ROBUST, ("gspo", "cispo", "oapl")
MARGIN = findings.MARGIN
CADENCE = "-sync_every"
"""In the name of an arm whose sampler is seldom renewed, before the number of rounds."""


def of(axis: Sequence[Group], algorithm: str) -> Group:
    """The group of an algorithm."""
    return next(group for group in axis if group.algorithm == algorithm)


def cadences(results: Sequence[Result]) -> dict[int, list[Result]]:
    """Runs of the arms whose sampler is seldom renewed, by the number of rounds."""
    found: dict[int, list[Result]] = {}
    for result in results:
        name, _, rounds = result["arm"].partition(CADENCE)
        if rounds and name == ROBUST:
            found.setdefault(int(rounds), []).append(result)
    return dict(sorted(found.items()))


def drop_of(fresh: OfSeed, runs: Sequence[Result]) -> OfSeed:
    """Win-rate at age 0 − that of some runs at their ends, by seed."""
    return differences(fresh, {run["seed"]: final(run, "win_rate") for run in runs})


def primary_contrasts(
    lags: Sequence[Group], minibatches: Sequence[Group], renewed: dict[int, list[Result]]
) -> list[Contrast]:
    """The eight primary contrasts, of drops in win-rate."""
    found: list[Contrast] = []

    def add(name: str, values: OfSeed, *arms: Sequence[Result]) -> None:
        name = f"{len(found) + 1}. {name}"
        found.append(
            Contrast(name, values, MARGIN, "of win-rate", 3, note=note_on_collapsed(*arms))
        )

    for axis, at in ((lags, "lag {}"), (minibatches, "{} minibatches")):
        robust, value = of(axis, ROBUST), max(axis[0].values)
        for algorithm in YOUNGER:
            each = of(axis, algorithm)
            values = difference_of_drops(each, robust, value, "win_rate")
            arms = (group.arms[v] for group in (each, robust) for v in (each.first, value))
            name = f"drop of {algorithm.upper()} − drop of Online DPO, {at.format(value)}"
            add(name, values, *arms)
    for axis, (rounds, runs) in zip((lags, minibatches), renewed.items(), strict=True):
        robust, value = of(axis, ROBUST), max(axis[0].values)
        fresh = robust.figure(robust.first, "win_rate")
        values = differences(drop_of(fresh, runs), drop(robust, value, "win_rate"))
        beside = f"lag {value}" if axis is lags else f"{value} minibatches"
        name = f"drop of Online DPO, renewed every {rounds} rounds − its drop at {beside}"
        add(name, values, robust.arms[robust.first], robust.arms[value], runs)
    return found


def cadence_table(fresh: OfSeed, renewed: dict[int, list[Result]]) -> str:
    """A row for each cadence of the sampler: ages, win-rate, drop, collapsed runs."""
    rows = []
    for rounds, runs in renewed.items():
        age, fallen = runs[0]["ages"], sum(map(collapsed, runs))
        ends = {run["seed"]: final(run, "win_rate") for run in runs}
        rows.append(
            [
                f"every {rounds} rounds",
                f"{number(age['mean'], 1)}, {age['max']:g}",
                findings.BELOW if fallen else with_interval(ends, 3),
                findings.BELOW if fallen else with_interval(drop_of(fresh, runs), 3, signed=True),
                f"{fallen} of {len(runs)}",
            ]
        )
    head = ("sampler renewed", "mean, largest age", "win-rate", "drop in win-rate", "collapsed")
    return table(head, rows)


def pages(lines: Sequence[Result]) -> dict[str, str | Figure]:
    """The files of the page by their names in `docs/results/`."""
    results = reported(lines)
    renewed = cadences(results)
    usual = [line for line in results if CADENCE not in line["arm"]]
    lags, minibatches = groups(usual, "lag"), groups(usual, "num_minibatches")
    contrasts = primary_contrasts(lags, minibatches, renewed)
    robust = of(lags, ROBUST)
    text = markdown.fill(
        Path(__file__).with_name("page.md"),
        sources=markdown.sources(lines),
        contrasts=markdown.contrasts_table(contrasts),
        lags=findings.drops_table(lags),
        minibatches=findings.drops_table(minibatches),
        renewed=cadence_table(robust.figure(robust.first, "win_rate"), renewed),
        collapsed=findings.collapsed_table(results),
        arms=findings.arms_table(results, findings.on_edges(lines)),
    )
    return {
        "losses.md": text,
        "losses_lag.png": plots.final_figures(lags),
        "losses_minibatches.png": plots.final_figures(minibatches),
    }
