"""GRPO on running sums, by a decoder that is made from nothing: what the studies of in-flight
updates share.
"""

from ml_collections import ConfigDict

from rlhf_jax import build

LEARNING_RATE = 2e-4  # of RLHF
NUM_SLOTS = 96  # 1.5 rounds: at lag 1 a third or more of the rows then meet new weights
ROUND_STEPS = 14  # decode steps of a round in full slots: 64 rows of about 21 tokens over the slots
TAUS = {"quarter": 4, "whole": 14}
"""Virtual training times, by the share of a round's decode steps that they are."""


def base() -> ConfigDict:
    """SFT, and then rounds of 8 prompts with 8 samples each; exact match is the reward. The algorithm
    has its own defaults, as a study's arms give it.
    """
    config = build.default()
    config.task = build.component("tasks", "running_sums")
    config.task.reversed_percent = 50  # of what SFT sees: RL has a way to write to choose
    config.tokenizer.kind = "characters"
    config.model.width, config.model.ffn_width = 64, 256
    config.model.num_layers, config.model.num_heads = 3, 4
    config.model.init_scale = 1.6
    config.lengths.max_prompt_tokens, config.lengths.max_completion_tokens = 25, 34
    config.reward = "exact_match"
    config.sft.num_updates, config.sft.rows_per_update = 1200, 64
    config.sft.optimizer.learning_rate, config.sft.optimizer.schedule = 3e-3, "cosine"
    config.sft.checkpoint_every = 0
    config.algorithm = build.component("algorithms", "grpo")
    config.rlhf.scoring.replace_missing_eos = False
    config.rlhf.prompts_per_update, config.rlhf.samples_per_prompt = 8, 8
    config.rlhf.total_prompts = 96 * 8
    config.rlhf.loop, config.rlhf.ledger, config.rlhf.log_samples = "synchronous", False, 0
    config.rlhf.optimizer.learning_rate = LEARNING_RATE
    config.rlhf.optimizer.schedule = "constant"
    config.rlhf.evaluate_every, config.rlhf.evaluate_at = 0, (24, 48, 72)
    config.rlhf.checkpoint_every = 0
    config.evaluate.num_prompts = 512
    config.evaluate.num_prompts_between = config.evaluate.prompts_per_batch = 128
    config.evaluate.references_per_prompt = 1
    return config


def inflight(lag: int, tau: int, rebuild_every: int = 0) -> dict[str, str | int]:
    """The overrides of in-flight updates.

    Args:
      lag: most rounds that the sampler is ahead.
      tau: virtual training time of a round in decode steps.
      rebuild_every: 0 keeps keys and values; 1 computes them again at each version.
    """
    settings = {"engine": "slots", "weights": "inflight", "num_slots": NUM_SLOTS}
    settings |= {"segment_steps": 2, "lag": lag, "tau": tau, "rebuild_every": rebuild_every}
    return {f"rlhf.{key}": value for key, value in settings.items()}


def tiny(config: ConfigDict) -> ConfigDict:
    """The same with sizes for a test: what is learned is of no interest.

    Args:
      config: changed in place.
    """
    config.task.most_terms, config.task.draws = 5, 40
    config.model.width, config.model.ffn_width, config.model.num_layers = 16, 32, 1
    config.lengths.max_prompt_tokens, config.lengths.max_completion_tokens = 11, 13
    config.sft.num_updates, config.sft.rows_per_update = 4, 8
    config.rlhf.prompts_per_update, config.rlhf.samples_per_prompt = 2, 4
    config.rlhf.evaluate_at = ()
    config.evaluate.num_prompts = config.evaluate.num_prompts_between = (
        config.evaluate.prompts_per_batch
    ) = 4
    return config
