"""Writes the page of the study of updates per minibatch from its ended cells; the rules are those of
`protocol.md`.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.studies import schedule_axis
from rlhf_jax.report.statistics import Result

AXIS = "num_epochs"
UPDATE = 64  # the end of T = 1


def pages(lines: Sequence[Result]) -> dict[str, str | Figure]:
    """The files of the page by their names in `docs/results/`."""
    contrasts = schedule_axis.of_the_ends(schedule_axis.of_axis(lines, AXIS))
    return schedule_axis.pages("epochs", lines, AXIS, contrasts, UPDATE)
