"""SFT, comparisons labelled by gold, a learned reward model, and Online DPO on templated reviews,
asynchronous at lag 1.

Command:   python -m experiments.run --config=configs/quickstart.py
Hardware:  two CPU cores
Time:      1 min 41 s at first and 1 min 23 s after that on two idle cores, compile included
Result:    seed 0: gold win-rate 0.487 -> 0.771 at 1.65 nats, 100 % distinct completions; reward model 86.5 %
           (the processor is an AMD EPYC; on another kind the same seed gives other numbers)
"""

from ml_collections import ConfigDict

from rlhf_jax import build

# What differs from an algorithm's own defaults here, for scores in SFT standard deviations and 64
# updates.
SETTINGS: dict[str, dict[str, float]] = {"online_dpo": {"beta": 0.5}}


def get_config(argument: str = "") -> ConfigDict:
    """`:algorithm=rloo` takes another file of `rlhf_jax/algorithms/`."""
    name = build.choices(argument, algorithm="online_dpo")["algorithm"]
    config = build.default()
    config.algorithm = build.component("algorithms", name)
    config.directory = "runs/quickstart" if name == "online_dpo" else f"runs/quickstart_{name}"
    config.lengths.max_prompt_tokens = 18
    config.lengths.max_completion_tokens = 27
    config.sft.num_updates = 500
    config.sft.optimizer.learning_rate = 6e-3
    config.sft.checkpoint_every = 250
    config.comparisons.num_train = 6144
    config.reward_model.num_updates = 350
    config.reward_model.pairs_per_update = 48
    config.reward_model.optimizer.learning_rate = 2e-3
    config.rlhf.total_prompts = 64 * 64
    config.rlhf.prompts_per_update = 64
    config.rlhf.samples_per_prompt = 8
    config.rlhf.loop = "asynchronous"
    config.rlhf.lag = 1
    config.rlhf.optimizer.learning_rate = 5e-4
    config.rlhf.evaluate_every = 16
    config.rlhf.checkpoint_every = 16
    config.algorithm.update(SETTINGS.get(name, {}))
    config.best_of_n_prompts = 128
    return config
