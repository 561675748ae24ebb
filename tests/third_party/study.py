"""A study of the laboratory's components: two gains of its algorithm, on its task, reward and
model.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import quickstart
from rlhf_jax import build
from rlhf_jax.rewards.common.nodes import reward_nodes
from rlhf_jax.sweeps.study import Arm, Study
from tests.third_party.sizes import SIZES


def base():
    """The quickstart with the laboratory's components, in sizes for a test."""
    config = quickstart.get_config()
    config.task = build.component("tasks", "my_lab.tasks")
    config.model = build.model("my_lab.decoder", "nano")
    config.reward = "my_lab.rewards:brevity"
    config.reward_settings = ConfigDict(reward_nodes(config.reward, {"brevity": {"cost": 0.25}}))
    config.update_from_flattened_dict(SIZES)
    config.update_from_flattened_dict({"rlhf.checkpoint_every": 0})
    return config


def get_study(argument: str) -> Study:
    """The study; the argument is its directory."""
    return Study(
        directory=Path(argument),
        base=base,
        arms=(
            Arm("usual", "my_lab.leave_out"),
            Arm("strong", "my_lab.leave_out", {"algorithm.gain": 4.0}),
        ),
        grid={},
        open_ended={},
        rungs=(),
        report_updates=2,
        report_seeds=(0,),
    )
