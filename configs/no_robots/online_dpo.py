"""Online DPO of Llama 3.1 8B on No Robots, asynchronous at lag 1: the chat experiment of async RLHF
(arXiv 2410.18252).

Command:   python -m experiments.run --config=configs/no_robots/online_dpo.py
Hardware:  8 accelerators of 80 GB (the paper: 8 H100, of which one sampled), or v5p:2x2x1 (by
           formula, docs/scale/what_fits.md)
Time:      not measured: no accelerator was at hand
Result:    not measured
Debug:     `:debug` runs it end to end with a random model of bytes on small files, two updates a stage

Needs data/no_robots, models/no_robots-sft and models/no_robots-reward. The paper judges with
GPT-4o; here gold is a reward model (--config.pretrained.gold=FOLDER), and without one KL, lengths
and rewards are measured.
"""

from ml_collections import ConfigDict

from rlhf_jax import build

from ..common import recipes


def get_config(argument: str = "") -> ConfigDict:
    """`:debug` takes the smallest sizes."""
    _, small = recipes.chosen(argument)
    config = recipes.recipe("runs/no_robots/online_dpo", "no_robots")
    config.pretrained.sft, config.pretrained.reward_model = (
        "models/no_robots-sft",
        "models/no_robots-reward",
    )
    config.pretrained.policy_shape = "llama/llama-3.1-8b"
    config.task.eos_token = "<|end_of_text|>"
    config.algorithm = build.component("algorithms", "online_dpo")
    config.algorithm.beta = 0.03
    config.lengths.max_prompt_tokens, config.lengths.max_completion_tokens = 512, 1024
    config.rlhf.loop, config.rlhf.lag = "asynchronous", 1
    config.rlhf.temperature = 0.7
    config.rlhf.samples_per_prompt = 2
    config.rlhf.prompts_per_update = 128  # 256 completions
    config.rlhf.total_prompts = 390 * 128  # 100,000 episodes count completions
    recipes.plain_adam(config.rlhf.optimizer, 8e-7, "linear")
    config.rlhf.optimizer.epsilon = 1e-5
    config.rlhf.scoring.missing_eos_score = -10.0
    config.rlhf.checkpoint_every = config.rlhf.evaluate_every = 98  # four checkpoints a run
    config.rlhf.keep_checkpoints = 4
    config.evaluate.prompts_per_batch = config.evaluate.num_prompts_between = 100
    config.evaluate.num_prompts = 500
    config.evaluate.references_per_prompt = 1
    config.seed = 3
    return recipes.debug(config) if small else config
