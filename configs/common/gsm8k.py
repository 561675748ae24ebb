"""GSM8K with Rho-1B of async RLHF (Noukhovitch et al. 2024, arXiv 2410.18252; its branch dev): what
its algorithms share.
"""

from ml_collections import ConfigDict

from rlhf_jax import build

from . import recipes


def rlhf(algorithm: str, prompts_per_update: int, num_updates: int) -> ConfigDict:
    """The RLHF stage on exact match, asynchronous at lag 1."""
    config = recipes.recipe(f"runs/gsm8k/{algorithm}", "gsm8k")
    config.pretrained.sft = "models/rho-1b-sft-gsm8k"
    config.pretrained.policy_shape = "llama/rho-1b"
    config.reward = "exact_match"
    config.algorithm = build.component("algorithms", algorithm)
    config.lengths.max_prompt_tokens, config.lengths.max_completion_tokens = 384, 512
    config.rlhf.loop, config.rlhf.lag = "asynchronous", 1
    config.rlhf.temperature = 0.7
    config.rlhf.samples_per_prompt = 4
    config.rlhf.prompts_per_update = prompts_per_update
    config.rlhf.total_prompts = num_updates * prompts_per_update
    config.rlhf.scoring.replace_missing_eos = False
    for optimizer in (config.rlhf.optimizer, config.rlhf.critic_optimizer):
        recipes.plain_adam(optimizer, 3e-6, "linear")
        optimizer.max_grad_norm = 1.0  # on one GPU; the code of the four-GPU runs clips nothing
    config.rlhf.checkpoint_every = config.rlhf.evaluate_every = num_updates // 4
    config.rlhf.keep_checkpoints = 4
    config.evaluate.prompts_per_batch = 64
    config.evaluate.num_prompts, config.evaluate.num_prompts_between = 1280, 256  # of 1,319
    config.evaluate.samples_per_prompt = config.evaluate.references_per_prompt = 1
    return config
