"""Writes the page of the study of staleness on a language model from its ended cells; the rules are
those of `protocol.md`.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.studies import hypotheses, markdown
from experiments.studies.curves import by_update, interval_line, legend_above
from experiments.studies.hypotheses import Hypothesis, collapsed_note, hypotheses_table
from experiments.studies.markdown import number, table, with_interval
from rlhf_jax.report.plots import style
from rlhf_jax.report.statistics import OfSeed, Result, by_seed, differences, final

MARGIN = 0.05  # of win-rate
FALL = 0.20  # of win-rate below its largest evaluated value: a run has collapsed (protocol.md)
LEAST_SEEDS = 3  # with a fall of gold, for hypothesis 3
LAGS = (0, 1, 8)
ALGORITHMS = {"online_dpo": "Online DPO", "rloo": "RLOO"}
FIGURES = {"win_rate": "win-rate", "gold_mean": "gold", "reward_mean": "learned reward", "kl": "KL"}


def of_arm(lines: Sequence[Result], algorithm: str, lag: int) -> list[Result]:
    """Results of an algorithm at a lag."""
    return [line for line in lines if line["arm"] == f"{algorithm}-lag{lag}"]


def win_rates(lines: Sequence[Result]) -> OfSeed:
    """Win-rate at the end of training, by seed."""
    return by_seed(lines, lambda line: final(line, "win_rate"))


def drop(lines: Sequence[Result], algorithm: str, lag: int) -> OfSeed:
    """Win-rate at lag 0 − at a lag, by seed."""
    return differences(*(win_rates(of_arm(lines, algorithm, each)) for each in (0, lag)))


def is_collapsed(line: Result) -> bool:
    """True for a run that diverged, or that ends more than `FALL` below its largest win-rate."""
    return hypotheses.is_collapsed(line, "win_rate", FALL)


def note(lines: Sequence[Result]) -> str:
    """A note of how many runs of a test collapsed; "" for none."""
    return collapsed_note(lines, is_collapsed)


def rise_where_gold_fell(line: Result) -> float:
    """The learned reward at the end minus that at the evaluation of the largest gold; nan where gold
    did not fall by more than two standard errors of the last one.
    """
    best = max(line["curve"], key=lambda evaluation: evaluation["gold_mean"])
    last = line["curve"][-1]
    if best["gold_mean"] - last["gold_mean"] <= 2 * last["gold_mean_stderr"]:
        return math.nan
    return last["reward_mean"] - best["reward_mean"]


def rises(lines: Sequence[Result]) -> OfSeed:
    """The mean rise of the learned reward over a seed's runs whose gold fell; seeds without such
    runs are left out.
    """
    found: dict[int, list[float]] = {}
    for line in lines:
        if not math.isnan(rise := rise_where_gold_fell(line)):
            found.setdefault(line["seed"], []).append(rise)
    return {seed: float(np.mean(values)) for seed, values in sorted(found.items())}


def primary_hypotheses(lines: Sequence[Result]) -> list[Hypothesis]:
    """The primary tests; the third alone where enough seeds have a run whose gold fell."""
    found = [
        Hypothesis(
            f"1{letter}. {name}: lag 0 − lag 1",
            drop(lines, algorithm, 1),
            "equivalent",
            "of win-rate",
            MARGIN,
            note=note([*of_arm(lines, algorithm, 0), *of_arm(lines, algorithm, 1)]),
        )
        for letter, (algorithm, name) in zip("ab", ALGORITHMS.items(), strict=True)
    ]
    pair = [drop(lines, algorithm, 8) for algorithm in ALGORITHMS]
    runs = [
        line for algorithm in ALGORITHMS for lag in (0, 8) for line in of_arm(lines, algorithm, lag)
    ]
    name = "2. Drop of Online DPO − drop of RLOO, at lag 8"
    found.append(Hypothesis(name, differences(*pair), "below", "of win-rate", 0.0, note=note(runs)))
    rise = rises(lines)
    if len(rise) >= LEAST_SEEDS:
        negative = {seed: -value for seed, value in rise.items()}
        name = "3. Learned reward at the largest gold − at the end, where gold fell"
        found.append(Hypothesis(name, negative, "below", "SFT deviations", 0.0))
    return found


def falls(lines: Sequence[Result]) -> str:
    """A sentence on the runs whose gold fell."""
    count = sum(not math.isnan(rise_where_gold_fell(line)) for line in lines)
    seeds = len(rises(lines))
    said = f"Gold fell from its largest value in {count} of {len(lines)} runs, of {seeds} seeds."
    return said if seeds >= LEAST_SEEDS else f"{said} Hypothesis 3 was not tested."


def arms_table(lines: Sequence[Result]) -> str:
    """A row for each algorithm and lag: figures at the end, spread of rewards, collapsed runs."""
    rows = []
    for algorithm, name in ALGORITHMS.items():
        for lag in LAGS:
            some = of_arm(lines, algorithm, lag)
            figures = [
                with_interval(by_seed(some, lambda line, key=key: final(line, key)), 3)
                for key in FIGURES
            ]
            spreads = [
                with_interval(
                    by_seed(
                        some,
                        lambda line, ends=ends: float(
                            np.mean(line["measured"]["within_prompt_std"][ends])
                        ),
                    ),
                    2,
                )
                for ends in (slice(8), slice(-8, None))
            ]
            fallen = f"{sum(map(is_collapsed, some))} of {len(some)}"
            rows.append([name, str(lag), *figures, *spreads, fallen])
    spread = ("spread of rewards, first 8 rounds", "last 8")
    return table(("", "lag", *FIGURES.values(), *spread, "collapsed"), rows)


def reward_models(lines: Sequence[Result]) -> str:
    """A sentence on the reward model of every seed."""
    found = {line["seed"]: line["reward_model"] for line in lines}
    said = [
        f"{number(model['heldout_accuracy'], 3)} (seed {seed}, deviation {number(model['raw_std'], 2)})"
        for seed, model in sorted(found.items())
    ]
    return f"Accuracy of the reward models on held-out pairs: {', '.join(said)}."


def curves_plot(lines: Sequence[Result]) -> Figure:
    """Win-rate and learned reward against updates: a row of panels for each algorithm."""
    shown = ("win_rate", "gold_mean", "reward_mean")
    figure, axes = style.panels(len(ALGORITHMS) * len(shown), len(shown), 2.6)
    places = [(algorithm, key) for algorithm in ALGORITHMS for key in shown]
    for ax, (algorithm, key) in zip(axes, places, strict=True):
        style.axes(ax, ALGORITHMS[algorithm], "update", f"{FIGURES[key]}, held-out")
        for index, lag in enumerate(LAGS):
            some = of_arm(lines, algorithm, lag)
            points = by_update(some, key)
            updates = [update + 0.8 * index for update in points]
            color = style.PART_COLORS[index]
            interval_line(ax, updates, list(points.values()), color, f"lag {lag}")
    legend_above(axes[0])
    return figure


def pages(lines: Sequence[Result]) -> dict[str, str | Figure]:
    """The files of the page by their names in `docs/results/`."""
    text = markdown.fill(
        Path(__file__).with_name("page.md"),
        sources=markdown.sources(lines),
        hypotheses=hypotheses_table(primary_hypotheses(lines)),
        falls=falls(lines),
        reward_models=reward_models(lines),
        arms=arms_table(lines),
        fall=f"{FALL:.2f}",
    )
    return {"sentiment.md": text, "sentiment_curves.png": curves_plot(lines)}
