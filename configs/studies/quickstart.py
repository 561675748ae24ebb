"""Every algorithm on the quickstart's task, at the sizes of the studies: five seeds of each.

Command:   python -m experiments.sweep --config=configs/studies/quickstart.py --workers=2
Hardware:  two CPU cores
Protocol:  experiments/studies/quickstart/protocol.md
Budget:    13 arms x 5 seeds: 65 cells of 64 updates
Result:    docs/results/quickstart.md, written from experiments/studies/quickstart/cells.jsonl

The cells run the synchronous loop, whose numbers are bit for bit those of the asynchronous one at
lag 1. `configs/common/reviews.py` has the sizes.
"""

from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax.refusal import Refusal
from rlhf_jax.sweeps.study import Arm, Study

from ..common import reviews


def base() -> ConfigDict:
    """The chain on templated reviews without its files for every sample."""
    config = reviews.base()
    config.rlhf.loop, config.rlhf.ledger, config.rlhf.log_samples = "synchronous", False, 0
    config.rlhf.checkpoint_every = 0
    return config


ALGORITHMS = (
    "best_of_group", "best_of_n", "constant_gain", "copg", "dr_grpo", "gopo", "grpo", "grpovi",
    "matched_std", "online_dpo", "online_ipo", "ppo", "rloo",
)  # fmt: skip
"""Arms of the study. An algorithm that is added to the package has no cells of it."""


def arms() -> tuple[Arm, ...]:
    """The algorithms of the study, with the settings that `reviews` gives them."""
    return tuple(
        Arm(
            name,
            name,
            {f"algorithm.{key}": value for key, value in reviews.SETTINGS.get(name, {}).items()},
        )
        for name in ALGORITHMS
    )


def get_study(argument: str = "") -> Study:
    """The study; it has no argument."""
    if argument:
        raise Refusal(f"the study's argument is {argument!r}; accepted: none")
    return Study(
        directory=Path("runs/studies/quickstart"),
        base=base,
        arms=arms(),
        grid={},
        open_ended={},
        rungs=(),
        report_updates=64,
        report_seeds=(0, 1, 2, 3, 4),
        cells=Path("experiments/studies/quickstart/cells.jsonl"),
    )
