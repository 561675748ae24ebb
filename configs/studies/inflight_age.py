"""In-flight updates beside rounds of one version that are as old: does it matter that a round mixes
versions, or only how old its tokens are?

Command:   nice -n 19 python -m experiments.sweep --config=configs/studies/inflight_age.py --workers=1 --minutes=60
Hardware:  one CPU core
Protocol:  experiments/studies/inflight_age/protocol.md (hypotheses, cells, margins, stop rule)
Budget:    5 arms x 7 seeds: 35 cells of 96 updates, and the SFT policy of each seed
Result:    docs/results/inflight_age.md, written from experiments/studies/inflight_age/cells.jsonl

The version schedule of the arm `matched` is derived from the in-flight cell of the same seed, so
that each round is as old as the mean token there. `:pilot` and `:tiny` as in
`configs/studies/keep_or_rebuild.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.refusal import Refusal
from rlhf_jax.sweeps.measures.token_versions import TokenVersions, matched_schedule
from rlhf_jax.sweeps.study import Arm, Setting, Study

from ..common import running_sums
from ..common.running_sums import TAUS

INFLIGHT = "inflight"
LAG, TAU = 4, "quarter"
LAGS = (0, 1, 2)  # constant ones: on-policy, and below and above the mean age of the in-flight run
SEEDS = (0, 1, 2, 3, 4, 5, 6)
PILOT_SEED = 100


def matched(result: Mapping[str, Any]) -> Setting:
    """The version schedule whose rounds are as old as the in-flight run's tokens are on average.

    Args:
      result: the line of the in-flight cell.
    """
    return (("rlhf.version_schedule", matched_schedule(result["measured"]["rounds"]["age"])),)


def arms() -> tuple[Arm, ...]:
    """The in-flight run, the schedule of its ages, and constant lags."""
    return (
        Arm(INFLIGHT, "grpo", running_sums.inflight(LAG, TAUS[TAU])),
        Arm("matched", "grpo", derived_from=INFLIGHT, derive=matched),
        *(Arm(f"lag{lag}", "grpo", {"rlhf.lag": lag}) for lag in LAGS),
    )


def tiny() -> ConfigDict:
    """Sizes for a test."""
    return running_sums.tiny(running_sums.base())


def get_study(argument: str = "") -> Study:
    """The study; `pilot` and `tiny` are never reported."""
    if argument not in ("", "pilot", "tiny"):
        raise Refusal(f"the study's argument is {argument!r}; accepted: pilot, tiny, or none")
    found, records = arms(), Path("experiments/studies/inflight_age")
    if argument == "tiny":
        small = {**found[0].overrides, "rlhf.num_slots": 12}
        found = (Arm(INFLIGHT, "grpo", small), *found[1:])
    return Study(
        directory=Path("runs/studies/inflight_age" + (f"_{argument}" if argument else "")),
        base=tiny if argument == "tiny" else running_sums.base,
        arms=found,
        grid={},
        open_ended={},
        rungs=(),
        report_updates=6 if argument == "tiny" else 96,
        report_seeds=SEEDS if not argument else (PILOT_SEED,),
        cells={"": records / "cells.jsonl", "pilot": records / "pilot.jsonl"}.get(argument),
        measure=TokenVersions,
    )
