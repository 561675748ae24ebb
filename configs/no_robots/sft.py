"""Supervised fine-tuning of Llama 3.1 8B on No Robots, for the chat experiment of async RLHF (arXiv
2410.18252).

Command:   python -m experiments.run --config=configs/no_robots/sft.py
Hardware:  8 accelerators of 80 GB (the paper: 8 H100, of which one sampled), or v5p:2x2x1 (by
           formula, docs/scale/what_fits.md)
Time:      not measured: no accelerator was at hand
Result:    not measured
Debug:     `:debug` runs it end to end with a random model of bytes on small files, two updates a stage

Needs data/no_robots and models/llama-3.1-8b, a checkpoint folder. Exported for the next stages:
python -m experiments.export --directory=runs/no_robots/sft --stage=sft --to=models/no_robots-sft
"""

from ml_collections import ConfigDict

from ..common import recipes


def get_config(argument: str = "") -> ConfigDict:
    """`:debug` takes the smallest sizes."""
    _, small = recipes.chosen(argument)
    config = recipes.recipe("runs/no_robots/sft", "no_robots")
    config.job = "sft"
    config.pretrained.base = "models/llama-3.1-8b"
    config.task.eos_token = "<|end_of_text|>"
    config.pretrained.policy_shape = "llama/llama-3.1-8b"
    config.lengths.max_prompt_tokens, config.lengths.max_completion_tokens = (
        2048,
        2048,
    )  # 4,096 in all
    config.sft.rows_per_update = 128
    config.sft.num_updates = 2 * 9_500 // 128  # two epochs
    recipes.plain_adam(config.sft.optimizer, 5e-6, "linear")
    config.sft.optimizer.warmup_updates = 4  # 0.03 of them
    return recipes.debug(config) if small else config
