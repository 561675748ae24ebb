"""The smallest sizes in which the laboratory's components run."""

SIZES = {
    "lengths.max_prompt_tokens": 4,
    "lengths.max_completion_tokens": 5,
    "sft.num_updates": 2,
    "sft.rows_per_update": 8,
    "sft.checkpoint_every": 2,
    "rlhf.total_prompts": 8,
    "rlhf.prompts_per_update": 4,
    "rlhf.samples_per_prompt": 2,
    "rlhf.lag": 0,
    "rlhf.loop": "synchronous",
    "rlhf.evaluate_every": 2,
    "rlhf.checkpoint_every": 1,
    "rlhf.log_samples": 1,
    "evaluate.num_prompts": 4,
    "evaluate.num_prompts_between": 4,
    "evaluate.prompts_per_batch": 4,
    "evaluate.samples_per_prompt": 2,
    "best_of_n": (),
    "best_of_n_prompts": 4,
}
