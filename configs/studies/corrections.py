"""Corrections of stale samples under three ways of renewing the sampler.

Command:   nice -n 19 python -m experiments.sweep --config=configs/studies/corrections.py --workers=1 --minutes=90
Hardware:  one CPU core
Protocol:  experiments/studies/corrections/protocol.md (hypotheses, cells, margins, stop rule)
Budget:    30 arms x 10 seeds: 300 cells of 64 updates; for each seed the SFT policy, and for two arms a reward model
Result:    docs/results/corrections.md, written from experiments/studies/corrections/cells.jsonl

Every arm is REINFORCE with the mean of its group as baseline; what differs is the coefficient of a
token's gradient. Ages are 0 to 3 under the first two clocks and 4 to 7 under the third. `:pilot` has
the seeds that are never reported, and `:tiny` is for tests.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.refusal import Refusal
from rlhf_jax.sweeps.measures.staleness import Staleness
from rlhf_jax.sweeps.study import Arm, Study

from . import staleness
from .staleness import ESTIMATOR, RATE

NUM_UPDATES = 64
PROMPTS, SAMPLES = 16, 4
CLOCKS: Mapping[str, Mapping[str, int]] = {
    "lag3": {"rlhf.lag": 3},
    "sync4": {"rlhf.sync_every": 4},
    "sync4lag4": {"rlhf.sync_every": 4, "rlhf.lag": 4},
}
CORRECTIONS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "none": ("reinforce", {}),
    "clip": ("policy_gradient", {"algorithm.correction.ratio_to": "behavior", "algorithm.correction.correction": "none"}),
    "token_tis": ("token_tis", {}),
    "cispo": ("cispo", {}),
    "dppo": ("dppo_tv", {}),
    "row_mask": ("seq_mis", {}),
    "one_sided": ("reinforce", {"algorithm.filter.rows": "one_sided", "algorithm.filter.high": 0.1}),
    "asymre": ("asymre", {}),
}  # fmt: skip
"""Preset, and what differs from it. `clip` is PPO's, of the ratio to the policy that drew the token."""
LEARNED = ("clip", "token_tis")
"""The corrections of the primary contrast, which also run with a learned reward."""
PILOT_CORRECTIONS = ("none", *LEARNED)
PILOT_RATES = (1e-3, 2e-3)
CHOSEN_RATE = 2e-3  # by the pilot
SEEDS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
PILOT_SEEDS = (100, 101, 102)


def base() -> ConfigDict:
    """The task of the study of staleness, in rounds of one update on 16 prompts with four samples."""
    config: Any = staleness.base()
    config.rlhf.prompts_per_update, config.rlhf.samples_per_prompt = PROMPTS, SAMPLES
    config.rlhf.total_prompts = NUM_UPDATES * PROMPTS
    config.rlhf.evaluate_at = tuple(range(8, NUM_UPDATES, 8))
    return config


def tiny() -> ConfigDict:
    """Sizes for a test: what is learned is of no interest."""
    config: Any = staleness.shrunk(base())
    config.comparisons.num_train = config.comparisons.num_heldout = 8
    config.comparisons.prompts_per_batch = 8
    config.reward_model.num_updates, config.reward_model.pairs_per_update = 2, 4
    config.reward_model.standardize_prompts, config.best_of_n = 4, ()
    return config


def arm(correction: str, clock: str, reward: str = "gold", rate: float = CHOSEN_RATE) -> Arm:
    """The arm of a correction under a clock, by the name `correction-clock-reward`."""
    preset, overrides = CORRECTIONS[correction]
    variant = "" if reward == "gold" else reward
    return Arm(
        f"{correction}-{clock}-{reward}",
        preset,
        {**ESTIMATOR, **overrides, **CLOCKS[clock], RATE: rate},
        policy=variant,
        reward=variant,
    )


def arms() -> tuple[Arm, ...]:
    """Every correction under every clock on gold, and those of `LEARNED` on a learned reward."""
    kinds = [*((name, "gold") for name in CORRECTIONS), *((name, "learned") for name in LEARNED)]
    return tuple(arm(name, clock, reward) for name, reward in kinds for clock in CLOCKS)


def pilot_arms() -> tuple[Arm, ...]:
    """Three corrections under every clock on gold; the grid has their learning rates."""
    found = []
    for name in PILOT_CORRECTIONS:
        for clock in CLOCKS:
            one = arm(name, clock)
            overrides = {key: value for key, value in one.overrides.items() if key != RATE}
            found.append(Arm(one.name, one.algorithm, overrides))
    return tuple(found)


def get_study(argument: str = "") -> Study:
    """The study; `pilot` and `tiny` are never reported."""
    if argument not in ("", "pilot", "tiny"):
        raise Refusal(f"the study's argument is {argument!r}; accepted: pilot, tiny, or none")
    small, pilot = argument == "tiny", argument == "pilot"
    records = Path("experiments/studies/corrections")
    return Study(
        directory=Path("runs/studies/corrections" + (f"_{argument}" if argument else "")),
        base=tiny if small else base,
        arms=pilot_arms() if pilot else arms(),
        grid={RATE: PILOT_RATES} if pilot else {},
        open_ended={},
        rungs=(),
        report_updates=12 if small else NUM_UPDATES,
        report_seeds={"": SEEDS, "pilot": PILOT_SEEDS}.get(argument, (0,)),
        variants={"": {}, "learned": {"reward": "learned"}},
        cells={"": records / "cells.jsonl", "pilot": records / "pilot.jsonl"}.get(argument),
        measure=Staleness,
    )
