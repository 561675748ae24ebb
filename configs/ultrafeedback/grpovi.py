"""GRPOVI on UltraFeedback (Yang et al. 2025, arXiv 2505.23247), with settings of Razin et al. 2025
where its own are not known.

Command:   python -m experiments.run --config=configs/ultrafeedback/grpovi.py
Hardware:  2 accelerators of 80 GB (Razin et al.: 2 H100), or v6e:2x4 (by formula,
           docs/scale/what_fits.md)
Time:      not measured: no accelerator was at hand
Result:    not measured
Debug:     `:debug` runs it end to end with a random model of bytes on small files, two updates a stage

The paper names data, reward models (GRM-Gemma-2-2B, GRM-Llama-3.2-3B) and gold (mean ArmoRM
reward); its policy, group size, learning rate, batch and KL weight are not known. Those here are of
arXiv 2503.15477 (its code), but for 8 samples a prompt: with its 2, divided by the deviation, the
adjustment would change nothing. Needs data/ultrafeedback, models/ultrafeedback-sft,
models/ultrafeedback-reward (a sequence classifier of the policy's tokenizer) and, for win-rates,
--config.pretrained.gold=FOLDER. `:algorithm=grpo` takes the baseline.
"""

from ml_collections import ConfigDict

from rlhf_jax import build

from ..common import recipes


def get_config(argument: str = "") -> ConfigDict:
    """`:algorithm=grpo` takes the baseline, `:debug` the smallest sizes."""
    choice, small = recipes.chosen(argument, algorithm="grpovi")
    config = recipes.recipe(f"runs/ultrafeedback/{choice['algorithm']}", "ultrafeedback")
    config.algorithm = build.component("algorithms", choice["algorithm"])
    config.algorithm.kl_weight = 0.05
    config.pretrained.sft, config.pretrained.reward_model = (
        "models/ultrafeedback-sft",
        "models/ultrafeedback-reward",
    )
    config.pretrained.policy_shape = "gpt_neox/pythia-2.8b"  # Razin et al.'s largest policy
    config.pretrained.reward_model_shape = "gemma2/gemma-2-2b"
    config.pretrained.gold_shape = "llama/llama-3.1-8b"
    config.pretrained.gold_dtype = "bfloat16"  # as the policy computes
    config.reward_model.standardize = (
        True  # one mean and deviation, as both papers do; the range is in that unit
    )
    config.lengths.max_prompt_tokens = config.lengths.max_completion_tokens = 512
    config.rlhf.temperature = 1.0
    config.rlhf.samples_per_prompt = 8
    config.rlhf.prompts_per_update = 16
    config.rlhf.num_minibatches = 2
    config.rlhf.total_prompts = (
        2 * 12_224
    )  # as many as two epochs of the fifth that is not the reward model's there
    config.rlhf.loop, config.rlhf.lag = "asynchronous", 1
    recipes.plain_adam(config.rlhf.optimizer, 1e-7, "constant")
    config.rlhf.checkpoint_every = config.rlhf.evaluate_every = 382  # four checkpoints a run
    config.rlhf.keep_checkpoints = 4
    config.evaluate.num_prompts = 500
    config.evaluate.prompts_per_batch = config.evaluate.num_prompts_between = 100
    config.evaluate.samples_per_prompt, config.evaluate.references_per_prompt = 10, 1
    return recipes.debug(config) if small else config
