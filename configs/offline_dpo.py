"""Offline DPO on templated reviews: SFT, comparisons of its samples labelled by gold, and the policy
trained on them without a reward model.

Command:   python -m experiments.run --config=configs/offline_dpo.py
Hardware:  two CPU cores
Time:      TODO
Result:    TODO

`:loss_type=ipo` takes IPO's loss. On your own comparisons: `--config.task.name=jsonl` is not enough, see
configs/jsonl.py for the files; add `config.dpo` and `config.job` as here.
"""

from ml_collections import ConfigDict

from rlhf_jax import build
from rlhf_jax.stages import dpo

from . import quickstart


def get_config(argument: str = "") -> ConfigDict:
    """`:loss_type=ipo` takes IPO, with a β for it."""
    loss_type = build.choices(argument, loss_type="sigmoid")["loss_type"]
    config = quickstart.get_config()
    config.job = "dpo"
    config.directory = "runs/offline_dpo" if loss_type == "sigmoid" else f"runs/offline_{loss_type}"
    config.dpo = build.node(dpo.Config())
    config.dpo.loss_type = loss_type
    config.dpo.beta = 0.1 if loss_type == "sigmoid" else 0.05
    config.dpo.num_updates = 90
    config.dpo.optimizer.learning_rate = 5e-4
    config.dpo.evaluate_every = 30
    config.dpo.checkpoint_every = 30
    return config
