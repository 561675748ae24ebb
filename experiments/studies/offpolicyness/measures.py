"""Measures of the study of off-policyness: drops from the fresh arm, differences of drops,
collapse, and gold at one KL.

An *axis* is a key of the schedule (`num_minibatches`, `lag`, `num_epochs`, `samples_per_prompt`). A
group of it is everything that differs in that key alone: axes are never pooled. A correction is an
axis of lag alone: the fresh arm of an algorithm, where behavior and proximal policy are one, is the
first value of each of its corrections' groups. All comparisons are made seed by seed:

    drop of a value          the figure of the group's first value − the figure of this one, at the end of training
    difference of drops      the drop of one group − the drop of another: positive where the first is less robust
    at one KL                gold of this value − gold of the first, both read off their curves against true KL at the largest
                             KL that both have reached, on segments that were measured (`rlhf_jax.report.statistics.at_kl`)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_jax.report.statistics import OfSeed, Result, at_kl, differences, final, largest_kl

AXES = ("num_minibatches", "lag", "num_epochs", "samples_per_prompt")
AGE_AXES = ("num_minibatches", "lag")
USUAL = {
    "num_minibatches": 1,
    "lag": 0,
    "num_epochs": 1,
}  # values that a group's name does not mention
SYMBOL = {"num_minibatches": "N", "lag": "lag", "num_epochs": "T", "samples_per_prompt": "K"}
FALL = 0.10  # of win-rate below its largest earlier value: a run has collapsed (protocol.md)
CORRECTIONS = {
    ("behavior", "none"): "behavior",
    ("proximal", "none"): "proximal",
    ("proximal", "truncate"): "truncate",
}


@dataclass(frozen=True)
class Group:
    """Arms that differ in one axis alone; `arms` has the results of each of its values, which rise.

    `name` has the group's differences to the axis's others. `correction` is "" for an algorithm
    without a ratio, and on an axis other than lag.
    """

    axis: str
    algorithm: str
    name: str
    correction: str
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

    def num_collapsed(self, value: int) -> int:
        """Collapsed runs of an arm. The mean of an arm with any is not quoted (protocol.md)."""
        return sum(map(collapsed, self.arms[value]))


def reported(lines: Sequence[Result]) -> list[Result]:
    """Results of reported cells, without those that settings were chosen by."""
    return [line for line in lines if line["purpose"] == "report"]


def note_on_collapsed(*arms: Sequence[Result]) -> str:
    """The number of collapsed runs of some arms, as a note beside their contrast; "" for none."""
    count = sum(collapsed(run) for runs in arms for run in runs)
    return f"{count} of its runs collapsed" if count else ""


def correction_of(result: Result) -> str:
    """The name of a stale result's correction; "" at lag 0, and for an algorithm without a ratio."""
    config = result["config"]
    ratio_to = config.get("algorithm.correction.ratio_to")
    if ratio_to is None or not result["schedule"]["lag"]:
        return ""
    return CORRECTIONS[ratio_to, config["algorithm.correction.correction"]]


def groups(results: Sequence[Result], axis: str) -> list[Group]:
    """The groups of an axis that have more than one of its values, in the order in which their arms
    are given.
    """
    arms_by_key: dict[tuple[Any, ...], dict[int, list[Result]]] = {}
    corrections: dict[tuple[Any, ...], list[str]] = {}
    for result in results:
        rest, correction, value = (
            _rest(result, axis),
            correction_of(result),
            result["schedule"][axis],
        )
        arms_by_key.setdefault((rest, correction), {}).setdefault(value, []).append(result)
        known = corrections.setdefault(rest, [])
        if correction not in known:
            known.append(correction)
    several: dict[tuple[Any, ...], dict[int, list[Result]]] = {}
    for rest, known in corrections.items():
        named = [correction for correction in known if correction] or [""]
        for correction in named:
            arms = dict(arms_by_key.get((rest, ""), {})) | arms_by_key[rest, correction]
            if len(arms) > 1:
                several[rest, correction] = arms
    parts = {key: described(key[0], key[1]) for key in several}
    in_common = set.intersection(*map(set, parts.values())) if len(parts) > 1 else set()
    return [
        Group(
            axis,
            key[0][0],
            ", ".join([part for part in parts[key] if part not in in_common] or parts[key]),
            key[1],
            {value: arms[value] for value in sorted(arms)},
        )
        for key, arms in several.items()
    ]


def _rest(result: Result, axis: str) -> tuple[Any, ...]:
    """The algorithm, the variants and the schedule of a result, without the axis."""
    rest = tuple((key, value) for key, value in result["schedule"].items() if key != axis)
    return result["algorithm"], result["policy"], result["reward"], rest


def described(rest: tuple[Any, ...], correction: str) -> list[str]:
    """The properties that a group's arms have in common, in words; `rest` is what `_rest` gives."""
    algorithm, policy, reward, schedule = rest
    parts = [algorithm.replace("_", " ")]
    parts += [
        f"{role} {name}" for role, name in (("policy", policy), ("reward model", reward)) if name
    ]
    parts += [f"{SYMBOL[key]} {value}" for key, value in schedule if value != USUAL.get(key, value)]
    return parts + ([correction] if correction else [])


def drop(group: Group, value: int, name: str) -> OfSeed:
    """Fall of a figure from the group's first value to this one."""
    return differences(group.figure(group.first, name), group.figure(value, name))


def difference_of_drops(group: Group, other: Group, value: int, name: str) -> OfSeed:
    """The group's drop − the other's."""
    return differences(drop(group, value, name), drop(other, value, name))


def at_one_kl(group: Group, value: int, name: str = "gold_mean") -> tuple[OfSeed, list[int]]:
    """A figure at the largest KL that both this value and the first one reached, minus that of the
    first one.

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


def collapsed(result: Result) -> bool:
    """A run that diverged, or whose last win-rate is more than `FALL` below the largest that was
    evaluated before it.
    """
    if result.get("diverged"):
        return True
    rates = [line["win_rate"] for line in result["curve"]]
    return rates[-1] < max(rates[:-1]) - FALL
