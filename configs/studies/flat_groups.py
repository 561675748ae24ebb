"""Groups whose samples all have one score: kept in the denominator of the loss, or left out of it.

Command:   nice -n 19 python -m experiments.sweep --config=configs/studies/flat_groups.py --workers=1 --minutes=60
Hardware:  one CPU core
Protocol:  experiments/studies/flat_groups/protocol.md (hypotheses, cells, margins, stop rule)
Budget:    2 arms x 10 seeds: 20 cells of 96 updates, and the SFT policy of each seed
Result:    docs/results/flat_groups.md, written from experiments/studies/flat_groups/cells.jsonl

`:tiny` has sizes for a test.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.refusal import Refusal
from rlhf_jax.sweeps.measures.staleness import Staleness
from rlhf_jax.sweeps.study import Arm, Study

from ..common import running_sums

NUM_UPDATES = 96
PROMPTS, SAMPLES = 16, 4
KINDS = ("keep", "leave_out")
"""The values of `algorithm.filter.flat`."""
SEEDS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)


def base() -> ConfigDict:
    """Running sums with groups of 4, on-policy."""
    config: Any = running_sums.base()
    config.rlhf.prompts_per_update, config.rlhf.samples_per_prompt = PROMPTS, SAMPLES
    config.rlhf.total_prompts = NUM_UPDATES * PROMPTS
    config.rlhf.lag = 0
    return config


def tiny() -> ConfigDict:
    """Sizes for a test."""
    return running_sums.tiny(base())


def arms() -> tuple[Arm, ...]:
    """The two denominators of one loss."""
    common = {"algorithm.advantage.power": 1.0, "algorithm.aggregation": "sequence"}
    return tuple(
        Arm(kind, "policy_gradient", {**common, "algorithm.filter.flat": kind}) for kind in KINDS
    )


def get_study(argument: str = "") -> Study:
    """The study; `tiny` is never reported."""
    if argument not in ("", "tiny"):
        raise Refusal(f"the study's argument is {argument!r}; accepted: tiny, or none")
    small = argument == "tiny"
    return Study(
        directory=Path("runs/studies/flat_groups" + ("_tiny" if small else "")),
        base=tiny if small else base,
        arms=arms(),
        grid={},
        open_ended={},
        rungs=(),
        report_updates=6 if small else NUM_UPDATES,
        report_seeds=(0,) if small else SEEDS,
        cells=None if small else Path("experiments/studies/flat_groups/cells.jsonl"),
        measure=Staleness,
    )
