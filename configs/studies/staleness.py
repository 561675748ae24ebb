"""Collapse of training on old samples, by staleness and by learning rate.

Command:   nice -n 19 python -m experiments.sweep --config=configs/studies/staleness.py --workers=1 --minutes=90
Hardware:  one CPU core
Protocol:  experiments/studies/staleness/protocol.md (hypotheses, cells, margins, stop rule)
Budget:    7 arms x 5 learning rates x 8 seeds: 280 cells of 128 updates, and the SFT policy of each seed
Result:    docs/results/staleness.md, written from experiments/studies/staleness/cells.jsonl

REINFORCE without a correction on templated reviews, with gold as the reward, so that no collapse is
the over-optimisation of a learned reward. `:pilot` is the seed that is never reported, and `:tiny`
is for tests. `:token_tis` is a study of its own: the constant lags with truncated importance weights,
beside these cells (experiments/studies/staleness_token_tis/protocol.md, 200 cells), and
`:token_tis_tiny` is for tests.
"""

from collections.abc import Mapping
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
TOKEN_TIS = "token_tis"
TOKEN_TIS_SEEDS = SEEDS  # the last three by the stop rule of its protocol
ESTIMATOR: Mapping[str, Any] = {
    "algorithm.advantage.power": 0.0,  # not divided by the deviation of the group
    "algorithm.aggregation": "rows",  # summed over the tokens of a row
}
"""Of `reinforce`: with these a preset that corrects differs from it in a token's weight alone."""


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


def lags(algorithm: str, overrides: Mapping[str, Any]) -> tuple[Arm, ...]:
    """The arms of constant lag.

    Args:
      algorithm: a preset.
      overrides: of its keys.
    """
    return tuple(Arm(f"lag{lag}", algorithm, {**overrides, "rlhf.lag": lag}) for lag in LAGS)


def cycles(algorithm: str) -> tuple[Arm, ...]:
    """The arms of samplers that are renewed every so many rounds.

    Args:
      algorithm: a preset.
    """
    return tuple(
        Arm(f"sync{oldest + 1}", algorithm, {"rlhf.sync_every": oldest + 1}) for oldest in CYCLES
    )


def get_study(argument: str = "") -> Study:
    """The study, or that of the corrected arm; `pilot`, `tiny` and `token_tis_tiny` are never
    reported.
    """
    corrected, tiny_of_corrected = TOKEN_TIS, f"{TOKEN_TIS}_tiny"
    if argument not in ("", "pilot", "tiny", corrected, tiny_of_corrected):
        raise Refusal(
            f"the study's argument is {argument!r}; accepted: pilot, tiny, {corrected}, "
            f"{tiny_of_corrected}, or none"
        )
    small, records = argument.endswith("tiny"), Path("experiments/studies/staleness")
    is_corrected = argument.startswith(corrected)
    corrected_records = records.with_name(f"staleness_{corrected}")
    return Study(
        directory=Path("runs/studies/staleness" + (f"_{argument}" if argument else "")),
        base=tiny if small else base,
        arms=lags(TOKEN_TIS, ESTIMATOR)
        if is_corrected
        else (*lags("reinforce", {}), *cycles("reinforce")),
        grid={RATE: RATES[:1] if small else RATES},
        open_ended={},
        rungs=(),
        report_updates=3 if small else NUM_UPDATES,
        report_seeds={"": SEEDS, corrected: TOKEN_TIS_SEEDS}.get(argument, (PILOT_SEED,)),
        cells={
            "": records / "cells.jsonl",
            "pilot": records / "pilot.jsonl",
            corrected: corrected_records / "cells.jsonl",
        }.get(argument),
        measure=Staleness,
    )
