"""Staleness on a language model: controlled sentiment with SmolLM2-135M-Instruct, 4-bit values.

Command:   nice -n 19 python -m experiments.sweep --config=configs/studies/sentiment.py --workers=1 --minutes=90
Hardware:  one CPU core, 6 GB
Protocol:  experiments/studies/sentiment/protocol.md (hypotheses, cells, margins, stop rule)
Budget:    2 algorithms x 3 lags x 5 seeds: 30 cells of 64 updates, and the reward model of each seed
Result:    docs/results/sentiment.md, written from experiments/studies/sentiment/cells.jsonl

Needs the folder models/smollm2-135m (docs/guides/smollm2.md) and the extra `sentiment`. `:pilot` chooses
the learning rates, on a seed that is never reported.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.config import flatten
from rlhf_jax.refusal import Refusal
from rlhf_jax.sweeps.measures.reward_spread import RewardSpread
from rlhf_jax.sweeps.study import Arm, Study

from ..smollm2 import sentiment

NUM_UPDATES = 64
LAGS = (0, 1, 8)
RATE = "rlhf.optimizer.learning_rate"
PILOT_RATES = (1e-5, 2e-5, 3e-5)  # at 1e-4 and 3e-5 the win-rate of Online DPO is saturated
RATES = {"online_dpo": 2e-5, "rloo": 2e-5}  # by the pilot
SEEDS = (0, 1, 2, 3, 4)
PILOT_SEED = 100
ALGORITHMS = ("online_dpo", "rloo")


def base() -> ConfigDict:
    """The recipe, without what a cell does not keep."""
    config: Any = sentiment.get_config()
    config.rlhf.checkpoint_every, config.rlhf.log_samples, config.rlhf.ledger = 0, 0, False
    config.rlhf.loop = "synchronous"
    config.evaluate.samples_per_prompt = 8  # of 50 held-out prompts: a study keeps half for tuning
    return config


def overrides(algorithm: str) -> dict[str, Any]:
    """The recipe's own settings of an algorithm, by dotted keys."""
    return flatten({"algorithm": dict(sentiment.SETTINGS[algorithm])})


def arms(lags: tuple[int, ...], rates: bool) -> tuple[Arm, ...]:
    """An arm for each algorithm and lag.

    Args:
      lags: of the arms.
      rates: the chosen learning rates are set; else they are the grid's.
    """
    return tuple(
        Arm(
            f"{algorithm}-lag{lag}",
            algorithm,
            {
                **overrides(algorithm),
                "rlhf.lag": lag,
                **({RATE: RATES[algorithm]} if rates else {}),
            },
        )
        for algorithm in ALGORITHMS
        for lag in lags
    )


def get_study(argument: str = "") -> Study:
    """The study, or its pilot."""
    return study_of(
        "sentiment",
        argument,
        lambda pilot: arms((0,) if pilot else LAGS, not pilot),
        base,
        NUM_UPDATES,
    )


def study_of(
    name: str,
    argument: str,
    arms: Callable[[bool], tuple[Arm, ...]],
    base: Callable[[], ConfigDict],
    num_updates: int,
) -> Study:
    """A study on this model: its pilot has every arm at each of `PILOT_RATES`.

    Args:
      name: of its folders.
      argument: of the command; "pilot", or "".
      arms: of the pilot (True) and of the study.
      base: its config.
      num_updates: of a cell.

    Raises Refusal for another argument.
    """
    if argument not in ("", "pilot"):
        raise Refusal(f"the study's argument is {argument!r}; accepted: pilot, or none")
    pilot, records = argument == "pilot", Path("experiments/studies") / name
    return Study(
        directory=Path(f"runs/studies/{name}{'_pilot' if pilot else ''}"),
        base=base,
        arms=arms(pilot),
        grid={RATE: PILOT_RATES} if pilot else {},
        open_ended={},
        rungs=(),
        report_updates=num_updates,
        report_seeds=(PILOT_SEED,) if pilot else SEEDS,
        cells=records / ("pilot.jsonl" if pilot else "cells.jsonl"),
        measure=RewardSpread,
    )
