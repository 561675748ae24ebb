"""Learning rates scaled by the effective share of rows, beside controls of the same mean.

Command:   nice -n 19 python -m experiments.sweep --config=configs/studies/learning_rate_scale.py --workers=1 --minutes=90
Hardware:  one CPU core
Protocol:  experiments/studies/learning_rate_scale/protocol.md (hypotheses, cells, margins, stop rule)
Budget:    4 arms x 2 lags x 2 learning rates x 8 seeds: 128 cells of 128 updates, and the SFT policy of each seed
Result:    docs/results/learning_rate_scale.md, written from experiments/studies/learning_rate_scale/cells.jsonl

VCPO (arXiv 2602.17616) makes the steps smaller where few completions of a stale batch count. Is that
more than a smaller learning rate? The arm `constant` has the mean of the factors of the scaled run of its
own seed, and the arm `yoked` has the factors of the scaled run of the next seed, in their order: as
uneven, but not of its own batches.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_jax.refusal import Refusal
from rlhf_jax.sweeps.measures.staleness import Staleness
from rlhf_jax.sweeps.study import Arm, Setting, Study

from . import staleness
from .staleness import NUM_UPDATES, RATE

LAGS = (8, 16)
RATES = (2e-3, 4e-3)
SEEDS = (0, 1, 2, 3, 4, 5, 6, 7)  # 5 to 7 by the stop rule
PILOT_SEED = 100
SCALED = "sqrt_ess"
RULE, FACTORS = "rlhf.learning_rate_scale.rule", "rlhf.learning_rate_scale.factors"
KINDS = ("plain", SCALED, "constant", "yoked")
ESTIMATOR: Mapping[str, Any] = {
    "algorithm.advantage.baseline": "leave_one_out",
    "algorithm.advantage.power": 0.0,
}
"""With two samples a prompt the baseline of least variance is the other sample, as this one is.
Advantages are not divided by a deviation, as in the study of staleness.
"""


def factors(result: Mapping[str, Any]) -> tuple[float, ...]:
    """The factors of the updates of a scaled run.

    Args:
      result: its line.
    """
    return tuple(result["measured"]["learning_rate_scale"])


def yoked(result: Mapping[str, Any]) -> Setting:
    """The factors of another run, update by update."""
    return ((FACTORS, factors(result)),)


def arms(lag: int, rate: float) -> tuple[Arm, ...]:
    """The four arms of a lag and a learning rate."""

    def constant(result: Mapping[str, Any]) -> Setting:
        found = factors(result)
        return ((RATE, rate * sum(found) / len(found)),)

    def name(kind: str) -> str:
        return f"{kind}-lag{lag}-{rate:g}"

    def overrides(rule: str) -> Mapping[str, Any]:
        return {**ESTIMATOR, "rlhf.lag": lag, RATE: rate, RULE: rule}

    source = name(SCALED)
    return (
        Arm(name("plain"), "vcpo", overrides("report")),
        Arm(source, "vcpo", overrides(SCALED)),
        Arm(
            name("constant"),
            "vcpo",
            overrides("report"),
            derived_from=source,
            derive=constant,
        ),
        Arm(
            name("yoked"),
            "vcpo",
            overrides("given"),
            derived_from=source,
            derive=yoked,
            seeds_later=1,
        ),
    )


def get_study(argument: str = "") -> Study:
    """The study; `pilot` and `tiny` are never reported. The pilot has one seed, whose factors are
    those of its own run.
    """
    if argument not in ("", "pilot", "tiny"):
        raise Refusal(f"the study's argument is {argument!r}; accepted: pilot, tiny, or none")
    small, records = argument == "tiny", Path("experiments/studies/learning_rate_scale")
    return Study(
        directory=Path("runs/studies/learning_rate_scale" + (f"_{argument}" if argument else "")),
        base=staleness.tiny if small else staleness.base,
        arms=tuple(
            arm
            for lag in LAGS[: 1 if small else 2]
            for rate in RATES[: 1 if small else 2]
            for arm in arms(lag, rate)
        ),
        grid={},
        open_ended={},
        rungs=(),
        report_updates=12 if small else NUM_UPDATES,
        report_seeds={"": SEEDS, "tiny": (0, 1)}.get(argument, (PILOT_SEED,)),
        cells={"": records / "cells.jsonl", "pilot": records / "pilot.jsonl"}.get(argument),
        measure=Staleness,
    )
