"""Collapse of training on old samples, by staleness and by learning rate.

Command:   nice -n 19 python -m experiments.sweep --config=configs/studies/staleness.py --workers=1 --minutes=90
Hardware:  one CPU core
Protocol:  experiments/studies/staleness/protocol.md (hypotheses, cells, margins, stop rule)
Budget:    7 arms x 5 learning rates x 8 seeds: 280 cells of 128 updates, and the SFT policy of each seed
Result:    docs/results/staleness.md, written from experiments/studies/staleness/cells.jsonl

REINFORCE without a correction on templated reviews, with gold as the reward, so that no collapse is
the over-optimisation of a learned reward. `:pilot` is the seed that is never reported, and `:tiny`
is for tests.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.refusal import Refusal
from rlhf_jax.sweeps.measures.staleness import Staleness
from rlhf_jax.sweeps.study import Arm, Study

from ..common import reviews

NUM_UPDATES = 128
PROMPTS = 32
LAGS = (1, 2, 4, 8, 16)  # updates of one round each, so that a lag is an age
CYCLES = (4, 8)  # largest ages of a sampler that is renewed every so many rounds and one
RATE = "rlhf.optimizer.learning_rate"
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
EVALUATE_AT = (1, 2, 3, 4, 6, 8, 12, 16, *range(20, NUM_UPDATES, 4))
SEEDS = (0, 1, 2, 3, 4, 5, 6, 7)  # the last three by the stop rule of the protocol
PILOT_SEED = 100


def base() -> ConfigDict:
    """Templated reviews and SFT on them; rounds of one update on 32 prompts with two samples each."""
    config: Any = reviews.base("reinforce")
    config.reward = "gold"
    config.rlhf.prompts_per_update, config.rlhf.samples_per_prompt = PROMPTS, 2
    config.rlhf.total_prompts = NUM_UPDATES * PROMPTS
    config.rlhf.loop, config.rlhf.ledger, config.rlhf.log_samples = "synchronous", False, 0
    config.rlhf.optimizer.schedule = "constant"
    config.rlhf.lag = 0
    config.rlhf.evaluate_every, config.rlhf.evaluate_at = 0, EVALUATE_AT
    config.rlhf.checkpoint_every = 0
    config.evaluate.num_prompts_between = config.evaluate.prompts_per_batch = 128
    return config


def tiny() -> ConfigDict:
    """Sizes for a test: what is learned is of no interest."""
    return shrunk(base())


def shrunk(config: Any) -> ConfigDict:
    """A config of this task in sizes for a test.

    Args:
      config: whose keys are set.
    """
    config.model.width, config.model.ffn_width, config.model.num_layers = 16, 32, 1
    config.sft.num_updates, config.sft.rows_per_update = 2, 8
    config.rlhf.prompts_per_update = 4
    config.rlhf.evaluate_at = (1,)
    config.evaluate.num_prompts = config.evaluate.num_prompts_between = (
        config.evaluate.prompts_per_batch
    ) = 4
    return config


def arms(algorithm: str) -> tuple[Arm, ...]:
    """Constant lags, and samplers that are renewed every so many rounds.

    Args:
      algorithm: a preset.
    """
    lags = [Arm(f"lag{lag}", algorithm, {"rlhf.lag": lag}) for lag in LAGS]
    cycles = [
        Arm(f"sync{oldest + 1}", algorithm, {"rlhf.sync_every": oldest + 1}) for oldest in CYCLES
    ]
    return (*lags, *cycles)


def get_study(argument: str = "") -> Study:
    """The study; `pilot` and `tiny` are never reported."""
    if argument not in ("", "pilot", "tiny"):
        raise Refusal(f"the study's argument is {argument!r}; accepted: pilot, tiny, or none")
    small, records = argument == "tiny", Path("experiments/studies/staleness")
    return Study(
        directory=Path("runs/studies/staleness" + (f"_{argument}" if argument else "")),
        base=tiny if small else base,
        arms=arms("reinforce"),
        grid={RATE: RATES[:1] if small else RATES},
        open_ended={},
        rungs=(),
        report_updates=3 if small else NUM_UPDATES,
        report_seeds=SEEDS if not argument else (PILOT_SEED,),
        cells={"": records / "cells.jsonl", "pilot": records / "pilot.jsonl"}.get(argument),
        measure=Staleness,
    )
