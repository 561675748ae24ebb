"""Final figures of groups with their intervals, and the sentences that name the better one and say
why.
"""

import math
from dataclasses import dataclass
from functools import partial

from rlhf_jax.records.jsonl import Line
from rlhf_jax.report import glossary, read
from rlhf_jax.report.comparison.runs import ABSENT, Comparison, Group
from rlhf_jax.report.formats import INTERVAL, duration, number, percent, with_half_width
from rlhf_jax.report.statistics import (
    OfSeed,
    Result,
    at_kl,
    by_seed,
    difference_interval,
    final,
    interval,
    largest_kl,
    updates_to,
)

RANKED = ("gold_mean", "win_rate", "reward_mean", "training_reward")
"""Figures that name the better group, the first that every run has."""
WEAK = {
    "reward_mean": "No gold judge scores these runs: training itself raises the learned reward, and "
    "a policy may exploit it.",
    "training_reward": "No gold judge and no reward model scores held-out prompts of these runs: the "
    "reward is that of training samples.",
}
"""What limits a figure that names the better group."""
OTHERS = ("kl", "entropy", "completion_length", "finished", "distinct_completions")


@dataclass(frozen=True)
class Measured:
    """A mean with half of its 95 % interval, NaN where no interval is known."""

    mean: float
    half: float

    @property
    def text(self) -> str:
        """Mean and interval; a dash where nothing was measured."""
        return "–" if math.isnan(self.mean) else with_half_width(self.mean, self.half)

    @property
    def signed(self) -> str:
        """The same, with a plus sign in front of what is positive."""
        return f"+{self.text}" if self.mean > 0 else self.text

    @property
    def clear(self) -> bool:
        """True where the interval does not hold zero."""
        return abs(self.mean) > self.half  # False for NaN


def names(comparison: Comparison) -> list[str]:
    """The figures that are compared: those that any run has, in the same unit in all of them."""
    runs = comparison.runs
    alike = len({run.units.learned for run in runs}) == 1
    return [
        name
        for name in (*RANKED, *OTHERS)
        if (alike or name != "reward_mean")
        and any(not math.isnan(final(run.result, name)) for run in runs)
    ]


def ranked_by(comparison: Comparison) -> str:
    """The figure that names the better group; "" where the runs share none."""
    return next(
        (
            name
            for name in RANKED
            if name in names(comparison)
            and all(not math.isnan(final(run.result, name)) for run in comparison.runs)
        ),
        "",
    )


def ranked(comparison: Comparison) -> list[Group]:
    """The groups, the best one first, by `ranked_by`; in the order given without it."""
    name = ranked_by(comparison)
    if not name:
        return list(comparison.groups)
    return sorted(comparison.groups, key=lambda group: -last(group, name).mean)


def of_seeds(group: Group, name: str) -> OfSeed:
    """The final figure of each seed; seeds without it are left out."""
    values = by_seed([run.result for run in group.runs], lambda result: final(result, name))
    return {seed: value for seed, value in values.items() if not math.isnan(value)}


def last(group: Group, name: str) -> Measured:
    """The final figure of a group: over seeds where there are several, else over prompts."""
    values = of_seeds(group, name)
    if len(group.runs) == 1 and values:
        (value,) = values.values()
        return Measured(value, _over_prompts(group, name))
    return Measured(*interval(values))


def _over_prompts(group: Group, name: str) -> float:
    stderr = group.runs[0].curve[-1].get(f"{name}_stderr")
    return math.nan if stderr is None else INTERVAL * stderr


def difference(a: Group, b: Group, name: str) -> Measured:
    """The final figure of a less that of b: over seeds, or over prompts for one run each."""
    if len(a.runs) == len(b.runs) == 1:
        mean = last(a, name).mean - last(b, name).mean
        return Measured(mean, math.hypot(_over_prompts(a, name), _over_prompts(b, name)))
    first, second = of_seeds(a, name), of_seeds(b, name)
    if not first or not second:
        return Measured(math.nan, math.nan)
    return Measured(*difference_interval(first, second))


def common_kl(comparison: Comparison) -> float:
    """The largest KL that every run has reached; NaN where one has no KL."""
    curves = [run.curve for run in comparison.runs]
    if not all(any(line.get("kl") is not None for line in curve[1:]) for curve in curves):
        return math.nan
    return min(map(largest_kl, curves))


def at_common_kl(group: Group, kl: float, name: str) -> Measured:
    """A figure of a group at one KL, over seeds; without an interval for a single run."""

    def value(result: Result) -> float:
        return at_kl(result["curve"], kl, name)

    values = by_seed([run.result for run in group.runs], value)
    return Measured(*interval(values))


def mean_curve(group: Group, name: str, across: str) -> list[Line]:
    """Means over seeds at the versions that all runs of a group evaluated: "x", "mean", "half"."""
    of_run = [
        {line["update"]: line for line in run.curve if _known(line, name) and _known(line, across)}
        for run in group.runs
    ]
    updates = sorted(set.intersection(*map(set, of_run)))
    points = []
    for update in updates:
        results = [
            {"seed": run.seed, "line": lines[update]}
            for run, lines in zip(group.runs, of_run, strict=True)
        ]

        def value(result: Result, key: str) -> float:
            return float(result["line"][key])

        x, _ = interval(by_seed(results, partial(value, key=across)))
        mean, half = interval(by_seed(results, partial(value, key=name)))
        if len(group.runs) == 1:
            half = INTERVAL * (results[0]["line"].get(f"{name}_stderr") or math.nan)
        points.append({"x": x, "mean": mean, "half": half, "update": update})
    return points


def _known(line: Line, name: str) -> bool:
    return isinstance(line.get(name), int | float) and math.isfinite(line[name])


