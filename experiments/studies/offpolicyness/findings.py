"""Writes the page of the study of off-policyness from its ended cells; the rules are those of
`protocol.md`.

The paper's numbers are those of Noukhovitch et al. 2024 (arXiv 2410.18252) for a policy of 410
million parameters on TL;DR, as table 1 of arXiv 2503.18929 prints them: win-rate and "KL
(perplexity)" of near-greedy completions. Its data age is age + 1.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.studies import markdown
from experiments.studies.markdown import Contrast, number, table, with_interval
from experiments.studies.offpolicyness import plots, regimes
from experiments.studies.offpolicyness.measures import (
    SYMBOL,
    Group,
    at_one_kl,
    collapsed,
    difference_of_drops,
    drop,
    groups,
    note_on_collapsed,
    reported,
)
from rlhf_jax.report.statistics import OfSeed, Result, by_seed, differences, final

RATE = "rlhf.optimizer.learning_rate"
ROBUST = "online_dpo"  # the algorithm that the paper finds to lose least
PAPER_CORRECTION = "proximal"  # of the paper's code
MARGIN = 0.02  # of win-rate
BELOW = "see below"  # where a mean is not quoted, since a run has collapsed
PAPER = {  # algorithm -> data age -> win-rate, perplexity
    "online_dpo": {1: (0.85, 1.13), 2: (0.85, 1.13), 16: (0.82, 1.12)},
    "ppo": {1: (0.86, 1.14), 2: (0.84, 1.14), 16: (0.76, 1.10)},
    "rloo": {1: (0.82, 1.13), 2: (0.83, 1.13), 16: (0.77, 1.10)},
}


def group(groups: Sequence[Group], algorithm: str, correction: str = "") -> Group:
    """The group of an algorithm and correction on an axis."""
    return next(
        candidate
        for candidate in groups
        if (candidate.algorithm, candidate.correction) == (algorithm, correction)
    )


def primary_contrasts(lags: Sequence[Group], minibatches: Sequence[Group]) -> list[Contrast]:
    """The six primary contrasts, of drops in win-rate."""
    lag, count = max(lags[0].values), max(minibatches[0].values)
    contrasts: list[Contrast] = []

    def add(name: str, values: OfSeed, value: int, *compared: Group) -> None:
        arms = (each.arms[v] for each in compared for v in (each.first, value))
        note = note_on_collapsed(*arms)
        number = len(contrasts) + 1
        contrasts.append(Contrast(f"{number}. {name}", values, MARGIN, "of win-rate", 3, note=note))

    for axis, value, at, correction, label in (
        (lags, lag, f"lag {lag}", PAPER_CORRECTION, " (proximal)"),
        (minibatches, count, f"N {count}", "", ""),
    ):
        robust = group(axis, ROBUST)
        for algorithm in ("rloo", "ppo"):
            each = group(axis, algorithm, correction)
            name = f"drop of {algorithm.upper()}{label} − drop of Online DPO, {at}"
            values = difference_of_drops(each, robust, value, "win_rate")
            add(name, values, value, each, robust)
    for algorithm in ("rloo", "ppo"):
        pair = [group(lags, algorithm, name) for name in ("behavior", "truncate")]
        name = f"drop of {algorithm.upper()} with behavior − with truncate, lag {lag}"
        values = differences(*(drop(each, lag, "win_rate") for each in pair))
        add(name, values, lag, *pair)
    return contrasts


def one_step_late(lags: Sequence[Group]) -> str:
    """A row for each algorithm: its drop at lag 1, and whether it lies within the margin."""
    rows = []
    for algorithm, correction in ((ROBUST, ""), ("rloo", "truncate"), ("ppo", "truncate")):
        late = group(lags, algorithm, correction)
        contrast = Contrast(late.name, drop(late, 1, "win_rate"), MARGIN, "of win-rate", 3)
        sentence = markdown.verdict(contrast, markdown.p_value(list(contrast.values.values())))
        rows.append([late.name, with_interval(contrast.values, 3, signed=True), sentence])
    return table(("", "drop in win-rate at lag 1, 95 % interval", "result"), rows)


def drops_table(groups: Sequence[Group]) -> str:
    """A row for each group and value: ages, drops, gold at one KL with the seeds that cannot be
    read, collapsed runs.
    """
    symbol = SYMBOL[groups[0].axis]
    head = ("", symbol, "mean, largest age", "win-rate", "drop in win-rate", "drop in gold")
    head += (f"gold at one KL − {symbol} {groups[0].first}", "seeds not read", "collapsed")
    rows = []
    for each in groups:
        for value in each.values:
            age, fallen = each.age(value), each.num_collapsed(value)
            cells = [each.name, str(value), f"{age['mean']:.3g}, {age['max']:g}"]
            at_kl, unread = at_one_kl(each, value)
            rate = with_interval(each.figure(value, "win_rate"), 3)
            cells.append(BELOW if fallen else rate)
            if value == each.first:
                cells += ["–", "–", "–", "–"]
            elif fallen:
                cells += [BELOW, BELOW, BELOW, str(len(unread))]
            else:
                cells += [with_interval(drop(each, value, "win_rate"), 3, signed=True)]
                cells += [with_interval(drop(each, value, "gold_mean"), 2, signed=True)]
                cells += [with_interval(at_kl, 2, signed=True), str(len(unread))]
            runs = each.arms[value]
            rows.append([*cells, f"{fallen} of {len(runs)}"])
    return table(head, rows)


def split(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by arm."""
    by_arm: dict[str, list[Result]] = {}
    for result in results:
        by_arm.setdefault(result["arm"], []).append(result)
    return by_arm


