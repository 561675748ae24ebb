"""Writes the page of the study of kept and rebuilt caches from its ended cells; the rules are those
of `protocol.md`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.studies import markdown
from experiments.studies.curves import by_update, interval_line, legend_above
from experiments.studies.hypotheses import (
    Hypothesis,
    accuracy,
    collapsed_note,
    hypotheses_table,
    is_collapsed,
)
from experiments.studies.markdown import number, probability, table, with_interval
from rlhf_jax.refusal import Refusal
from rlhf_jax.report.plots import style
from rlhf_jax.report.statistics import (
    OfSeed,
    Result,
    by_seed,
    differences,
    interval,
    p_value_equivalent,
)
from rlhf_jax.sweeps.measures.token_versions import MOST_SWAPS, ends

LIMIT = 0.02  # nats: a tenth of the clip range
MARGIN = 0.03  # of accuracy
ROUNDING = 1e-4  # nats: gaps of tokens whose keys and values are of their own version are below it
LEAST_MIXED = 0.3  # share of rows
PILOT_START = 0.20  # accuracy after SFT of the pilot's seed (protocol.md)
SETTINGS = ("lag1_quarter", "lag1_whole", "lag4_quarter", "lag4_whole")
CONTROL = "lag1_quarter"  # the setting whose learning rate is raised
DEEP = "lag4_quarter"  # the setting whose rows live through most swaps
NAMES = {"quarter": "τ ¼ round", "whole": "τ 1 round", "fast": "4 × rate"}


def title(arm: str) -> str:
    """A setting or arm in words: "lag 1, τ ¼ round, keep"."""
    return ", ".join(NAMES.get(part, part.replace("lag", "lag ")) for part in arm.split("_"))


def split(lines: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by arm, in the order of the cells."""
    by_arm: dict[str, list[Result]] = {}
    for line in lines:
        by_arm.setdefault(line["arm"], []).append(line)
    return by_arm


def starts(lines: Sequence[Result]) -> str:
    """A sentence: accuracy before the first update, by seed."""
    of_seed = by_seed(lines, lambda line: line["curve"][0]["gold_mean"])
    listed = ", ".join(f"{number(value, 2)} (seed {seed})" for seed, value in of_seed.items())
    return f"After SFT it is {listed}, and was {number(PILOT_START, 2)} in the pilot, by which settings were chosen."


def gap(lines: Sequence[Result], swaps: str = "any", figure: str = "mean") -> OfSeed:
    """A figure of the gaps of tokens by seed; NaN where a run has no token of so many swaps.

    Args:
      lines: of one arm.
      swaps: a number of swaps, or "any".
      figure: of `token_versions.summary`.
    """
    return by_seed(lines, lambda line: line["measured"]["gap"][swaps].get(figure, math.nan))


def mean_of(values: Sequence[OfSeed]) -> OfSeed:
    """The mean of several figures within each seed."""
    return {seed: sum(of[seed] for of in values) / len(values) for seed in values[0]}


def primary_hypotheses(arms: Mapping[str, list[Result]]) -> list[Hypothesis]:
    """The four primary tests."""
    kept = [arms[f"{setting}_keep"] for setting in SETTINGS]
    pairs = [(arms[f"{setting}_keep"], arms[f"{setting}_rebuild"]) for setting in SETTINGS]
    deep, control = arms[f"{DEEP}_keep"], arms[f"{CONTROL}_keep"]
    fast, base = gap(arms[f"{CONTROL}_keep_fast"]), gap(control)
    learned = mean_of([differences(accuracy(keep), accuracy(other)) for keep, other in pairs])
    every = [line for pair in pairs for lines in pair for line in lines]
    return [
        Hypothesis(
            "1. Size: mean gap after a swap, kept",
            mean_of([gap(lines) for lines in kept]),
            "below",
            "nats",
            LIMIT,
            4,
        ),
        Hypothesis(
            f"2. Swaps: gap of two − gap of one, {title(DEEP)}",
            differences(gap(deep, "2"), gap(deep, "1")),
            "different",
            "nats",
            digits=4,
        ),
        Hypothesis(
            f"3. Control: log(gap at 4 × the rate / gap), {title(CONTROL)}",
            {seed: math.log(fast[seed] / base[seed]) for seed in base},
            "different",
            "of the logarithm",
            digits=2,
        ),
        Hypothesis(
            "4. Learning: accuracy kept − rebuilt, mean of the four settings",
            learned,
            "equivalent",
            "of accuracy",
            MARGIN,
            note=collapsed_note(every),
        ),
    ]


def check_measure(lines: Sequence[Result]) -> None:
    """Raises Refusal for a cell in which a gap that must be rounding is not (protocol.md)."""
    for line in lines:
        for swaps in ("0", "any") if "_rebuild" in line["arm"] else ("0",):
            if (most := line["measured"]["gap"][swaps].get("max", 0.0)) >= ROUNDING:
                raise Refusal(
                    f"{line['arm']}, seed {line['seed']}: a gap of {most:g} nats where keys and "
                    f"values are of the token's version; accepted: below {ROUNDING:g}"
                )


def few_mixed(lines: Sequence[Result]) -> str:
    """A paragraph that says so where fewer rows are mixed than the protocol asks for, else "".

    Args:
      lines: of the arm whose share is asked for.
    """
    shares = [ends(line["measured"]["rounds"]["mixed_share"]) for line in lines]
    least = min(sum(values) / len(values) for values in zip(*shares, strict=True))
    if least >= LEAST_MIXED:
        return ""
    return f"**Only {least:.2f} of the rows are mixed at lag 1, τ ¼ round, where the protocol asks for {LEAST_MIXED:g}.**\n"


