"""A learned reward that is over-optimised: it goes on rising while gold falls (Gao et al., 2022,
arXiv 2210.10760).

Command:   python -m experiments.run --config=configs/overoptimization.py
Hardware:  two CPU cores
Time:      five minutes on a busy machine
Result:    seed 0: learned reward 0 -> 2.64 SFT standard deviations; gold 1.01 at its peak, -3.71 at the end

The chain on templated reviews with a reward model of few comparisons, a weak pull to the reference and many
updates, on-policy.
"""

from ml_collections import ConfigDict

from .common import reviews


def get_config() -> ConfigDict:
    config = reviews.base()
    config.directory = "runs/overoptimization"
    config.comparisons.num_train = 1024
    config.reward_model.num_updates = 100
    config.algorithm.beta = 0.02
    config.rlhf.loop, config.rlhf.lag = "synchronous", 0
    config.rlhf.total_prompts = 192 * 64
    config.rlhf.optimizer.learning_rate = 2e-3
    config.rlhf.evaluate_every = 12
    config.rlhf.checkpoint_every = 48
    return config
