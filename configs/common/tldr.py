"""TL;DR of async RLHF (Noukhovitch et al. 2024, arXiv 2410.18252): what its stages share.

Values are those of the paper's table and code; where the two disagree the value's comment says so.
"""

from ml_collections import ConfigDict

from rlhf_jax import build

from . import recipes

NUM_POSTS, NUM_COMPARISONS = 116_722, 92_858  # of the published training files
NUM_HELDOUT = 6_447


SIZES = {"410m": "pythia-410m", "1b": "pythia-1b", "2.8b": "pythia-2.8b"}


def base(size: str, stage: str) -> ConfigDict:
    """A recipe on TL;DR with Pythia of a size. Raises Refusal for another size."""
    preset = recipes.one_of(SIZES, "size", size)
    config = recipes.recipe(f"runs/tldr/{size}/{stage}", "tldr")
    config.model = build.model("gpt_neox", preset)
    config.model.dtype = "bfloat16"  # fp16 AMP for SFT and reward model, bf16 for RLHF
    config.lengths.max_prompt_tokens = 512
    config.evaluate.references_per_prompt = 1  # the human summary
    config.evaluate.prompts_per_batch = 128
    config.evaluate.num_prompts = NUM_HELDOUT // 128 * 128  # all but the last 47 of 6,447
    config.evaluate.num_prompts_between = 1024
    config.evaluate.max_completion_tokens = (
        128  # response length of evaluations, in the paper's table for training too
    )
    return config


def reward_model(size: str, stage: str) -> ConfigDict:
    """The stages on comparisons: relabelled by gold, then learned."""
    config = base(size, stage)
    config.directory = f"runs/tldr/{size}/reward_model"
    config.job = stage
    config.task.comparisons_dir = "data/tldr_comparisons"
    config.pretrained.sft, config.pretrained.gold = (
        f"models/tldr-{size}-sft",
        "models/tldr-6.9b-reward",
    )
    config.pretrained.gold_shape = "gpt_neox/pythia-6.9b"
    config.pretrained.gold_dtype = "bfloat16"  # 13.8 GB of params in place of 27.6
    config.lengths.max_completion_tokens = 169
    recipes.plain_adam(config.reward_model.optimizer, 1e-5, "cosine")
    config.reward_model.pairs_per_update = (
        64  # 410m: 8 x 8; the cards of 1b and 2.8b say 64 in all, their configs 16 a process
    )
    config.reward_model.num_updates = NUM_COMPARISONS // 64  # one epoch, about 1,451 updates
    config.reward_model.checkpoint_every = 500
    return config


def rlhf(size: str, algorithm: str) -> ConfigDict:
    """The RLHF stage, asynchronous at lag 1: 131,072 episodes in 256 updates."""
    config = base(size, algorithm)
    config.algorithm = build.component("algorithms", algorithm)
    config.pretrained.sft, config.pretrained.reward_model = (
        f"models/tldr-{size}-sft",
        f"models/tldr-{size}-reward",
    )
    config.pretrained.gold = "models/tldr-6.9b-reward"
    config.pretrained.gold_shape = "gpt_neox/pythia-6.9b"
    config.pretrained.gold_dtype = "bfloat16"  # 13.8 GB of params in place of 27.6
    config.lengths.max_completion_tokens = (
        53  # all training configs of the code; the paper's table says 128
    )
    config.rlhf.loop, config.rlhf.lag = "asynchronous", 1
    config.rlhf.temperature = 0.7
    config.rlhf.samples_per_prompt = 2
    config.rlhf.prompts_per_update = (
        512  # the asynchronous runs on four devices had 504, for three that train
    )
    config.rlhf.total_prompts = 256 * 512
    recipes.plain_adam(config.rlhf.optimizer, 3e-6, "linear")
    recipes.plain_adam(config.rlhf.critic_optimizer, 3e-6, "linear")
    config.rlhf.scoring.missing_eos_score = -1.0
    config.rlhf.checkpoint_every = config.rlhf.evaluate_every = 64  # four checkpoints a run
    config.rlhf.keep_checkpoints = 4
    return config
