"""Writes the page of the study of GRPOVI from its ended cells; the rules are those of
`protocol.md`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.studies import markdown
from experiments.studies.markdown import Contrast, table, with_interval
from rlhf_jax.report.plots import style
from rlhf_jax.report.statistics import OfSeed, Result, by_seed, differences, final, updates_to

RATE, KL_WEIGHT = "rlhf.optimizer.learning_rate", "algorithm.kl_weight"
PRIMARY = {
    "grpo_standardized": "GRPO, with the division",
    "grpo_centered": "GRPO, without",
    "grpovi_standardized": "GRPOVI, with the division",
    "grpovi_centered": "GRPOVI, without",
    "matched_std": "matched deviation",
}
CONTROLS = {
    "grpovi_standardized_3": "GRPOVI ±3, with the division",
    "grpovi_standardized_12": "GRPOVI ±12, with the division",
    "grpovi_centered_3": "GRPOVI ±3, without",
    "grpovi_centered_12": "GRPOVI ±12, without",
    "grpovi_reference_weights": "GRPOVI with the paper's weights",
    "constant_gain": "a constant times GRPO's advantages",
    "best_of_group": "one-hot best of a group",
    "gopo": "ranks (GOPO)",
}
LEVEL, NEVER = 2.0, 33.0  # of gold, and the updates that stand for a cell that does not reach it
GOLD_MARGIN, UPDATES_MARGIN = 0.25, 1.0


def gold(result: Result) -> float:
    """Gold at the end."""
    return final(result, "gold_mean")


def speed(result: Result) -> float:
    """Updates to gold 2."""
    return updates_to(result["curve"], "gold_mean", LEVEL, NEVER)


def of_arm(lines: Sequence[Result], arm: str) -> list[Result]:
    return [line for line in lines if line["arm"] == arm]


def primary_contrasts(lines: Sequence[Result]) -> list[Contrast]:
    """The four primary contrasts; each arm is a mean over its settings within a seed."""

    def contrast(
        arm_a: str, arm_b: str, value: object, name: str, margin: float, unit: str, digits: int
    ) -> Contrast:
        values = [by_seed(of_arm(lines, arm), value) for arm in (arm_a, arm_b)]  # type: ignore[arg-type]
        return Contrast(name, differences(*values), margin, unit, digits)

    points, updates = (GOLD_MARGIN, "points", 2), (UPDATES_MARGIN, "updates", 2)
    return [
        contrast(
            "grpovi_standardized",
            "grpo_standardized",
            gold,
            "1. GRPOVI − GRPO, with the division: gold",
            *points,
        ),
        contrast(
            "grpovi_centered",
            "grpo_centered",
            gold,
            "2. GRPOVI − GRPO, without the division: gold",
            *points,
        ),
        contrast(
            "grpovi_standardized",
            "matched_std",
            gold,
            "3. GRPOVI with the division − matched deviation: gold",
            *points,
        ),
        contrast(
            "grpovi_standardized",
            "grpo_standardized",
            speed,
            "4. GRPOVI − GRPO, with the division: updates to gold 2",
            *updates,
        ),
    ]


def settings_of(lines: Sequence[Result]) -> list[tuple[float, float]]:
    """Learning rate and KL weight of every setting that is there, rising."""
    return sorted({(line["setting"][RATE], line["setting"][KL_WEIGHT]) for line in lines})


def at_setting(lines: Sequence[Result], rate: float, weight: float) -> list[Result]:
    return [
        line
        for line in lines
        if (line["setting"][RATE], line["setting"][KL_WEIGHT]) == (rate, weight)
    ]


def arms_table(lines: Sequence[Result], arms: Mapping[str, str]) -> str:
    """A row for each arm: means over its settings within a seed, and cells that never reached gold
    2 or diverged.
    """
    rows = []
    for arm, words in arms.items():
        runs = of_arm(lines, arm)
        if not runs:
            continue
        never = sum(speed(line) == NEVER for line in runs)
        diverged = sum(bool(line.get("diverged")) for line in runs)
        values = [
            with_interval(by_seed(runs, value), digits)
            for value, digits in ((gold, 2), (speed, 1), (_kl, 2))
        ]
        rows.append([words, str(len(runs)), *values, str(never), str(diverged)])
    head = (
        "arm",
        "cells",
        "gold at the end",
        "updates to gold 2",
        "KL at the end",
        "never at gold 2",
        "diverged",
    )
    return table(head, rows)


def _kl(result: Result) -> float:
    return final(result, "kl")


def grid_table(lines: Sequence[Result], arms: Mapping[str, str]) -> str:
    """A row for each setting and a column for each arm: gold at the end and, in brackets, KL."""
    rows = []
    for rate, weight in settings_of(lines):
        cells = [f"{rate:g}, {weight:g}"]
        for arm in arms:
            runs = at_setting(of_arm(lines, arm), rate, weight)
            values: list[OfSeed] = [by_seed(runs, value) for value in (gold, _kl)]
            cells.append(
                f"{with_interval(values[0], 2)} ({np.mean(list(values[1].values())):.1f})"
                if runs
                else "–"
            )
        rows.append(cells)
    return table(("learning rate, KL weight", *arms.values()), rows)


def frontier(lines: Sequence[Result], arms: Mapping[str, str]) -> Figure:
    """Gold against KL at the end of training, a line over the KL weights for each arm, a panel for
    each learning rate.
    """
    rates = sorted({rate for rate, _ in settings_of(lines)})
    figure, axes = style.panels(len(rates), 3, 3.8)
    for ax, rate in zip(axes, rates, strict=True):
        style.axes(
            ax,
            f"learning rate {rate:g}",
            "KL to the SFT policy at the end, nats",
            "gold at the end, points",
        )
        for index, (arm, words) in enumerate(arms.items()):
            points = []
            for weight in sorted({weight for _, weight in settings_of(lines)}):
                runs = at_setting(of_arm(lines, arm), rate, weight)
                if runs:
                    points.append(
                        [
                            np.mean([_kl(line) for line in runs]),
                            np.mean([gold(line) for line in runs]),
                        ]
                    )
            if points:
                x, y = np.array(points).T
                color = style.PART_COLORS[index % len(style.PART_COLORS)]
                ax.plot(x, y, "o-", color=color, markersize=4, linewidth=1.2, label=words)
        ax.legend(fontsize=7, frameon=False, labelcolor=style.INK)
    return figure


def speeds(lines: Sequence[Result], arms: Mapping[str, str]) -> Figure:
    """Gold against updates, means over seeds and settings, with the range over seeds as a band."""
    figure, axes = style.panels(2, 2, 3.8)
    for ax, (name, title) in zip(
        axes, (("gold_mean", "Gold score"), ("kl", "KL to the SFT policy")), strict=True
    ):
        style.axes(
            ax,
            f"{title}, mean over the 12 settings",
            "update",
            "points" if name == "gold_mean" else "nats",
        )
        for index, (arm, words) in enumerate(arms.items()):
            curves = mean_curves(of_arm(lines, arm), name)
            if not curves:
                continue
            updates = sorted(next(iter(curves.values())))
            values = np.array([[curve[update] for update in updates] for curve in curves.values()])
            color = style.PART_COLORS[index % len(style.PART_COLORS)]
            ax.plot(updates, values.mean(axis=0), color=color, linewidth=1.4, label=words)
            ax.fill_between(
                updates,
                values.min(axis=0),
                values.max(axis=0),
                color=color,
                alpha=0.12,
                linewidth=0,
            )
        ax.legend(fontsize=7, frameon=False, labelcolor=style.INK)
    return figure


def mean_curves(lines: Sequence[Result], name: str) -> dict[int, dict[int, float]]:
    """seed -> update -> the mean of a figure over the seed's settings; of the runs that came to
    their end.
    """
    values_of_seed: dict[int, dict[int, list[float]]] = {}
    for line in lines:
        for point in () if line.get("diverged") else line["curve"]:
            values_of_seed.setdefault(line["seed"], {}).setdefault(point["update"], []).append(
                point[name]
            )
    return {
        seed: {update: sum(v) / len(v) for update, v in curve.items()}
        for seed, curve in values_of_seed.items()
    }


def pages(lines: Sequence[Result]) -> dict[str, str | Figure]:
    """The files of the page by their names in `docs/results/`."""
    contrasts = primary_contrasts(lines)
    grid = [line for line in lines if line["arm"] in PRIMARY]
    text = markdown.fill(
        Path(__file__).with_name("page.md"),
        sources=markdown.sources(lines),
        conclusion=markdown.conclusion(contrasts),
        never=sum(speed(line) == NEVER for line in grid),
        of_grid=len(grid),
        contrasts=markdown.contrasts_table(contrasts),
        arms=arms_table(grid, PRIMARY),
        grid=grid_table(grid, PRIMARY),
        controls=arms_table(at_setting(lines, 2e-3, 0.16), PRIMARY | CONTROLS),
    )
    return {
        "grpovi.md": text,
        "grpovi_frontier.png": frontier(grid, PRIMARY),
        "grpovi_updates.png": speeds(grid, PRIMARY),
    }
