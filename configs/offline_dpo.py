"""Offline DPO on templated reviews: SFT, comparisons of its samples labelled by gold, and the policy
trained on them without a reward model.

Command:   python -m experiments.run --config=configs/offline_dpo.py
Hardware:  two CPU cores
Time:      21 min on two cores that several other programs kept busy; not measured on idle ones
Result:    seed 0: gold win-rate 0.488 -> 0.755 at 1.44 nats, 100 % distinct completions;
           69.3 % of held-out comparisons ordered as labelled by the implicit reward

`:loss_type=ipo` takes IPO's loss. Your own comparisons are read by configs/jsonl.py, with
--config.job=dpo.
"""

from ml_collections import ConfigDict

from rlhf_jax import build
from rlhf_jax.stages import dpo
from rlhf_jax.updating import OptimizerConfig

from .common import reviews


def get_config(argument: str = "") -> ConfigDict:
    """`:loss_type=ipo` takes IPO, with a β for it."""
    loss_type = build.choices(argument, loss_type="sigmoid")["loss_type"]
    config = reviews.base()
    config.job = "dpo"
    config.directory = "runs/offline_dpo" if loss_type == "sigmoid" else f"runs/offline_{loss_type}"
    optimizer = OptimizerConfig(learning_rate=5e-4, schedule="linear")
    config.dpo = build.node(dpo.Config(optimizer=optimizer))
    config.dpo.loss_type = loss_type
    config.dpo.beta = 0.1 if loss_type == "sigmoid" else 0.05
    config.dpo.num_updates = 90
    config.dpo.evaluate_every = 30
    config.dpo.checkpoint_every = 30
    return config
