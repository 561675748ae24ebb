"""What a study of staleness measures: drops from the fresh arm, differences of drops, and gold at one KL.

An *axis* is a key of the schedule (`num_minibatches`, `lag`, `num_epochs`, `samples_per_prompt`). A group of it is everything
that differs in that key alone: axes are never pooled. All comparisons are made seed by seed:

    drop of a value          the figure of the group's first value − the figure of this one, at the end of training
    difference of drops      the drop of one group − the drop of another: positive where the first is less robust
    at one KL                gold of this value − gold of the first, both read off their curves against true KL at the largest
                             KL that both of them have reached

A curve is read between its evaluations on a line in √KL, in which gold begins as one (Gao et al. 2022, arXiv 2210.10760: gold
is d (α − β d), d = √KL). On a line in KL the fresh arm, whose evaluations lie further apart, would seem worse than it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_jax.report.statistics import OfSeed, Result, at_kl, differences, final, largest_kl

AXES = ("num_minibatches", "lag", "num_epochs", "samples_per_prompt")
AGE_AXES = ("num_minibatches", "lag")
USUAL = {"num_minibatches": 1, "lag": 0, "num_epochs": 1}  # what a group's name does not mention
SYMBOL = {"num_minibatches": "N", "lag": "lag", "num_epochs": "T", "samples_per_prompt": "K"}


@dataclass(frozen=True)
class Group:
    """Arms that differ in one axis alone; `arms` has the results of each of its values, which rise. `name` says what sets the
    group apart from the axis's others."""

    axis: str
    algorithm: str
    name: str
    arms: dict[int, list[Result]]

    @property
    def values(self) -> list[int]:
        return list(self.arms)

    @property
    def first(self) -> int:
        """The value that the others are compared with: age 0 on an axis of ages."""
        return self.values[0]

    def figure(self, value: int, name: str) -> OfSeed:
        """A figure of the last evaluation, by seed."""
        return {result["seed"]: final(result, name) for result in self.arms[value]}

    def age(self, value: int) -> dict[str, float]:
        """Mean and largest age of an arm's updates."""
        return self.arms[value][0]["ages"]


def groups(results: Sequence[Result], axis: str) -> list[Group]:
    """The groups of an axis that have more than one of its values, in the order in which their arms are given."""
    found: dict[tuple[Any, ...], dict[int, list[Result]]] = {}
    for result in results:
        rest = tuple((key, value) for key, value in result["schedule"].items() if key != axis)
        key = (result["algorithm"], result["policy"], result["reward"], rest)
        found.setdefault(key, {}).setdefault(result["schedule"][axis], []).append(result)
    several = {key: arms for key, arms in found.items() if len(arms) > 1}
    parts = {key: described(key[0], key[1], key[2], dict(key[3])) for key in several}
    in_common = set.intersection(*map(set, parts.values())) if len(parts) > 1 else set()
    return [
        Group(
            axis,
            key[0],
            ", ".join([part for part in parts[key] if part not in in_common] or parts[key]),
            {value: arms[value] for value in sorted(arms)},
        )
        for key, arms in several.items()
    ]


def described(algorithm: str, policy: str, reward: str, schedule: dict[str, int]) -> list[str]:
    """What a group's arms have in common, in words."""
    parts = [algorithm.replace("_", " ")]
    parts += [f"{role} {name}" for role, name in (("policy", policy), ("reward model", reward)) if name]
    return parts + [
        f"{SYMBOL[key]} {schedule[key]}" for key, usual in USUAL.items() if schedule.get(key, usual) != usual
    ]


def drop(group: Group, value: int, name: str) -> OfSeed:
    """By how much a figure falls from the group's first value to this one."""
    return differences(group.figure(group.first, name), group.figure(value, name))


def difference_of_drops(group: Group, other: Group, value: int, name: str) -> OfSeed:
    """The group's drop − the other's."""
    return differences(drop(group, value, name), drop(other, value, name))


def at_one_kl(group: Group, value: int, name: str = "gold_mean") -> tuple[OfSeed, list[int]]:
    """A figure at the largest KL that both this value and the first one reached, minus that of the first one.

    Also the seeds that are left out, since one of the two curves was not measured there.
    """
    fresh = {result["seed"]: result for result in group.arms[group.first]}
    found, unread = {}, []
    for result in group.arms[value]:
        if result["seed"] not in fresh:
            continue
        beside = fresh[result["seed"]]
        kl = min(largest_kl(one["curve"]) for one in (result, beside))
        difference = at_kl(result["curve"], kl, name) - at_kl(beside["curve"], kl, name)
        if math.isnan(difference):
            unread.append(result["seed"])
        else:
            found[result["seed"]] = difference
    return found, unread


def verdict(mean: float, half: float) -> str:
    """Whether a difference that is expected to be positive is: "holds", "does not hold" where it is negative, or neither."""
    if mean - half > 0:
        return "holds"
    return "does not hold" if mean + half < 0 else "cannot be told"
