"""Controlled sentiment (arXiv 2305.18290, section 6) with SmolLM2-135M-Instruct, 4-bit values: a
learned reward of VADER's comparisons, judged by VADER.

Command:   python -m experiments.run --config=configs/smollm2/sentiment.py
Hardware:  two CPU cores
Time:      not measured on idle cores
Result:    not measured

The published model samples 1,024 pairs of completions, VADER orders them, and the same model with a
head learns from them. Win-rates compare with completions of the published model, which is also the
KL reference. `:algorithm=rloo` takes RLOO with ratios to the proximal policy and truncated weights;
any `--config.rlhf.lag` and `--config.seed` may follow.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax import build

from ..common import smollm2

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "online_dpo": {"beta": 0.1},  # the best of four samples against the worst
    # at every lag alike, also at 0, where "auto" would take the behavior policy
    "rloo": {"correction": {"ratio_to": "proximal", "correction": "truncate"}},
}


def get_config(argument: str = "") -> ConfigDict:
    """`:algorithm=rloo` takes another file of `rlhf_jax/algorithms/`."""
    name = build.choices(argument, algorithm="online_dpo")["algorithm"]
    config = smollm2.recipe("runs/smollm2/sentiment", "sentiment")
    if name != "online_dpo":
        config.directory += f"_{name}"
    config.algorithm = build.component("algorithms", name)
    config.algorithm.update(SETTINGS.get(name, {}))
    config.lora.rank = 16  # of the policy and of the reward model, on one base
    config.lengths.max_prompt_tokens, config.lengths.max_completion_tokens = 8, 24
    config.comparisons.num_train, config.comparisons.num_heldout = 1024, 256
    config.comparisons.prompts_per_batch = 64
    config.reward_model.num_updates, config.reward_model.pairs_per_update = 64, 16
    config.reward_model.optimizer.learning_rate = 2e-4
    config.reward_model.standardize_prompts = 128
    config.rlhf.samples_per_prompt = 4
    config.rlhf.total_prompts = 64 * 8
    config.rlhf.optimizer.learning_rate = 1e-5
    config.rlhf.evaluate_every, config.rlhf.checkpoint_every = 16, 16
    config.evaluate.num_prompts = config.evaluate.num_prompts_between = 100
    config.evaluate.prompts_per_batch = 25
    config.evaluate.compare_with = "sft_policy"
    config.best_of_n = ()
    return config
