"""Writes the page of a study: each arm at its chosen settings, differences paired by seed, curves against updates and KL.

A difference of two arms is taken seed by seed and given with its 95 % t-interval. "At one KL" reads every arm's curve of the
gold score against true KL, seed by seed, at the largest KL that all of that seed's arms have reached, on a line in √KL between
evaluations: gold begins as one in it (Gao et al. 2022, arXiv 2210.10760: d (α − β d), d = √KL), so that an arm whose
evaluations lie further apart does not seem worse than it is.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rlhf_jax.observe.lines import replace
from rlhf_jax.refusal import Refusal
from rlhf_jax.report import page, style

Result = dict[str, Any]
T_975 = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # by degrees of freedom 1 ... 9
NORMAL_975 = 1.96


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % t-interval; NaN half-width for a single value."""
    count = len(values)
    if count < 2:
        return float(np.mean(values)), math.nan
    factor = T_975[count - 1] if count <= len(T_975) else NORMAL_975
    return float(np.mean(values)), float(factor * np.std(values, ddof=1) / math.sqrt(count))


def final(result: Result, name: str) -> float:
    """A figure of a cell's last evaluation."""
    return result["curve"][-1][name]


def at_kl(result: Result, kl: float, name: str) -> float:
    """A figure of a cell's curve where its KL is `kl`, on a line in √KL between the evaluations around it."""
    roots = np.sqrt(np.maximum.accumulate([line["kl"] for line in result["curve"]]))
    return float(np.interp(np.sqrt(kl), roots, [line[name] for line in result["curve"]]))


def by_arm(results: Sequence[Result], value: Callable[[Result], float]) -> dict[str, dict[int, float]]:
    """arm -> seed -> value."""
    found: dict[str, dict[int, float]] = {}
    for result in results:
        found.setdefault(result["arm"], {})[result["seed"]] = value(result)
    return found


def common_kl(results: Sequence[Result]) -> dict[int, float]:
    """For each seed, the largest KL that every arm of it has reached."""
    reached: dict[int, list[float]] = {}
    for result in results:
        reached.setdefault(result["seed"], []).append(max(line["kl"] for line in result["curve"]))
    return {seed: min(kls) for seed, kls in reached.items()}


def paired(values: dict[str, dict[int, float]], arm: str, other: str) -> tuple[float, float]:
    """Mean and half-width of arm − other over the seeds that both have."""
    seeds = sorted(values[arm].keys() & values[other].keys())
    return t_interval([values[arm][seed] - values[other][seed] for seed in seeds])


def measures(results: Sequence[Result]) -> dict[str, dict[str, dict[int, float]]]:
    """What is compared: gold, learned reward and KL at the end, and gold at one KL."""
    kl = common_kl(results)
    return {
        "gold": by_arm(results, lambda result: final(result, "gold_mean")),
        "gold at one KL": by_arm(results, lambda result: at_kl(result, kl[result["seed"]], "gold_mean")),
        "learned reward": by_arm(results, lambda result: final(result, "reward_mean")),
        "KL": by_arm(results, lambda result: final(result, "kl")),
    }


def finding(values: dict[str, dict[str, dict[int, float]]]) -> list[str]:
    """The study's question in figures: GRPOVI against GRPO and against its controls, at the end and at one KL."""
    sentences = []
    pairs = [
        ("grpovi_standardized_6", "grpo_standardized", "GRPOVI with division against GRPO with division"),
        ("grpovi_centered_6", "grpo_centered", "GRPOVI without division against GRPO without"),
        ("matched_std", "grpo_centered", "scale alone (matched deviation) against GRPO without division"),
        ("grpovi_centered_6", "matched_std", "shape alone (GRPOVI against its own scale)"),
    ]
    for arm, other, words in pairs:
        if any(name not in values["gold"] for name in (arm, other)):
            continue
        parts = []
        for measure in ("gold", "gold at one KL"):
            mean, half = paired(values[measure], arm, other)
            parts.append(f"{measure} {mean:+.3f} ± {half:.3f}")
        sentences.append(f"{words}: {', '.join(parts)}.")
    return sentences


def write_study(directory: Path, results: Sequence[Result], arms: Sequence[str]) -> Path:
    """Writes `report.html`, `plots/*.png` and `summary.json`; returns the page. Raises Refusal without any result."""
    if not results:
        raise Refusal(f"no cell of {directory} has ended")
    values = measures(results)
    there = [arm for arm in arms if arm in values["gold"]]
    figures = {"updates": curves(results, there, "update"), "kl": curves(results, there, "kl")}
    (directory / "plots").mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        style.write_png(figure, directory / "plots" / f"gold_against_{name}.png")
    drawn = "".join(page.drawing(style.svg(figure, name), f"gold against {name}") for name, figure in figures.items())
    rows = table_rows(results, values, there)
    head = ("arm", "settings", "seeds", *values, "gold − GRPO", "at one KL − GRPO")
    body = [
        f"<h1>{page.text(directory.name)}</h1>",
        *(f"<p>{page.text(sentence)}</p>" for sentence in finding(values)),
        page.table(head, rows, ("", "", "number", *("number" for _ in head[3:]))),
        drawn,
    ]
    replace(
        directory / "summary.json",
        json.dumps({"finding": finding(values), "head": head, "rows": rows}, indent=1).encode(),
    )
    path = directory / "report.html"
    replace(path, page.page(f"study {directory.name}", body).encode())
    return path


def table_rows(results: Sequence[Result], values: dict[str, Any], arms: Sequence[str]) -> list[list[str]]:
    """A row an arm: its settings, each measure with its interval, and differences to GRPO paired by seed."""
    settings = {result["arm"]: result["setting"] for result in results}
    rows = []
    for arm in arms:
        named = ", ".join(f"{key.rsplit('.', 1)[-1]} {value:g}" for key, value in settings[arm].items())
        cells = [page.text(arm), page.text(named), str(len(values["gold"][arm]))]
        cells += ["{:.3f} ± {:.3f}".format(*t_interval(list(of_arm[arm].values()))) for of_arm in values.values()]
        for measure in ("gold", "gold at one KL"):
            reference = "grpo_standardized"
            known = arm != reference and reference in values[measure]
            cells.append("{:+.3f} ± {:.3f}".format(*paired(values[measure], arm, reference)) if known else "–")
        rows.append(cells)
    return rows


def curves(results: Sequence[Result], arms: Sequence[str], across: str) -> Figure:
    """Gold and learned reward, means over seeds, against updates or against true KL."""
    figure, axes = style.panels(2, 2, 3.6)
    for ax, name, title in zip(axes, ("gold_mean", "reward_mean"), ("Gold score", "Learned reward"), strict=True):
        label = "update" if across == "update" else "KL to the reference, nats a completion"
        style.axes(ax, title, label, "points" if name == "gold_mean" else "SFT standard deviations")
        for place, arm in enumerate(arms):
            of_arm = [result["curve"] for result in results if result["arm"] == arm]
            length = min(len(curve) for curve in of_arm)
            x = [np.mean([curve[step][across] for curve in of_arm]) for step in range(length)]
            y = [np.mean([curve[step][name] for curve in of_arm]) for step in range(length)]
            colors = style.PART_COLORS
            line = ("-", "--", ":")[place // len(colors) % 3]
            ax.plot(x, y, line, color=colors[place % len(colors)], linewidth=1.4, label=arm.replace("_", " "))
        ax.legend(fontsize=6.5, frameon=False, labelcolor=style.MUTED)
    return figure
