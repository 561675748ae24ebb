"""Writes the page of the study of flat groups from its ended cells; the rules are those of
`protocol.md`.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.studies import markdown
from experiments.studies.curves import by_update, interval_line, legend_above, mean_of_planned
from experiments.studies.hypotheses import (
    Hypothesis,
    accuracy,
    collapsed_note,
    hypotheses_table,
    is_collapsed,
    wrong_signs,
)
from experiments.studies.markdown import table, with_interval
from rlhf_jax.report.plots import style
from rlhf_jax.report.statistics import OfSeed, Result, by_seed, differences, t_interval

KINDS = {"keep": "kept", "leave_out": "left out"}
FROM = 24  # the first update whose evaluation counts
STEP_MARGIN = round(math.log(1.05), 4)
MARGIN = 0.03  # of accuracy


def of(lines: Sequence[Result], kind: str) -> list[Result]:
    """Runs of an arm."""
    return [line for line in lines if line["arm"] == kind]


def log_norm(lines: Sequence[Result], name: str) -> OfSeed:
    """The mean over updates of the logarithm of a norm, by seed; updates without a gradient are left
    out.

    Args:
      lines: of one arm.
      name: "update_norm" or "grad_norm".
    """
    return by_seed(
        lines,
        lambda line: float(np.mean([math.log(x) for x in line["measured"][name] if x])),
    )


def learned(lines: Sequence[Result]) -> OfSeed:
    """Mean accuracy over the evaluations from update `FROM` on, by seed."""
    return by_seed(lines, lambda line: mean_of_planned(line, "gold_mean", FROM))


def primary_hypotheses(lines: Sequence[Result]) -> list[Hypothesis]:
    """The two primary tests."""
    keep, out = of(lines, "keep"), of(lines, "leave_out")
    steps = differences(log_norm(out, "update_norm"), log_norm(keep, "update_norm"))
    return [
        Hypothesis(
            "1. Step: log of the ratio of update norms, left out / kept",
            steps,
            "equivalent",
            "of the logarithm",
            STEP_MARGIN,
        ),
        Hypothesis(
            "2. Learning: mean accuracy, left out − kept",
            differences(learned(out), learned(keep)),
            "equivalent",
            "of accuracy",
            MARGIN,
            note=collapsed_note([*keep, *out]),
        ),
    ]


def steps_sentence(test: Hypothesis) -> str:
    """The mean ratio of update norms with its interval, in words."""
    mean, half = t_interval(list(test.values.values()))
    low, middle, high = (math.exp(value) for value in (mean - half, mean, mean + half))
    return (
        f"An update is {middle:.3f} times as large where flat groups are left out (95 % interval "
        f"{low:.3f} to {high:.3f})."
    )


def arms_table(lines: Sequence[Result]) -> str:
    """A row for each arm: accuracies, norms, share of flat groups, collapsed runs."""
    rows = []
    for kind, name in KINDS.items():
        runs = of(lines, kind)
        norms = [
            with_interval({s: math.exp(x) for s, x in log_norm(runs, key).items()}, 3)
            for key in ("grad_norm", "update_norm")
        ]
        flat = by_seed(runs, lambda line: line["means"]["flat_group_share"])
        fallen = f"{sum(map(is_collapsed, runs))} of {len(runs)}"
        rows.append(
            [name, with_interval(learned(runs), 3), with_interval(accuracy(runs), 3)]
            + [*norms, with_interval(flat, 2), fallen]
        )
    head = ("flat groups", "mean accuracy", "accuracy at the end", "norm of a gradient")
    return table((*head, "norm of an update", "share of flat groups", "collapsed"), rows)


def curves(lines: Sequence[Result]) -> Figure:
    """Accuracy against updates, a line for each arm."""
    figure, (ax,) = style.panels(1, 1, 3.6)
    style.axes(ax, "Held-out accuracy", "updates", "share of prompts")
    for (kind, name), color in zip(KINDS.items(), (style.TRAINING, style.HELDOUT), strict=True):
        points = by_update(of(lines, kind), "gold_mean")
        interval_line(ax, list(points), list(points.values()), color, name)
    legend_above(ax)
    return figure


def pages(lines: Sequence[Result]) -> dict[str, str | Figure]:
    """The files of the page by their names in `docs/results/`."""
    tests = primary_hypotheses(lines)
    signs = list(tests[1].values.values())
    text = markdown.fill(
        Path(__file__).with_name("page.md"),
        sources=markdown.sources(lines),
        hypotheses=hypotheses_table(tests),
        steps=steps_sentence(tests[0]),
        arms=arms_table(lines),
        wrong=f"{wrong_signs(signs)} of {len(signs)}",
    )
    return {"flat_groups.md": text, "flat_groups_curves.png": curves(lines)}
