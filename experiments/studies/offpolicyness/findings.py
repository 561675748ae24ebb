"""Writes the page of a study of staleness: what is lost with age, who loses least, and whether the frontier moves.

The paper's numbers are those of Noukhovitch et al. 2024 (arXiv 2410.18252) for a policy of 410 million parameters on TL;DR, as
table 1 of arXiv 2503.18929 prints them: win-rate and "KL (perplexity)" of near-greedy completions. Its data age is age + 1.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.studies.offpolicyness import plots as staleness_plots
from experiments.studies.offpolicyness.measures import (
    AGE_AXES,
    AXES,
    SYMBOL,
    Group,
    at_one_kl,
    difference_of_drops,
    drop,
    groups,
    verdict,
)
from rlhf_jax.observe.lines import replace
from rlhf_jax.refusal import Refusal
from rlhf_jax.report import page, style
from rlhf_jax.report.statistics import Result, by_seed, final, interval

ROBUST = "online_dpo"  # the algorithm that the paper finds to lose least
FIGURES = {"win-rate": "win_rate", "gold": "gold_mean", "KL": "kl", "learned reward": "reward_mean"}
GREEDY = {"win-rate, greedy": "win_rate_greedy", "KL (perplexity), greedy": "kl_perplexity"}
COSTS = ("prompts", "completions", "rows", "tokens", "updates")
PAPER = {  # algorithm -> data age -> win-rate, perplexity
    "online_dpo": {1: (0.85, 1.13), 2: (0.85, 1.13), 16: (0.82, 1.12)},
    "ppo": {1: (0.86, 1.14), 2: (0.84, 1.14), 16: (0.76, 1.10)},
    "rloo": {1: (0.82, 1.13), 2: (0.83, 1.13), 16: (0.77, 1.10)},
}
PAPER_SOURCE = "arXiv 2410.18252, 410m, as reprinted in arXiv 2503.18929, table 1"


def write_study(directory: Path, results: Sequence[Result], arms: Sequence[str]) -> Path:
    """Writes `report.html`, `plots/*.png` and `summary.json`; returns the page. Raises Refusal without any result."""
    if not results:
        raise Refusal(f"no cell of {directory} has ended")
    ordered = sorted(results, key=lambda result: arms.index(result["arm"]))
    axes = {axis: found for axis in AXES if (found := groups(ordered, axis))}
    said = [sentence for found in axes.values() for sentence in findings(found)]
    body = [f"<h1>{page.text(directory.name)}</h1>", *(f"<p>{page.text(sentence)}</p>" for sentence in said)]
    (directory / "plots").mkdir(parents=True, exist_ok=True)
    for axis, found in axes.items():
        body.append(f"<h2>{page.text(staleness_plots.AXIS_LABELS[axis])}</h2>")
        for name, figure in drawings(found).items():
            style.write_png(figure, directory / "plots" / f"{axis}_{name}.png")
            body.append(page.drawing(style.svg(figure, f"{axis}-{name}"), f"{name} by {axis}"))
        body += [comparison_table(found), "<p></p>"]
    body += ["<h2>Every arm</h2>", arms_table(ordered), "<h2>What each was trained on</h2>", costs_table(ordered)]
    if paper_rows(axes):
        body += ["<h2>Beside the paper</h2>", paper_table(axes)]
    summary = {
        "findings": said,
        "arms": {arm: arm_summary(of_arm) for arm, of_arm in split(ordered).items()},
        "axes": {axis: {group.name: group_summary(group, found) for group in found} for axis, found in axes.items()},
        "paper": {"source": PAPER_SOURCE, "win-rate and perplexity by data age": PAPER},
    }
    replace(directory / "summary.json", json.dumps(summary, indent=1, allow_nan=False).encode())
    path = directory / "report.html"
    replace(path, page.page(f"study {directory.name}", body).encode())
    return path


def drawings(found: Sequence[Group]) -> dict[str, Any]:
    """The figures of an axis by file name."""
    figures = {"win_rate_against_kl": staleness_plots.against_kl(found)}
    if found[0].axis in AGE_AXES:
        figures["final"] = staleness_plots.final_figures(found)
        figures["compared"] = staleness_plots.compared(found, reference_of(found))
    else:
        figures["progress"] = staleness_plots.progress(found)
    return figures


def reference_of(found: Sequence[Group]) -> Group:
    """The group that drops are compared with: Online DPO's, or the first."""
    return next((group for group in found if group.algorithm == ROBUST), found[0])


def findings(found: Sequence[Group]) -> list[str]:
    """The paper's two claims on an axis of ages, at its last value: who loses least, and whether the frontier stays."""
    if found[0].axis not in AGE_AXES:
        return []
    reference, sentences = reference_of(found), []
    last = reference.values[-1]
    at = "{} {} (mean age {mean:.4g}, at most {max:g})".format(SYMBOL[reference.axis], last, **reference.age(last))
    for group in found:
        if group.algorithm != reference.algorithm and last in group.arms:
            mean, half = interval(difference_of_drops(group, reference, last, "win_rate"))
            sentences.append(
                f"{at}: {group.name} loses {signed(mean, half, 3)} more win-rate than {reference.name}: that "
                f"{reference.name} is the more robust {verdict(mean, half)}."
            )
    for group in found:
        values, unread = at_one_kl(group, group.values[-1])
        sentences.append(
            f"{SYMBOL[group.axis]} {group.values[-1]}: {group.name} has {signed(*interval(values), 2)} points of gold at one "
            f"KL beside age 0 ({len(unread)} of {len(values) + len(unread)} seeds were not measured there)."
        )
    return sentences


