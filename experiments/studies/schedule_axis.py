"""Pages of the studies of one key of the schedule at a lag of one update: updates per minibatch (T),
or samples per prompt (K). The rules are those of each study's `protocol.md`.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.studies import markdown
from experiments.studies.markdown import Contrast, table, with_interval
from experiments.studies.offpolicyness import findings, plots
from experiments.studies.offpolicyness.measures import (
    SYMBOL,
    Group,
    at_one_kl,
    drop,
    groups,
    note_on_collapsed,
    reported,
)
from rlhf_jax.report.statistics import OfSeed, Result, differences

MARGIN = 0.02  # of win-rate


def after(group: Group, value: int, update: int) -> OfSeed:
    """Win-rate of a value after so many updates, by seed; none of a run that did not come there."""
    return {
        result["seed"]: line["win_rate"]
        for result in group.arms[value]
        for line in result["curve"]
        if line["update"] == update
    }


def contrast(group: Group, name: str, one: OfSeed, fallen: Sequence[int]) -> Contrast:
    """A difference of win-rates from the axis's first value at its end.

    Args:
      group: of the axis.
      name: of the contrast.
      one: the win-rate of the other arm, by seed.
      fallen: values of the axis whose collapsed runs are counted beside it.
    """
    note = note_on_collapsed(*(group.arms[value] for value in fallen))
    values = differences(one, group.figure(group.first, "win_rate"))
    return Contrast(name, values, MARGIN, "of win-rate", 3, note=note)


def of_the_ends(group: Group) -> list[Contrast]:
    """A contrast with the first value for each of the others, at the ends of training."""
    symbol = SYMBOL[group.axis]
    return [
        contrast(
            group,
            f"{number}. {symbol} = {value} − {symbol} = {group.first}, at the end",
            group.figure(value, "win_rate"),
            (group.first, value),
        )
        for number, value in enumerate(group.values[1:], start=1)
    ]


def values_table(group: Group, rates: dict[str, bool], update: int) -> str:
    """A row for each value: learning rate, ages, win-rates, gold, KL.

    Args:
      group: of the axis.
      rates: arm -> whether its learning rate lies on an edge of what was tried.
      update: whose win-rate has a column of its own.
    """
    symbol = SYMBOL[group.axis]
    head = (symbol, "learning rate", "mean, largest age", f"win-rate after {update} updates")
    head += ("win-rate", "gold", "learned reward", "KL")
    head += (f"gold at one KL − {symbol} {group.first}", "seeds not read", "collapsed")
    rows = []
    for value in group.values:
        runs, age = group.arms[value], group.age(value)
        edge = " (edge)" if rates.get(runs[0]["arm"]) else ""
        row = [str(value), f"{runs[0]['setting'][findings.RATE]:g}{edge}"]
        row += [f"{age['mean']:.3g}, {age['max']:g}"]
        row += [with_interval(after(group, value, update), 3)]
        for name, digits in (("win_rate", 3), ("gold_mean", 2), ("reward_mean", 2), ("kl", 2)):
            row.append(with_interval(group.figure(value, name), digits))
        at_kl, unread = at_one_kl(group, value)
        first = value == group.first
        row += ["–", "–"] if first else [with_interval(at_kl, 2, signed=True), str(len(unread))]
        rows.append([*row, f"{group.num_collapsed(value)} of {len(runs)}"])
    return table(head, rows)


def pages(
    name: str, lines: Sequence[Result], axis: str, contrasts: Sequence[Contrast], update: int
) -> dict[str, str | Figure]:
    """The files of a study's page by their names in `docs/results/`.

    Args:
      name: of the study, whose folder has `page.md`.
      lines: results of its cells.
      axis: the key of the schedule that its arms differ in.
      contrasts: the primary ones.
      update: whose win-rate has a column of its own.
    """
    group, lags = of_axis(lines, axis), groups(reported(lines), "lag")[0]
    late = Contrast("", drop(lags, 1, "win_rate"), MARGIN, "of win-rate", 3)
    sentence = markdown.verdict(late, markdown.p_value(list(late.values.values())))
    text = markdown.fill(
        Path(__file__).parent / name / "page.md",
        sources=markdown.sources(lines),
        conclusion=markdown.conclusion(contrasts),
        contrasts=markdown.contrasts_table(contrasts),
        values=values_table(group, findings.on_edges(lines), update),
        late=f"{with_interval(late.values, 3, signed=True)}: {sentence}",
    )
    return {
        f"{name}.md": text,
        f"{name}_ends.png": plots.final_figures([group]),
        f"{name}_kl.png": plots.against([group], "kl"),
    }


def of_axis(lines: Sequence[Result], axis: str) -> Group:
    """The group of an axis: its arms at lag 1."""
    (group,) = groups(reported(lines), axis)
    return group
