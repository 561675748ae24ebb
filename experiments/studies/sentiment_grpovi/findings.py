"""Writes the page of the study of GRPOVI on a language model from its ended cells; the rules are those
of `protocol.md`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.studies import markdown
from experiments.studies.curves import by_update, interval_line, legend_above
from experiments.studies.markdown import Contrast, contrasts_table, table, with_interval
from experiments.studies.sentiment.findings import FIGURES, is_collapsed, note, reward_models
from rlhf_jax.report.plots import style
from rlhf_jax.report.statistics import (
    OfSeed,
    Result,
    by_seed,
    differences,
    final,
    updates_to,
)

RATE_MARGIN, UPDATES_MARGIN = 0.05, 4.0
NEVER = 49.0  # updates of a run that does not reach half of the gain
NAMES = {"grpo": "GRPO", "grpovi": "GRPOVI"}


def of_arm(lines: Sequence[Result], arm: str) -> list[Result]:
    """Results of an arm."""
    return [line for line in lines if line["arm"] == arm]


def half_way(lines: Sequence[Result]) -> OfSeed:
    """The gold of each seed in the middle between version 0 and the larger last one of its arms."""
    seeds = sorted({line["seed"] for line in lines})
    of_seed = {seed: [line for line in lines if line["seed"] == seed] for seed in seeds}
    return {
        seed: (some[0]["curve"][0]["gold_mean"] + max(final(line, "gold_mean") for line in some))
        / 2
        for seed, some in of_seed.items()
    }


def updates_to_half(lines: Sequence[Result], arm: str) -> OfSeed:
    """Updates until an arm's gold is half-way, by seed."""
    level = half_way(lines)
    return by_seed(
        of_arm(lines, arm),
        lambda line: updates_to(line["curve"], "gold_mean", level[line["seed"]], NEVER),
    )


def contrasts(lines: Sequence[Result]) -> list[Contrast]:
    """The two primary contrasts, paired by seed."""
    rates = [by_seed(of_arm(lines, arm), lambda line: final(line, "win_rate")) for arm in NAMES]
    updates = [updates_to_half(lines, arm) for arm in NAMES]
    told = note(lines)
    return [
        Contrast(
            "1. GRPOVI − GRPO, win-rate at the end",
            differences(rates[1], rates[0]),
            RATE_MARGIN,
            "of win-rate",
            3,
            told,
        ),
        Contrast(
            "2. GRPOVI − GRPO, updates to half of the gain",
            differences(updates[1], updates[0]),
            UPDATES_MARGIN,
            "updates",
            1,
            told,
        ),
    ]


def arms_table(lines: Sequence[Result]) -> str:
    """A row for each arm: figures at the end, updates to half of the gain, spread of rewards, figures
    of the adjustment.
    """
    rows = []
    for arm, name in NAMES.items():
        some = of_arm(lines, arm)
        figures = [
            with_interval(by_seed(some, lambda line, key=key: final(line, key)), 3)
            for key in FIGURES
        ]
        spread = by_seed(some, lambda line: float(np.mean(line["measured"]["within_prompt_std"])))
        adjusted = ["–", "–"]
        if arm == "grpovi":
            clipped = by_seed(
                some,
                lambda line: (
                    line["means"]["clipped_low_share"] + line["means"]["clipped_high_share"]
                ),
            )
            place = by_seed(some, lambda line: line["means"]["variance_mean_place"])
            adjusted = [with_interval(clipped, 3), with_interval(place, 2)]
        fallen = f"{sum(map(is_collapsed, some))} of {len(some)}"
        half = with_interval(updates_to_half(lines, arm), 1)
        rows.append([name, *figures, half, with_interval(spread, 2), *adjusted, fallen])
    head = ("", *FIGURES.values(), "updates to half of the gain", "spread of rewards")
    return table((*head, "clipped rewards", "place of the mean", "collapsed"), rows)


def curves_plot(lines: Sequence[Result]) -> Figure:
    """Gold and learned reward against updates, the mean over seeds with its interval."""
    shown = ("win_rate", "gold_mean", "reward_mean")
    figure, axes = style.panels(len(shown), len(shown), 2.8)
    for ax, key in zip(axes, shown, strict=True):
        style.axes(ax, "", "update", f"{FIGURES[key]}, held-out")
        for index, (arm, name) in enumerate(NAMES.items()):
            some = of_arm(lines, arm)
            points = by_update(some, key)
            updates = [update + 0.5 * index for update in points]
            color = style.PART_COLORS[index]
            interval_line(ax, updates, list(points.values()), color, name)
    legend_above(axes[0])
    return figure


def pages(lines: Sequence[Result]) -> dict[str, str | Figure]:
    """The files of the page by their names in `docs/results/`."""
    text = markdown.fill(
        Path(__file__).with_name("page.md"),
        sources=markdown.sources(lines),
        contrasts=contrasts_table(contrasts(lines)),
        arms=arms_table(lines),
        reward_models=reward_models(lines),
    )
    return {"sentiment_grpovi.md": text, "sentiment_grpovi_curves.png": curves_plot(lines)}
