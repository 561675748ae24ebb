"""Pages of the studies of Online DPO on old samples with models of three sizes. The rules are those of
each study's `protocol.md`.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.studies import markdown
from experiments.studies.markdown import Contrast
from experiments.studies.offpolicyness import findings, plots
from experiments.studies.offpolicyness.measures import (
    Group,
    difference_of_drops,
    groups,
    note_on_collapsed,
    reported,
)
from rlhf_jax.report.statistics import Result

MARGIN = findings.MARGIN
AT = (16, 64)
"""Minibatches a round of the primary contrasts."""


def width(name: str) -> int:
    """The width of a variant of a study.

    >>> width("width 128")
    128
    """
    return int(name.removeprefix("width "))


def by_width(results: Sequence[Result], role: str) -> dict[int, Group]:
    """The groups of minibatches a round, by the width of the models in a role, which rises.

    Args:
      results: of reported cells.
      role: "policy" or "reward".
    """
    found = {
        width(group.arms[group.first][0][role]): group
        for group in groups(results, "num_minibatches")
    }
    return dict(sorted(found.items()))


def primary_contrasts(found: dict[int, Group]) -> list[Contrast]:
    """A contrast for each of `AT`: the drop of the widest − that of the narrowest."""
    (narrow, small), *_, (wide, large) = found.items()
    contrasts = []
    for number, value in enumerate(AT, start=1):
        arms = (group.arms[v] for group in (small, large) for v in (group.first, value))
        contrasts.append(
            Contrast(
                f"{number}. drop at width {wide} − drop at width {narrow}, N = {value}",
                difference_of_drops(large, small, value, "win_rate"),
                MARGIN,
                "of win-rate",
                3,
                note=note_on_collapsed(*arms),
            )
        )
    return contrasts


def pages(name: str, lines: Sequence[Result], role: str, **more: str) -> dict[str, str | Figure]:
    """The files of a study's page by their names in `docs/results/`.

    Args:
      name: of the study, whose folder has `page.md`.
      lines: results of its cells.
      role: of the models whose sizes differ, "policy" or "reward".
      more: further fields of the page.
    """
    results = reported(lines)
    found = by_width(results, role)
    contrasts = primary_contrasts(found)
    text = markdown.fill(
        Path(__file__).parent / name / "page.md",
        sources=markdown.sources(lines),
        conclusion=markdown.conclusion(contrasts),
        contrasts=markdown.contrasts_table(contrasts),
        drops=findings.drops_table(list(found.values())),
        collapsed=findings.collapsed_table(results),
        arms=findings.arms_table(results, findings.on_edges(lines)),
        **more,
    )
    return {
        f"{name}.md": text,
        f"{name}_ends.png": plots.final_figures(list(found.values())),
        f"{name}_kl.png": plots.against(list(found.values()), "kl"),
    }