def arms_table(results: Sequence[Result], edges: dict[str, bool]) -> str:
    """A row for each arm: its learning rate, marked where it lies on an edge of what was tried, and
    its last figures.
    """
    rows = []
    for arm, runs in split(results).items():
        rate = f"{runs[0]['setting'][RATE]:g}{' (edge)' if edges.get(arm) else ''}"
        cells = [arm, rate, str(len(runs))]
        if any(map(collapsed, runs)):
            rows.append([*cells, *["see above"] * 4])
            continue
        for name, digits in (("win_rate", 3), ("gold_mean", 2), ("reward_mean", 2), ("kl", 2)):
            cells.append(
                with_interval(by_seed(runs, lambda result, name=name: final(result, name)), digits)
            )
        rows.append(cells)
    return table(
        ("arm", "learning rate", "seeds", "win-rate", "gold", "learned reward", "KL"), rows
    )


def collapsed_table(results: Sequence[Result]) -> str:
    """The runs of every arm with a collapsed one, seed by seed."""
    rows = []
    for arm, of_arm in split(results).items():
        if any(map(collapsed, of_arm)):
            runs = sorted(of_arm, key=lambda result: result["seed"])
            ends = [
                f"{number(final(run, 'win_rate'), 2)}{' (diverged)' if run.get('diverged') else ''}"
                for run in runs
            ]
            tops = [number(max(line["win_rate"] for line in run["curve"]), 2) for run in runs]
            rows.append([arm, " / ".join(tops), " / ".join(ends)])
    if not rows:
        return "No run collapsed."
    return table(("arm", "largest win-rate, by seed", "last win-rate, by seed"), rows)


def paper_table(lags: Sequence[Group], minibatches: Sequence[Group]) -> str:
    """The paper's figures beside ours of the same data age on either axis: greedy win-rate / KL as
    perplexity.
    """

    def ours(groups: Sequence[Group], algorithm: str, correction: str, value: int) -> str:
        runs = group(groups, algorithm, correction).arms.get(value, [])
        if not runs:
            return ""
        means = [
            by_seed(runs, lambda run, key=key: final(run, key))
            for key in ("win_rate_greedy", "kl_perplexity")
        ]
        return " / ".join(f"{sum(mean.values()) / len(mean):.3f}" for mean in means)

    rows = []
    for algorithm, of_age in PAPER.items():
        correction = "" if algorithm == ROBUST else PAPER_CORRECTION
        for age, (rate, perplexity) in of_age.items():
            beside = [
                ours(lags, algorithm, correction, age - 1),
                ours(minibatches, algorithm, "", age),
            ]
            rows.append(
                [algorithm.replace("_", " "), str(age), f"{rate:.2f} / {perplexity:.2f}", *beside]
            )
    return table(
        ("", "data age", "paper, 410m on TL;DR", "ours, lag = data age − 1", "ours, N = data age"),
        rows,
    )


def on_edges(lines: Sequence[Result]) -> dict[str, bool]:
    """arm -> whether its reported learning rate is the smallest or largest that was tried for it."""
    tried: dict[str, set[float]] = {}
    for line in lines:
        if line["purpose"] == "tune":
            tried.setdefault(line["arm"], set()).add(line["setting"][RATE])
    chosen = {line["arm"]: line["setting"][RATE] for line in reported(lines)}
    return {
        arm: bool(tried.get(arm)) and rate in (min(tried[arm]), max(tried[arm]))
        for arm, rate in chosen.items()
    }


def pages(lines: Sequence[Result]) -> dict[str, str | Figure]:
    """The files of the page by their names in `docs/results/`."""
    results = reported(lines)
    lags, minibatches = groups(results, "lag"), groups(results, "num_minibatches")
    contrasts = primary_contrasts(lags, minibatches)
    text = markdown.fill(
        Path(__file__).with_name("page.md"),
        sources=markdown.sources(lines),
        conclusion=markdown.conclusion(contrasts),
        contrasts=markdown.contrasts_table(contrasts),
        one_step_late=one_step_late(lags),
        minibatches=drops_table(minibatches),
        lags=drops_table(lags),
        collapsed=collapsed_table(results),
        arms=arms_table(results, on_edges(lines)),
        paper=paper_table(lags, minibatches),
    )
    return {
        "offpolicyness.md": text,
        "which_lag.md": regimes.page(lags, minibatches),
        "offpolicyness_minibatches.png": plots.final_figures(minibatches),
        "offpolicyness_lag.png": plots.final_figures(lags),
        "offpolicyness_perplexity.png": plots.against(minibatches, "kl_perplexity"),
        "offpolicyness_kl.png": plots.against(lags, "kl"),
    }