def split(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by arm."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result["arm"], []).append(result)
    return found


def plain(pair: tuple[float, float]) -> list[float | None]:
    """Mean and half-width as JSON can say them."""
    return [None if math.isnan(value) else value for value in pair]


def signed(mean: float, half: float, digits: int) -> str:
    return f"{mean:+.{digits}f} ± {half:.{digits}f}"


def over_seeds(of_arm: Sequence[Result], name: str) -> tuple[float, float]:
    """Mean and half-width of an arm's last figure."""
    return interval(by_seed(of_arm, lambda result: final(result, name)))


def arm_summary(of_arm: Sequence[Result]) -> dict[str, Any]:
    """An arm's schedule, ages, setting, cost (means over seeds) and final figures."""
    first = of_arm[0]
    summary = {key: first[key] for key in ("algorithm", "policy", "reward", "schedule", "ages", "setting")}
    summary["seeds"] = sorted(result["seed"] for result in of_arm)
    summary["trained"] = costs(of_arm)
    return summary | {words: plain(over_seeds(of_arm, name)) for words, name in (FIGURES | GREEDY).items()}


def group_summary(group: Group, found: Sequence[Group]) -> dict[str, Any]:
    """Drops, differences of drops to every other group, and gold at one KL, by value."""
    summary: dict[str, Any] = {}
    for value in group.values[1:]:
        at_kl, unread = at_one_kl(group, value)
        summary[str(value)] = {
            "ages": group.age(value),
            "drop": {words: plain(interval(drop(group, value, name))) for words, name in FIGURES.items()},
            "gold at one KL": [*plain(interval(at_kl)), len(unread)],
            "drop in win-rate beyond that of": {
                other.name: plain(interval(difference_of_drops(group, other, value, "win_rate")))
                for other in found
                if other is not group and value in other.arms
            },
        }
    return summary


def comparison_table(found: Sequence[Group]) -> str:
    """A row a group and value: drops, difference to the reference's drop, gold at one KL."""
    reference = reference_of(found)
    symbol = SYMBOL[reference.axis]
    head = ("", symbol, "mean age", "largest", "drop in win-rate", f"beyond {reference.name}", "drop in gold")
    head += (f"gold at one KL − {symbol} {reference.first}", "not measured")
    rows = []
    for group in found:
        for value in group.values[1:]:
            beyond = "–"
            if group is not reference and value in reference.arms:
                beyond = signed(*interval(difference_of_drops(group, reference, value, "win_rate")), 3)
            at_kl, unread = at_one_kl(group, value)
            age = group.age(value)
            cells = [page.text(group.name), str(value), f"{age['mean']:.4g}", f"{age['max']:g}"]
            cells += [signed(*interval(drop(group, value, "win_rate")), 3), beyond]
            cells += [signed(*interval(drop(group, value, "gold_mean")), 2), signed(*interval(at_kl), 2)]
            rows.append([*cells, f"{len(unread)} of {len(at_kl) + len(unread)}"])
    return page.table(head, rows, ("", *("number" for _ in head[1:])))


def arms_table(results: Sequence[Result]) -> str:
    """A row an arm: setting, ages, and final figures."""
    head = ("arm", "learning rate", "seeds", "mean age", "largest", *FIGURES, *GREEDY)
    rows = []
    for arm, of_arm in split(results).items():
        first = of_arm[0]
        rate = ", ".join(f"{value:g}" for value in first["setting"].values())
        cells = [page.text(arm), rate, str(len(of_arm)), f"{first['ages']['mean']:.4g}", f"{first['ages']['max']:g}"]
        cells += ["{:.3f} ± {:.3f}".format(*over_seeds(of_arm, name)) for name in (FIGURES | GREEDY).values()]
        rows.append(cells)
    return page.table(head, rows, ("", *("number" for _ in head[1:])))


def costs_table(results: Sequence[Result]) -> str:
    """A row an arm: prompts and completions sampled, rows and completion tokens trained on, updates; means over seeds."""
    rows = [
        [page.text(arm), *(f"{value:,.0f}" for value in costs(of_arm).values())]
        for arm, of_arm in split(results).items()
    ]
    return page.table(("arm", *COSTS), rows, ("", *("number" for _ in COSTS)))


def costs(of_arm: Sequence[Result]) -> dict[str, float]:
    return {key: sum(result["trained"][key] for result in of_arm) / len(of_arm) for key in COSTS}


def paper_rows(axes: dict[str, list[Group]]) -> list[list[str]]:
    """For each algorithm and data age that we have: the paper's win-rate / perplexity, and ours by lag and by minibatches."""

    def ours(axis: str, algorithm: str, value: int) -> str:
        of_algorithm = [group for group in axes.get(axis, []) if group.algorithm == algorithm]
        if len(of_algorithm) != 1 or value not in of_algorithm[0].arms:  # several sizes have no paper's number each
            return ""
        rate, perplexity = (over_seeds(of_algorithm[0].arms[value], name)[0] for name in GREEDY.values())
        return f"{rate:.3f} / {perplexity:.3f}"

    rows = []
    for algorithm, of_age in PAPER.items():
        for age, (rate, perplexity) in of_age.items():
            beside = [ours("lag", algorithm, age - 1), ours("num_minibatches", algorithm, age)]
            if any(beside):
                rows.append([algorithm.replace("_", " "), str(age), f"{rate:.2f} / {perplexity:.2f}", *beside])
    return rows


def paper_table(axes: dict[str, list[Group]]) -> str:
    """The paper's figures beside ours of the same data age on either axis: greedy win-rate / KL (perplexity)."""
    head = ("", "data age", f"paper ({PAPER_SOURCE})", "ours, lag = data age − 1", "ours, N = data age")
    return page.table(head, paper_rows(axes), ("", "number", "number", "number", "number"))
