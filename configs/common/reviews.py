"""The chain on templated reviews: SFT, comparisons labelled by gold, a reward model, and RLHF at lag 1.

The committed cells of studies are known by the digest of their config, and it is made of these sizes.
Other sizes for the quickstart belong in `configs/quickstart.py`.
"""

from ml_collections import ConfigDict

from rlhf_jax import build

# What differs from an algorithm's own defaults here, for scores in SFT standard deviations and 64
# updates.
SETTINGS: dict[str, dict[str, float]] = {"online_dpo": {"beta": 0.5}}


def base(algorithm: str = "online_dpo") -> ConfigDict:
    """The config that studies on templated reviews begin from.

    Args:
      algorithm: a file of `rlhf_jax/algorithms/`, or a preset.
    """
    config = build.default()
    config.algorithm = build.component("algorithms", algorithm)
    config.algorithm.update(SETTINGS.get(algorithm, {}))
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
    config.best_of_n_prompts = 128
    return config