def gaps_table(arms: Mapping[str, list[Result]]) -> str:
    """A row for each arm: its mean gap by swaps, the largest one, and the drift beside it."""
    rows = []
    for arm, lines in arms.items():
        figures = [with_interval(gap(lines, str(n)), 5) for n in range(MOST_SWAPS + 1)]
        p95 = with_interval(gap(lines, figure="p95"), 4)
        drift = by_seed(lines, lambda line: line["measured"]["drift"]["any"]["mean"])
        kl = with_interval(gap(lines, figure="kl"), 6)
        rows.append([title(arm), *figures, p95, kl, with_interval(drift, 4)])
    swaps = [f"{n}{' or more' if n == MOST_SWAPS else ''}" for n in range(MOST_SWAPS + 1)]
    head = ("", *(f"gap, {n} swaps" for n in swaps), "p95 after a swap", "KL", "drift after a swap")
    return table(head, rows)


def at_ends(lines: Sequence[Result], name: str) -> str:
    """ "start → end" of a figure of the rounds, means over seeds."""
    pairs = [ends(line["measured"]["rounds"][name]) for line in lines]
    means = [sum(values) / len(values) for values in zip(*pairs, strict=True)]
    return " → ".join(number(value, 2) for value in means)


def arms_table(arms: Mapping[str, list[Result]]) -> str:
    """A row for each arm: accuracy, mean age, lengths and mixed rows at start and end, collapsed
    runs.
    """
    rows = []
    for arm, lines in arms.items():
        age = by_seed(lines, lambda line: line["ages"]["mean"])
        rows.append(
            [
                title(arm),
                with_interval(accuracy(lines), 3),
                with_interval(age, 2),
                at_ends(lines, "mixed_share"),
                at_ends(lines, "length"),
                f"{sum(map(is_collapsed, lines))} of {len(lines)}",
            ]
        )
    head = ("", "accuracy", "mean age", "mixed rows", "mean length", "collapsed")
    return table(head, rows)


def learning_table(arms: Mapping[str, list[Result]]) -> str:
    """A row for each setting: kept − rebuilt, described and not adjusted."""
    rows = []
    for setting in (*SETTINGS, CONTROL + "_{}_fast"):
        names = [
            setting.format(cache) if "{}" in setting else f"{setting}_{cache}"
            for cache in ("keep", "rebuild")
        ]
        keep, rebuild = (arms[name] for name in names)
        values = differences(accuracy(keep), accuracy(rebuild))
        p = p_value_equivalent(list(values.values()), MARGIN)
        rows.append(
            [
                title(names[0].replace("_keep", "")),
                with_interval(values, 3, signed=True),
                probability(p),
                collapsed_note([*keep, *rebuild]) or "none collapsed",
            ]
        )
    return table(("", "kept − rebuilt", f"p of ±{MARGIN:g}, not adjusted", "runs"), rows)


def gaps_plot(arms: Mapping[str, list[Result]]) -> Figure:
    """Mean gap against swaps, a line for each kept arm, with intervals over seeds."""
    figure, (ax,) = style.panels(1, 1, 3.6)
    style.axes(ax, "Error of kept keys and values", "swaps before the token", "|gap|, nats")
    kept = [arm for arm in arms if "_keep" in arm]
    for index, (color, arm) in enumerate(zip(style.PART_COLORS, kept, strict=False)):
        shown = [n for n in range(1, MOST_SWAPS + 1) if _is_known(gap(arms[arm], str(n)))]
        points = [interval(gap(arms[arm], str(n))) for n in shown]
        interval_line(ax, [n + 0.02 * (index - 2) for n in shown], points, color, title(arm))
    ax.set_ylim(bottom=0)
    ax.set_xticks(range(1, MOST_SWAPS + 1), ["1", "2", "3 or more"])
    legend_above(ax)
    return figure


def _is_known(values: OfSeed) -> bool:
    return not any(map(math.isnan, values.values()))


def curves_plot(
    arms: Mapping[str, list[Result]],
    groups: Mapping[str, Sequence[str]],
    label: Callable[[str], str] = title,
) -> Figure:
    """Held-out accuracy against updates, a panel for each group of arms, with intervals over seeds.

    Args:
      arms: results by arm.
      groups: arms by the title of their panel.
      label: gives the name of an arm in the legend.
    """
    figure, axes = style.panels(len(groups), min(2, len(groups)), 2.8)
    for ax, (name, members) in zip(axes, groups.items(), strict=True):
        style.axes(ax, name, "update", "held-out accuracy")
        for index, (color, arm) in enumerate(zip(style.PART_COLORS, members, strict=False)):
            points = by_update(arms[arm], "gold_mean")
            updates = [update + 0.6 * index for update in points]
            interval_line(ax, updates, list(points.values()), color, label(arm))
        legend_above(ax)
    return figure


def pages(lines: Sequence[Result]) -> dict[str, str | Figure]:
    """The files of the page by their names in `docs/results/`."""
    arms = split(lines)
    check_measure(lines)
    text = markdown.fill(
        Path(__file__).with_name("page.md"),
        sources=markdown.sources(lines),
        starts=starts(lines),
        few_mixed=few_mixed(arms[f"{CONTROL}_keep"]),
        hypotheses=hypotheses_table(primary_hypotheses(arms)),
        gaps=gaps_table(arms),
        learning=learning_table(arms),
        arms=arms_table(arms),
    )
    groups = {title(setting): [f"{setting}_keep", f"{setting}_rebuild"] for setting in SETTINGS}
    return {
        "keep_or_rebuild.md": text,
        "keep_or_rebuild_gaps.png": gaps_plot(arms),
        "keep_or_rebuild_curves.png": curves_plot(arms, groups, lambda arm: arm.rpartition("_")[2]),
    }
