"""Writes the page of the study of policies of three sizes from its ended cells; the rules are those
of `protocol.md`.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.studies import model_sizes
from rlhf_jax.report.statistics import Result


def pages(lines: Sequence[Result]) -> dict[str, str | Figure]:
    """The files of the page by their names in `docs/results/`."""
    return model_sizes.pages("policy_size", lines, "policy")
