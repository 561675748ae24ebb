"""Writes the page of the study of in-flight updates beside exact lags from its ended cells; the
rules are those of `protocol.md`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.studies import markdown
from experiments.studies.hypotheses import (
    Hypothesis,
    accuracy,
    collapsed_note,
    hypotheses_table,
    is_collapsed,
)
from experiments.studies.keep_or_rebuild.findings import at_ends, curves_plot, split, starts
from experiments.studies.markdown import table, with_interval
from rlhf_jax.report.statistics import Result, by_seed, differences

MARGIN = 0.03  # of accuracy
INFLIGHT, MATCHED, BELOW, ABOVE = "inflight", "matched", "lag1", "lag2"
NAMES = {
    INFLIGHT: "in flight",
    MATCHED: "one version per round, as old",
    "lag0": "lag 0",
    BELOW: "lag 1",
    ABOVE: "lag 2",
}


def primary_hypotheses(arms: Mapping[str, list[Result]]) -> list[Hypothesis]:
    """The three primary tests: the in-flight run against the schedule of its ages, and against the
    constant lags below and above.
    """
    return [
        Hypothesis(
            f"{number}. Accuracy {NAMES[INFLIGHT]} − {NAMES[arm]}",
            differences(accuracy(arms[INFLIGHT]), accuracy(arms[arm])),
            "equivalent",
            "of accuracy",
            MARGIN,
            note=collapsed_note([*arms[INFLIGHT], *arms[arm]]),
        )
        for number, arm in enumerate((MATCHED, BELOW, ABOVE), 1)
    ]


def arms_table(arms: Mapping[str, list[Result]]) -> str:
    """A row for each arm: accuracy, ages, lengths and mixed rows at start and end, collapsed runs."""
    rows = []
    for arm, lines in arms.items():
        ages = [by_seed(lines, lambda line, key=key: line["ages"][key]) for key in ("mean", "max")]
        rows.append(
            [
                NAMES[arm],
                with_interval(accuracy(lines), 3),
                with_interval(ages[0], 2),
                with_interval(ages[1], 1),
                at_ends(lines, "mixed_share"),
                at_ends(lines, "length"),
                f"{sum(map(is_collapsed, lines))} of {len(lines)}",
            ]
        )
    head = ("", "accuracy", "mean age", "largest age", "mixed rows", "mean length", "collapsed")
    return table(head, rows)


def pages(lines: Sequence[Result]) -> dict[str, str | Figure]:
    """The files of the page by their names in `docs/results/`."""
    arms = split(lines)
    text = markdown.fill(
        Path(__file__).with_name("page.md"),
        sources=markdown.sources(lines),
        starts=starts(lines),
        hypotheses=hypotheses_table(primary_hypotheses(arms)),
        arms=arms_table(arms),
    )
    groups = {
        "Beside the schedule of its ages": [INFLIGHT, MATCHED],
        "Beside constant lags": [INFLIGHT, "lag0", BELOW, ABOVE],
    }
    return {
        "inflight_age.md": text,
        "inflight_age_curves.png": curves_plot(arms, groups, lambda arm: NAMES[arm]),
    }
