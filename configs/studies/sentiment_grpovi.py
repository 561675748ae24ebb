"""GRPOVI on a language model: controlled sentiment with SmolLM2-135M-Instruct, 4-bit values.

Command:   nice -n 19 python -m experiments.sweep --config=configs/studies/sentiment_grpovi.py --workers=1 --minutes=90
Hardware:  one CPU core, 6 GB
Protocol:  experiments/studies/sentiment_grpovi/protocol.md (hypotheses, cells, margins, stop rule)
Budget:    2 arms x 5 seeds: 10 cells of 48 updates, and the reward model of each seed
Result:    docs/results/sentiment_grpovi.md, written from experiments/studies/sentiment_grpovi/cells.jsonl

Needs the folder models/smollm2-135m (docs/guides/smollm2.md) and the extra `sentiment`. `:pilot` chooses
the learning rate, with GRPO, on a seed that is never reported.
"""

from typing import Any

from ml_collections import ConfigDict

from rlhf_jax import build
from rlhf_jax.sweeps.study import Arm, Study

from . import sentiment
from .sentiment import RATE

NUM_UPDATES = 48
PROMPTS, SAMPLES = 4, 8  # of an update: as many rows as in the study of staleness on this model
CHOSEN_RATE = 1e-5  # of the draft: the pilot has not ended
COMMON = {
    "algorithm.advantage": "standardized",
    "algorithm.kl_weight": 0.04,
    "algorithm.correction.ratio_to": "behavior",
    "algorithm.correction.correction": "none",
}
"""Of both arms, which are on-policy. GRPOVI's range is that of its defaults, ±6 deviations of the
learned reward over the published model's completions.
"""


def base() -> ConfigDict:
    """The recipe with groups of 8, on-policy."""
    config: Any = sentiment.base()
    config.algorithm = build.component("algorithms", "grpo")
    config.rlhf.lag = 0
    config.rlhf.prompts_per_update, config.rlhf.samples_per_prompt = PROMPTS, SAMPLES
    config.rlhf.total_prompts = NUM_UPDATES * PROMPTS
    config.rlhf.evaluate_every, config.rlhf.evaluate_at = 0, (4, 8, 12, 16, 24, 32, 40)
    return config


def arms(pilot: bool) -> tuple[Arm, ...]:
    """Both arms at the chosen learning rate; in the pilot GRPO, at those of the grid."""
    rate = {} if pilot else {RATE: CHOSEN_RATE}
    names = ("grpo",) if pilot else ("grpo", "grpovi")
    return tuple(Arm(name, name, {**COMMON, **rate}) for name in names)


def get_study(argument: str = "") -> Study:
    """The study, or its pilot."""
    return sentiment.study_of("sentiment_grpovi", argument, arms, base, NUM_UPDATES)
