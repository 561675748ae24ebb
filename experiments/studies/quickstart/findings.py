"""Writes the page of the quickstart's algorithms from its ended cells."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.studies import markdown
from experiments.studies.markdown import table, with_interval
from rlhf_jax.report.statistics import Result, by_seed, final, interval

WORKS = (
    2.5  # of gold at the end: above what any deliberately broken algorithm reaches (protocol.md)
)
FIRST = "online_dpo"  # the quickstart's own algorithm
MEASURES = (
    ("gold_mean", 2),
    ("win_rate", 3),
    ("reward_mean", 2),
    ("kl", 2),
    ("distinct_completions", 3),
)


def split(lines: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by arm, the quickstart's own algorithm first."""
    found: dict[str, list[Result]] = {}
    for line in sorted(lines, key=lambda line: (line["arm"] != FIRST, line["arm"])):
        found.setdefault(line["arm"], []).append(line)
    return found


def arms_table(lines: Sequence[Result]) -> str:
    """A row for each algorithm: last figures over seeds, and whether it works by the protocol's
    rule.
    """
    rows = []
    for arm, runs in split(lines).items():
        values = {
            name: by_seed(runs, lambda run, name=name: final(run, name)) for name, _ in MEASURES
        }
        mean, half = interval(values["gold_mean"])
        cells = [with_interval(values[name], digits) for name, digits in MEASURES]
        rows.append([f"`{arm}`", *cells, "yes" if mean - half > WORKS else "not shown"])
    head = (
        "algorithm",
        "gold",
        "win-rate",
        "learned reward",
        "KL, nats per completion",
        "distinct of 64",
    )
    return table((*head, f"gold above {WORKS:g}"), rows)


def seeds_table(lines: Sequence[Result]) -> str:
    """A row for each seed of the quickstart's own algorithm: before and after."""
    rows = []
    for run in sorted(split(lines)[FIRST], key=lambda run: run["seed"]):
        before, after = run["curve"][0], run["curve"][-1]
        cells = [str(run["seed"]), f"{before['win_rate']:.3f} → {after['win_rate']:.3f}"]
        cells += [
            f"{before['gold_mean']:.2f} → {after['gold_mean']:.2f}".replace("-", "−"),
            f"{after['kl']:.2f}",
        ]
        rows.append([*cells, f"{after['distinct_completions']:.3f}"])
    return table(("seed", "win-rate", "gold", "KL", "distinct of 64"), rows)


def pages(lines: Sequence[Result]) -> dict[str, str | Figure]:
    """The files of the page by their names in `docs/results/`."""
    text = markdown.fill(
        Path(__file__).with_name("page.md"),
        sources=markdown.sources(lines),
        arms=arms_table(lines),
        seeds=seeds_table(lines),
    )
    return {"quickstart.md": text}
