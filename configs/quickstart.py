"""SFT, comparisons labelled by gold, a learned reward model, and Online DPO on templated reviews.

Command:  python -m experiments.run --config=configs/quickstart.py
"""

from ml_collections import ConfigDict

from rlhf_jax import build


def get_config() -> ConfigDict:
    config = build.default()
    config.directory = "runs/quickstart"
    config.lengths.max_prompt_tokens = 21
    config.lengths.max_completion_tokens = 28
    config.rlhf.total_prompts = 64 * 32
    config.rlhf.prompts_per_update = 32
    config.rlhf.evaluate_every = 16
    return config
