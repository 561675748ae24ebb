"""Keys and values of running rows when weights change: kept, as most systems do, or computed again.

Command:   nice -n 19 python -m experiments.sweep --config=configs/studies/keep_or_rebuild.py --workers=1 --minutes=60
Hardware:  one CPU core
Protocol:  experiments/studies/keep_or_rebuild/protocol.md (hypotheses, cells, margins, stop rule)
Budget:    10 arms x 5 seeds: 50 cells of 96 updates, and the SFT policy of each seed
Result:    docs/results/keep_or_rebuild.md, written from experiments/studies/keep_or_rebuild/cells.jsonl

`:pilot` is the seed that the settings and the number of seeds were chosen on; `:tiny` has sizes for
a test.
"""

from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax.refusal import Refusal
from rlhf_jax.sweeps.measures.token_versions import TokenVersions
from rlhf_jax.sweeps.study import Arm, Study

from ..common import running_sums
from ..common.running_sums import LEARNING_RATE, TAUS

LAGS = (1, 4)
CACHES = {"keep": 0, "rebuild": 1}
"""The values of `rlhf.rebuild_every`."""
RATE = "rlhf.optimizer.learning_rate"
CONTROL_FACTOR = 4  # of the learning rate, in the positive control
SEEDS = (0, 1, 2, 3, 4)
PILOT_SEED = 100


def arms() -> tuple[Arm, ...]:
    """Both caches at each lag and virtual training time; then the positive control, whose policy
    changes more per update.
    """
    found = [
        Arm(f"lag{lag}_{tau}_{cache}", "grpo", running_sums.inflight(lag, TAUS[tau], every))
        for lag in LAGS
        for tau in TAUS
        for cache, every in CACHES.items()
    ]
    rate = CONTROL_FACTOR * LEARNING_RATE
    found += [
        Arm(
            f"lag1_quarter_{cache}_fast",
            "grpo",
            running_sums.inflight(1, TAUS["quarter"], every) | {RATE: rate},
        )
        for cache, every in CACHES.items()
    ]
    return tuple(found)


def tiny() -> ConfigDict:
    """Sizes for a test."""
    return running_sums.tiny(running_sums.base())


def get_study(argument: str = "") -> Study:
    """The study; `pilot` and `tiny` are never reported."""
    if argument not in ("", "pilot", "tiny"):
        raise Refusal(f"the study's argument is {argument!r}; accepted: pilot, tiny, or none")
    found, records = arms(), Path("experiments/studies/keep_or_rebuild")
    if argument == "tiny":
        found = tuple(
            Arm(arm.name, arm.algorithm, {**arm.overrides, "rlhf.num_slots": 12}) for arm in found
        )
    return Study(
        directory=Path("runs/studies/keep_or_rebuild" + (f"_{argument}" if argument else "")),
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
