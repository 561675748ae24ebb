"""Writes the page of the study of corrections from its ended cells; the rules are those of
`protocol.md`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.studies import markdown
from experiments.studies.curves import mean_of_planned
from experiments.studies.hypotheses import wrong_signs_sentence
from experiments.studies.markdown import Contrast, contrasts_table, table, with_interval
from experiments.studies.staleness.passage import below
from rlhf_jax.report.plots import style
from rlhf_jax.report.statistics import OfSeed, Result, by_seed, differences, final, t_interval

MARGIN = 0.05  # of win-rate
FROM = 16  # the first update whose evaluation counts
RATE = "rlhf.optimizer.learning_rate"
CLOCKS = {"lag3": "lag 3", "sync4": "renewed every 4", "sync4lag4": "renewed every 4, 4 late"}
NAMES = {
    "none": "none",
    "clip": "clip",
    "token_tis": "truncated weight, 2",
    "cispo": "truncated weight, 5",
    "dppo": "bound on the probability",
    "row_mask": "mask of rows, both sides",
    "one_sided": "mask of rows, one-sided",
    "asymre": "shifted baseline",
}


def parts(arm: str) -> tuple[str, str, str]:
    """Correction, clock and reward by an arm's name, such as `clip-sync4-gold`."""
    correction, clock, reward = arm.split("-")
    return correction, clock, reward


def outcome(line: Result) -> float:
    """The mean win-rate of a run over its planned evaluations from update `FROM` on."""
    return mean_of_planned(line, "win_rate", FROM)


def collapsed(line: Result) -> bool:
    """True for a run that fell by more than the study of staleness allows, or diverged."""
    return bool(line.get("diverged")) or any(below(line))


def by_arm(lines: Sequence[Result], reward: str) -> dict[tuple[str, str], list[Result]]:
    """Results of a reward by correction and clock."""
    found: dict[tuple[str, str], list[Result]] = {}
    for line in lines:
        correction, clock, of = parts(line["arm"])
        if of == reward:
            found.setdefault((correction, clock), []).append(line)
    return found


def outcomes(lines: Sequence[Result], reward: str = "gold") -> dict[tuple[str, str], OfSeed]:
    """The outcome of each seed by correction and clock."""
    return {arm: by_seed(some, outcome) for arm, some in by_arm(lines, reward).items()}


def mean_of_clocks(found: Mapping[tuple[str, str], OfSeed], correction: str) -> OfSeed:
    """The mean outcome of a seed over the clocks."""
    values = [found[correction, clock] for clock in CLOCKS]
    return {seed: float(np.mean([of[seed] for of in values])) for seed in values[0]}


def interactions(lines: Sequence[Result], reward: str) -> list[Contrast]:
    """Contrasts of (truncated weight − clip) between another clock and the constant lag."""
    found, contrasts = outcomes(lines, reward), []

    def ahead(clock: str) -> OfSeed:
        return differences(found["token_tis", clock], found["clip", clock])

    for index, clock in enumerate(("sync4", "sync4lag4"), 1):
        name = f"{index}. (truncated weight − clip), {CLOCKS[clock]} − lag 3"
        values = differences(ahead(clock), ahead("lag3"))
        contrasts.append(Contrast(name, values, MARGIN, "of win-rate", 3))
    return contrasts


def contrasts(lines: Sequence[Result]) -> list[Contrast]:
    """The four primary contrasts, one value per seed."""
    found = outcomes(lines)
    against = [
        Contrast(
            f"{index}. {NAMES[name]} − none, mean of the clocks",
            differences(mean_of_clocks(found, name), mean_of_clocks(found, "none")),
            MARGIN,
            "of win-rate",
            3,
        )
        for index, name in ((3, "token_tis"), (4, "clip"))
    ]
    return [*interactions(lines, "gold"), *against]


def cells_table(lines: Sequence[Result]) -> str:
    """A row for each arm: outcome, last win-rate, row ESS, collapses."""
    rows = []
    for reward in ("gold", "learned"):
        for (correction, clock), some in by_arm(lines, reward).items():
            ess = by_seed(some, lambda line: float(np.mean(line["measured"]["ess_share_row"])))
            rows.append(
                [
                    NAMES[correction],
                    CLOCKS[clock],
                    reward,
                    with_interval(by_seed(some, outcome), 3),
                    with_interval(by_seed(some, lambda line: final(line, "win_rate")), 3),
                    with_interval(ess, 2),
                    f"{sum(map(collapsed, some))} of {len(some)}",
                ]
            )
    head = ("correction", "sampler", "reward", "mean win-rate", "win-rate at the end")
    return table((*head, "row ESS", "collapsed"), rows)


def arms_plot(lines: Sequence[Result]) -> Figure:
    """Mean win-rate with its interval: a row for each correction, a mark for each clock."""
    found = outcomes(lines)
    figure, (ax,) = style.panels(1, 1, 4.6)
    figure.set_size_inches(7.5, 4.6)
    figure.subplots_adjust(left=0.24, right=0.98, bottom=0.2)
    style.axes(ax, "gold as the reward", "mean held-out win-rate", "")
    for index, (clock, label) in enumerate(CLOCKS.items()):
        points = [t_interval(list(found[name, clock].values())) for name in NAMES]
        ax.errorbar(
            [mean for mean, _ in points],
            [row + 0.2 * (index - 1) for row in range(len(NAMES))],
            xerr=[half for _, half in points],
            fmt="osD"[index],
            markersize=4,
            capsize=2,
            linewidth=1.2,
            color=style.PART_COLORS[index],
            label=label,
        )
    ax.set_yticks(range(len(NAMES)), list(NAMES.values()))
    ax.invert_yaxis()
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.13), ncols=3, fontsize=8, frameon=False,
              labelcolor=style.INK)  # fmt: skip
    return figure


def pages(lines: Sequence[Result]) -> dict[str, str | Figure]:
    """The files of the page by their names in `docs/results/`."""
    rates = sorted({line["config"][RATE] for line in lines})
    text = markdown.fill(
        Path(__file__).with_name("page.md"),
        sources=markdown.sources(lines),
        rate=", ".join(f"{rate:g}" for rate in rates),
        contrasts=contrasts_table(contrasts(lines)),
        wrong=wrong_signs_sentence(contrasts(lines)),
        learned=contrasts_table(interactions(lines, "learned")),
        cells=cells_table(lines),
        margin=f"{MARGIN:.2f}",
    )
    return {"corrections.md": text, "corrections_arms.png": arms_plot(lines)}
