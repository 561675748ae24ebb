"""GRPO with LoRA of SmolLM2-135M-Instruct, 4-bit values, on sums after worked examples; exact match
is the reward.

Command:   python -m experiments.run --config=configs/smollm2/sums.py
Hardware:  two CPU cores
Time:      not measured on idle cores
Result:    not measured

A prompt is plain text, without the chat template, and a newline ends a completion. Before the first
update the run measures the model's pass rate on 256 training prompts. It ends there unless that is
0.2 to 0.6 and at most 35 % of the prompts have one score for all their samples.
"""

from ml_collections import ConfigDict

from rlhf_jax import build

from ..common import smollm2

NEWLINE = "Ċ"  # as a byte-level vocabulary writes it


def get_config() -> ConfigDict:
    config = smollm2.recipe("runs/smollm2/sums", "addition")
    config.task.limit, config.task.padded, config.task.heldout_percent = 30, False, 50
    config.task.spaced, config.task.worked_examples = True, 5
    config.tokenizer.eos = f"{NEWLINE} <|im_end|> <|endoftext|>"
    config.lengths.max_prompt_tokens, config.lengths.max_completion_tokens = 64, 6
    config.lora.rank = 32
    config.reward = "exact_match"
    config.algorithm = build.component("algorithms", "grpo")
    config.algorithm.kl_weight = 0.0
    config.rlhf.samples_per_prompt = 8
    config.rlhf.total_prompts = 100 * 8
    config.rlhf.signal.num_prompts = 256
    config.rlhf.optimizer.learning_rate = 2e-5
    config.rlhf.optimizer.schedule, config.rlhf.optimizer.warmup_updates = "constant", 5
    config.rlhf.evaluate_every, config.rlhf.checkpoint_every = 25, 25
    config.evaluate.num_prompts, config.evaluate.num_prompts_between = 200, 64
    config.evaluate.prompts_per_batch, config.evaluate.references_per_prompt = 16, 1
    return config
