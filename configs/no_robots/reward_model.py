"""A reward model on your own comparisons of replies to No Robots prompts, for async RLHF's chat
experiment (arXiv 2410.18252).

Command:   python -m experiments.run --config=configs/no_robots/reward_model.py
Hardware:  8 accelerators of 80 GB (the paper: 8 H100, of which one sampled), or v5p:2x2x1 (by
           formula, docs/scale/what_fits.md)
Time:      not measured: no accelerator was at hand
Result:    not measured
Debug:     `:debug` runs it end to end with a random model of bytes on small files, two updates a stage

The paper's comparisons, judged by GPT-4o, are not published: give yours, and the prompts, as the
files of configs/jsonl.py in data/no_robots_pairs, the prompts already in the chat template. Needs
models/no_robots-sft. Exported for RLHF: python -m experiments.export
--directory=runs/no_robots/reward_model --stage=reward_model --to=models/no_robots-reward
"""

from ml_collections import ConfigDict

from ..common import recipes


def get_config(argument: str = "") -> ConfigDict:
    """`:debug` takes the smallest sizes."""
    _, small = recipes.chosen(argument)
    config = recipes.recipe("runs/no_robots/reward_model", "jsonl")
    config.job = "reward_model"
    config.task.prompts = "data/no_robots_pairs/prompts.jsonl"
    config.task.comparisons = "data/no_robots_pairs/comparisons.jsonl"
    config.task.rendered = True
    config.pretrained.sft = "models/no_robots-sft"
    config.pretrained.policy_shape = "llama/llama-3.1-8b"
    config.lengths.max_prompt_tokens, config.lengths.max_completion_tokens = (
        512,
        512,
    )  # 1,024 in all
    config.reward_model.pairs_per_update = 256
    config.reward_model.num_updates = 10_000 // 256  # one epoch of the paper's pairs
    recipes.plain_adam(config.reward_model.optimizer, 3e-6, "linear")
    return recipes.debug(config) if small else config
