"""Writes the page of the study of samples per prompt from its ended cells; the rules are those of
`protocol.md`.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.studies import schedule_axis
from experiments.studies.markdown import Contrast
from rlhf_jax.report.statistics import Result

AXIS = "samples_per_prompt"
MORE, UPDATE = 4, 32  # half of the updates


def primary_contrasts(lines: Sequence[Result]) -> list[Contrast]:
    """The three primary contrasts, of win-rates."""
    group = schedule_axis.of_axis(lines, AXIS)
    early = schedule_axis.contrast(
        group,
        f"3. K = {MORE} after {UPDATE} updates − K = {group.first} at the end",
        schedule_axis.after(group, MORE, UPDATE),
        (group.first, MORE),
    )
    return [*schedule_axis.of_the_ends(group), early]


def pages(lines: Sequence[Result]) -> dict[str, str | Figure]:
    """The files of the page by their names in `docs/results/`."""
    return schedule_axis.pages("samples", lines, AXIS, primary_contrasts(lines), UPDATE)
