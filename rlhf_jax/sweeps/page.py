"""Writes the page of a study: a row for each arm and setting, differences paired by seed, curves
against updates and KL.

The first row of the table is the one that the others are compared with. Runs that diverged are
counted and not averaged.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from rlhf_jax.records.jsonl import replace
from rlhf_jax.refusal import Refusal
from rlhf_jax.report import rendering
from rlhf_jax.report.elements import Drawing, Table
from rlhf_jax.report.plots import style
from rlhf_jax.report.statistics import OfSeed, Result, by_seed, differences, final, interval

TEMPLATE = "templates/study.html.jinja"
MEASURES = {
    "gold": "gold_mean",
    "win-rate": "win_rate",
    "learned reward": "reward_mean",
    "KL": "kl",
}
CURVES = {
    "Gold score": ("gold_mean", "points"),
    "Learned reward": ("reward_mean", "standardised score"),
}


def write_study(directory: Path, results: Sequence[Result], arms: Sequence[str]) -> Path:
    """Writes `report.html`, `plots/*.png` and `summary.json`; returns the path of the page.

    Args:
      directory: of the study.
      results: of the cells that have ended.
      arms: names, in the order of the page.

    Raises Refusal without any result.
    """
    if not results:
        raise Refusal(f"no cell of {directory} has ended")
    results_of_row = rows_of(results, arms)
    ended = {
        row: [result for result in results_of_row[row] if not result.get("diverged")]
        for row in results_of_row
    }
    ended = {row: results_of_arm for row, results_of_arm in ended.items() if results_of_arm}
    head, table = table_of(results_of_row, ended)
    (directory / "plots").mkdir(parents=True, exist_ok=True)
    drawn = []
    for across, label in (("update", "update"), ("kl", "KL to the SFT policy, nats a completion")):
        figure = curves(ended, across, label)
        if figure is not None:
            style.write_png(figure, directory / "plots" / f"against_{across}.png")
            drawn.append(Drawing(Markup(style.svg(figure, across)), f"figures against {across}"))
    summary = {"head": head, "rows": table}
    replace(directory / "summary.json", json.dumps(summary, indent=1).encode())
    path = directory / "report.html"
    page = rendering.page(
        TEMPLATE,
        title=f"study {directory.name}",
        name=directory.name,
        first=next(iter(ended), ""),
        table=Table(head, ("", *("number" for _ in head[1:])), table),
        figures=drawn,
    )
    replace(path, page.encode())
    return path


def rows_of(results: Sequence[Result], arms: Sequence[str]) -> dict[str, list[Result]]:
    """Results by row of the table: an arm, and its setting where it has one; in the order of the
    arms.
    """
    results_of_row: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: arms.index(result["arm"])):
        setting = ", ".join(
            f"{key.rsplit('.', 1)[-1]} {value}" for key, value in result["setting"].items()
        )
        results_of_row.setdefault(
            f"{result['arm']} ({setting})" if setting else result["arm"], []
        ).append(result)
    return results_of_row


def table_of(
    results_of_row: dict[str, list[Result]], ended: dict[str, list[Result]]
) -> tuple[tuple[str, ...], list[list[str]]]:
    """Head and rows: seeds, those that diverged, each measure that was taken, and its difference to
    the first row.
    """
    measures = {name: key for name, key in MEASURES.items() if _measured(ended, key)}
    first = next(iter(ended), "")
    rows = []
    for row, results in results_of_row.items():
        diverged = sum(1 for result in results if result.get("diverged"))
        cells = [row, str(len(results)), str(diverged)]
        for key in measures.values():
            values = by_seed(ended.get(row, ()), lambda result, key=key: final(result, key))
            reference = by_seed(ended[first], lambda result, key=key: final(result, key))
            cells.append(with_interval(values))
            cells.append(
                "–" if row == first else with_interval(differences(values, reference), signed=True)
            )
        rows.append(cells)
    return (
        "arm",
        "seeds",
        "diverged",
        *(title for name in measures for title in (name, "− first")),
    ), rows


def _measured(ended: dict[str, list[Result]], key: str) -> bool:
    return any(
        not math.isnan(final(result, key)) for results in ended.values() for result in results
    )


def with_interval(values: OfSeed, signed: bool = False, digits: int = 3) -> str:
    """ "mean ± half-width", or "–" where there is no value; a single seed has no interval."""
    if not values:
        return "–"
    mean, half = interval(values)
    text = f"{mean:{'+' if signed else ''}.{digits}f}"
    return text if math.isnan(half) else f"{text} ± {half:.{digits}f}"


def curves(ended: dict[str, list[Result]], across: str, label: str) -> Figure | None:
    """Means over seeds of what was measured, with the range of the seeds as a band; None where
    nothing was.
    """
    drawn = {title: curve for title, curve in CURVES.items() if _measured(ended, curve[0])}
    if not drawn:
        return None
    figure, axes = style.panels(len(drawn), 2, 3.6)
    for ax, (title, (name, unit)) in zip(axes, drawn.items(), strict=True):
        style.axes(ax, title, label, unit)
        for index, (row, results) in enumerate(ended.items()):
            if not _measured({row: results}, name):
                continue  # such as a learned reward in an arm that is scored by gold
            length = min(len(result["curve"]) for result in results)
            points = [
                [(line[across], line[name]) for line in result["curve"][:length]]
                for result in results
            ]
            x, y = np.array(points, float).transpose(2, 0, 1)
            color = style.PART_COLORS[index % len(style.PART_COLORS)]
            line = ("-", "--", ":")[index // len(style.PART_COLORS) % 3]
            ax.plot(
                x.mean(axis=0),
                y.mean(axis=0),
                line,
                color=color,
                linewidth=1.4,
                label=row.replace("_", " "),
            )
            if across == "update":
                ax.fill_between(
                    x.mean(axis=0),
                    y.min(axis=0),
                    y.max(axis=0),
                    color=color,
                    alpha=0.12,
                    linewidth=0,
                )
        ax.legend(fontsize=6.5, frameon=False, labelcolor=style.MUTED)
    return figure