def seconds(group: Group) -> float:
    """Mean wall time of the stage that trained the policy."""
    stages = [(run.run.lines, read.trained(run.run.lines)) for run in group.runs]
    walls = [sum(read.stage_seconds(lines).get(stage, {}).values()) for lines, stage in stages]
    return sum(walls) / len(walls)


def verdict(comparison: Comparison) -> tuple[str, list[str]]:
    """A headline that names the better group, and sentences that say why."""
    name, groups = ranked_by(comparison), ranked(comparison)
    if not name:
        return "No figure is common to all runs.", []
    best, second = groups[0], groups[1]
    ahead, what = difference(best, second, name), title(comparison, name)
    values = f"{last(best, name).text} against {last(second, name).text} of {second.letter}"
    if ahead.clear:
        headline = f"{best.name} is better by {what}: {values}."
    elif math.isnan(ahead.half):
        headline = f"{best.name} ends higher in {what}: {values}; no interval is known."
    elif ahead.mean:
        headline = f"{best.name} ends higher in {what}, but not clearly: {values}."
    else:
        headline = f"{best.name} and {second.letter} end equal in {what}: {values}."
    reasons = [
        _chance(best, second, ahead),
        WEAK.get(name, ""),
        _configs(comparison, best, second),
        _kl(comparison, best, second, name),
        _speed(best, second, name),
        *_side_effects(comparison, best, second),
    ]
    return headline, [sentence for sentence in reasons if sentence]


def title(comparison: Comparison, name: str) -> str:
    """A figure's title within a sentence, without its unit."""
    quantities = {"gold_mean": comparison.units.gold, "reward_mean": comparison.units.learned}
    words = quantities[name].title if name in quantities else glossary.TITLES[name]
    return words[0].lower() + words[1:]


def _chance(best: Group, second: Group, ahead: Measured) -> str:
    if math.isnan(ahead.mean):
        return ""
    said = f"The difference is {ahead.signed}"
    if len(best.runs) == len(second.runs) == 1:
        return (
            f"{said}; with one run each, the interval is over prompts. It leaves out "
            "the change that another seed would make."
        )
    if math.isnan(ahead.half):
        return f"{said}; a single seed gives no interval over seeds."
    holds = "does not hold" if ahead.clear else "holds"
    return f"{said}, a 95 % t-interval over seeds, which {holds} zero."


def _configs(comparison: Comparison, best: Group, second: Group) -> str:
    index = {group.letter: position for position, group in enumerate(comparison.groups)}
    a, b = index[best.letter], index[second.letter]
    changed = [
        f"`{key}` is {values[a]} in {best.letter} and {values[b]} in {second.letter}"
        for key, values in comparison.differing.items()
        if values[a] != values[b] and ABSENT not in (values[a], values[b])
    ]
    if not changed:
        return "Their configs do not differ apart from the seed."
    more = f", and {len(changed) - 4} more keys" if len(changed) > 4 else ""
    return f"Their configs differ: {', '.join(changed[:4])}{more}."


def _kl(comparison: Comparison, best: Group, second: Group, name: str) -> str:
    """A sentence on the KL that was spent, and on the figure where both had spent the same."""
    spent = last(best, "kl").mean, last(second, "kl").mean
    if any(map(math.isnan, spent)):
        return ""
    texts = number(spent[0]), number(spent[1])
    if texts[0] == texts[1]:
        said = f"Both have moved equally far from their SFT policies: KL {texts[0]} nats per completion"
    else:
        more = "further" if spent[0] > spent[1] else "less far"
        said = (
            f"{best.letter} has moved {more} from its SFT policy: KL {texts[0]} against {texts[1]} "
            "nats per completion"
        )
    kl = common_kl(comparison)
    a, b = (at_common_kl(group, kl, name).mean for group in (best, second))
    if math.isnan(a) or math.isnan(b):
        return f"{said}."
    there = f"{said}. Where both have KL {number(kl)},"
    if number(a) == number(b):
        return f"{there} both are at {number(a)}."
    ahead = best.letter if a > b else second.letter
    return (
        f"{there} {ahead} is ahead: {number(a)} in {best.letter}, {number(b)} in {second.letter}."
    )


def _speed(best: Group, second: Group, name: str) -> str:
    """A sentence on the updates that the better group needed to reach the other's end."""
    curves = [
        [{"update": point["update"], name: point["mean"]} for point in curve]
        for curve in (mean_curve(group, name, "update") for group in (best, second))
    ]
    took = seconds(best), seconds(second)
    times = (
        f"Training the policy took {duration(took[0])} in {best.letter} and {duration(took[1])} in "
        f"{second.letter}."
    )
    times = times if min(took) > 0 else ""
    if not all(curves):
        return times
    end = curves[1][-1]
    first = updates_to(curves[0], name, end[name], math.nan)
    if math.isnan(first) or not 0 < math.ceil(first) < end["update"]:
        return times
    return (
        f"{best.letter} reaches the end of {second.letter} after {math.ceil(first)} updates; "
        f"{second.letter} took {end['update']}. {times}"
    ).rstrip()


def _side_effects(comparison: Comparison, best: Group, second: Group) -> list[str]:
    """Sentences on shares of completions that differ by more than a tenth."""
    said = []
    words = {
        "finished": "of completions end with an EOS",
        "distinct_completions": "of completions are distinct",
    }
    for name, what in words.items():
        if name not in names(comparison):
            continue
        a, b = last(best, name).mean, last(second, name).mean
        if abs(a - b) > 0.1:
            said.append(f"{percent(a)} {what} in {best.letter}, {percent(b)} in {second.letter}.")
    return said
