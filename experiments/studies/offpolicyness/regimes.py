"""Writes the page that says which loss to take at which age, by a rule, from the cells of the study of
off-policyness.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.studies import markdown
from experiments.studies.markdown import number, table, with_interval
from experiments.studies.offpolicyness.measures import Group, drop
from rlhf_jax.report.statistics import OfSeed, interval

WEAK = "best_of_n"
"""Its fresh arm got a lower learning rate than its stale ones, so that its drops show that choice (see
the study's page).
"""
SMALL = 0.05  # of win-rate: the fresh arms of the three other algorithms lie within it


def candidates(groups: Sequence[Group]) -> list[Group]:
    """The groups that are compared: every algorithm and correction but `WEAK`."""
    return [group for group in groups if group.algorithm != WEAK]


def upper(values: OfSeed) -> float:
    """The upper end of the 95 % interval of a drop."""
    mean, half = interval(values)
    return mean + half


def ordered(groups: Sequence[Group], value: int) -> list[Group]:
    """The groups without a collapsed run at a value, by the upper end of their drop's interval."""
    whole = [group for group in groups if not group.num_collapsed(value)]
    return sorted(whole, key=lambda group: upper(drop(group, value, "win_rate")))


def regime_table(groups: Sequence[Group], value: int) -> str:
    """A row for each group: win-rates fresh and stale, drop, learning rate, collapsed runs; best
    first.
    """
    found = ordered(groups, value)
    rows = []
    for group in [*found, *(group for group in groups if group not in found)]:
        fallen, runs = group.num_collapsed(value), group.arms[value]
        stale = [
            with_interval(group.figure(value, "win_rate"), 3),
            with_interval(drop(group, value, "win_rate"), 3, signed=True),
        ]
        rows.append(
            [
                group.name,
                with_interval(group.figure(group.first, "win_rate"), 3),
                *(["–", "–"] if fallen else stale),
                f"{fallen} of {len(runs)}",
            ]
        )
    return table(("loss", "win-rate, fresh", "win-rate, stale", "drop", "collapsed"), rows)


def advice(groups: Sequence[Group], value: int) -> str:
    """One sentence: the losses whose drop is small for certain, and the first by the rule."""
    found = ordered(groups, value)
    first = drop(found[0], value, "win_rate")
    small = [group.name for group in found if upper(drop(group, value, "win_rate")) < SMALL]
    said = (
        f"By the rule: **{found[0].name}**, whose drop is {with_interval(first, 3, signed=True)} "
        f"of win-rate."
    )
    if not small:
        return f"{said} No loss is shown to lose less than {SMALL:.2f}."
    many = "; ".join(small)
    return f"{said} Shown to lose less than {SMALL:.2f}: {many} ({len(small)} of {len(groups)})."


def regime(groups: Sequence[Group], value: int) -> str:
    """Advice, the ages, and the table of one regime.

    Args:
      groups: of one axis.
      value: on it.
    """
    some = candidates(groups)
    age = some[0].age(value)
    cells = sum(len(group.arms[value]) for group in some)
    ages = f"Mean age {number(age['mean'], 1)}, largest {age['max']:g}; {cells} stale cells."
    return f"{advice(some, value)} {ages}\n\n{regime_table(some, value)}"


def page(lags: Sequence[Group], minibatches: Sequence[Group]) -> str:
    """The text of `docs/results/which_lag.md`."""
    return markdown.fill(
        Path(__file__).with_name("which_lag.md"),
        one=regime(lags, 1),
        few=regime(lags, 3),
        far=regime(lags, 15),
        minibatches=regime(minibatches, 16),
        extreme=regime(minibatches, 64),
        small=f"{SMALL:.2f}",
    )
