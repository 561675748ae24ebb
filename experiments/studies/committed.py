"""The studies, and the committed results of their cells."""

from dataclasses import replace

from rlhf_jax.report.statistics import Result
from rlhf_jax.sweeps import cell_lines
from rlhf_jax.sweeps.cells import Cells, load
from rlhf_jax.sweeps.provenance import ROOT
from rlhf_jax.sweeps.steps import report_cells

NAMES = (
    "quickstart", "grpovi", "offpolicyness", "keep_or_rebuild", "inflight_age", "staleness", "learning_rate_scale",
    "corrections", "flat_groups", "sentiment",
)  # fmt: skip
PARTS = (
    "epochs",
    "samples",
    "losses",
    "policy_size",
    "reward_size",
)  # of the study of off-policyness, with folders of their own
STUDIES = (
    {name: f"configs/studies/{name}.py" for name in NAMES}
    | {name: f"configs/studies/offpolicyness.py:part={name}" for name in PARTS}
    | {"staleness_token_tis": "configs/studies/staleness.py:token_tis"}
)
"""Name of the module in `experiments/studies/` -> the study's config."""


def results(name: str) -> list[Result]:
    """Results of a study: of all cells that settings are chosen by, then of the reported ones of its
    protocol.

    A page from a part of the cells would be another study than its protocol says.

    Args:
      name: of `STUDIES`.

    Returns:
      An empty list where not all have ended.
    """
    study = load(str(ROOT / STUDIES[name]))
    assert study.cells is not None
    cells = Cells(replace(study, cells=ROOT / study.cells))
    try:
        wanted = report_cells(study, cells.ended)
    except AssertionError:  # the cells that settings are chosen by have not all ended
        return []
    found = cells.results(wanted)
    if len(found) < len(wanted):
        return []
    tuning = [line for line in cell_lines.read(cells.path) if line["purpose"] == "tune"]
    return [*tuning, *found]
