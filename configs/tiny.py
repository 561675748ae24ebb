"""The quickstart in the smallest sizes, to try commands in seconds; it learns nothing worth having.

Command:   python -m experiments.run --config=configs/tiny.py
Hardware:  two CPU cores
Time:      about 30 s, nearly all of it compiling
Result:    none: two updates of the reward model and eight of the policy
"""

from ml_collections import ConfigDict

from . import quickstart


def get_config(argument: str = "") -> ConfigDict:
    """`:algorithm=rloo` takes another file of `rlhf_jax/algorithms/`."""
    config = quickstart.get_config(argument)
    config.directory = config.directory.replace("quickstart", "tiny")
    config.model.update({"width": 16, "ffn_width": 32, "num_layers": 1})
    config.sft.update({"num_updates": 40, "rows_per_update": 32, "checkpoint_every": 20})
    config.sft.min_whole_references = 0.0
    config.comparisons.update({"num_train": 64, "num_heldout": 64, "prompts_per_batch": 64})
    config.reward_model.update({"num_updates": 4, "pairs_per_update": 16})
    config.reward_model.standardize_prompts = 64
    config.rlhf.update({"total_prompts": 64, "prompts_per_update": 8, "samples_per_prompt": 4})
    config.rlhf.update({"evaluate_every": 4, "checkpoint_every": 2, "keep_checkpoints": 3})
    config.evaluate.update({"num_prompts": 32, "num_prompts_between": 32, "prompts_per_batch": 32})
    config.best_of_n, config.best_of_n_prompts = (1, 2), 16
    return config
