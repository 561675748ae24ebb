"""Online DPO on sums: exact match is the reward, stands for GSM8K.

Command:   python -m experiments.run --config=configs/addition.py
Hardware:  two CPU cores
Time:      80 s
Result:    seed 0: sampled exact match 0.314 -> 0.333 on pairs never trained on (greedy 0.264 -> 0.272). Online DPO
           does not lift it here: the margin of fresh pairs is negative for the first 150 updates; at a learning rate of
           1e-3 exact match falls.
"""

from ml_collections import ConfigDict

from rlhf_jax import build


def get_config() -> ConfigDict:
    config = build.default()
    config.directory = "runs/addition"
    config.task = build.component("tasks", "addition")
    config.tokenizer.kind = "characters"
    config.lengths.max_prompt_tokens = 8
    config.lengths.max_completion_tokens = 4
    config.reward = "exact_match"
    config.sft.num_updates = 1500
    config.sft.rows_per_update = 128
    config.rlhf.scoring.replace_missing_eos = False  # exact match already gives 0 to what never ends
    config.rlhf.prompts_per_update = 64
    config.rlhf.samples_per_prompt = 8
    config.rlhf.total_prompts = 200 * 64
    config.rlhf.optimizer.learning_rate = 3e-4
    config.rlhf.evaluate_every = 50
    config.rlhf.checkpoint_every = 50
    config.evaluate.references_per_prompt = 1
    return config
