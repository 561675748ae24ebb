"""Runs with adapters on an int8 base: one base for every role, the sampler's numbers are the
trainer's, a killed run goes on to the same bits, and commands read the run.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import build
from rlhf_jax.models.common import adapters
from rlhf_jax.refusal import Refusal
from rlhf_jax.stages import export as export_stage
from rlhf_jax.stages import sft

from . import adapter_runs, runs
from .adapter_runs import PPO, leaves

INT8 = {"lora__rank": 3, "lora__alpha": 6.0, "lora__base_dtype": "int8"}


@pytest.fixture(scope="module")
def ppo(tmp_path_factory):
    """A pipeline of four roles with adapters on an int8 base: SFT, reward model and PPO."""
    directory = tmp_path_factory.mktemp("ppo") / "run"
    runs.run(directory, **PPO, **INT8)
    return directory


def kernels(base) -> list[jax.Array]:
    return [x for x in leaves(base) if x.dtype == jnp.int8]


def test_all_roles_read_one_int8_base(ppo):
    workspace, _, _ = build.of_directory(ppo)
    policy, _ = adapter_runs.roles_on_one_base(ppo)
    sizes = adapters.targets(workspace.model, workspace.lora)
    assert len(kernels(policy.base)) == len(sizes)
    held = sum(x.nbytes for path, x in adapters.flat(policy.base).items() if path[0] == "layer_0")
    plain = jax.eval_shape(workspace.model.init, jax.random.key(0))["layer_0"]
    vectors = sum(4 * x.size for x in leaves(plain) if x.ndim == 1)
    assert held == vectors + sum(
        num_in * num_out + 4 * num_out
        for path, (num_in, num_out) in sizes.items()
        if path[0] == "layer_0"
    )


def test_the_sampler_has_the_numbers_of_the_trainer(ppo):
    """The first ratio of each round is 1 where nothing is late: sampled and scored log-probabilities
    are those of one function of one base.
    """
    adapter_runs.kl_begins_at_zero(ppo)


def test_checkpoints_hold_adapters_alone_and_the_float32_base(ppo):
    workspace, _, _ = build.of_directory(ppo)
    for stage in ("sft", "reward_model", "rlhf"):
        assert all(x.dtype != np.int8 for x in runs.state(ppo, stage)), stage
    size = sum(3 * (num_in + num_out) for num_in, num_out in
               adapters.targets(workspace.model, workspace.lora).values())  # fmt: skip
    assert sum(x.size for x in runs.state(ppo, "sft")) <= 3 * size + 16


def test_a_run_that_lost_its_last_rounds_ends_on_the_same_bits(ppo, tmp_path):
    adapter_runs.goes_on_to_the_same_bits(ppo, tmp_path / "again", **PPO, **INT8)


def test_commands_read_the_run(ppo, tmp_path, capsys):
    """`generate`, `evaluate` and both exports; the merged one computes what the run does."""
    workspace = adapter_runs.commands_read(ppo, tmp_path / "merged")
    held = "adapters were trained on its linear layers in int8 |"
    assert held in (tmp_path / "merged" / "README.md").read_text()
    export_stage.write(workspace, "rlhf", tmp_path / "adapter", adapter=True)
    assert held in (tmp_path / "adapter" / "README.md").read_text()
    begun = runs.config(tmp_path / "begun", "ppo", reward="learned", begin=str(ppo), **INT8)
    workspace, _, _ = build.parts(begun)
    assert kernels(sft.load(workspace).base)
    capsys.readouterr()


def test_another_dtype_of_the_base_is_refused_by_name(ppo, tmp_path):
    other = INT8 | {"lora__base_dtype": ""}
    with pytest.raises(Refusal, match=r"lora\.base_dtype"):
        runs.run(ppo, **PPO, **other)
    begun = runs.config(tmp_path / "begun", "ppo", reward="learned", begin=str(ppo), **other)
    message = "lora.base_dtype is 'int8', and here it is ''"
    with pytest.raises(Refusal, match=re.escape(message)):
        build.prepare(begun)


def test_int8_without_adapters_and_other_dtypes_are_refused(tmp_path):
    for changes, message in (
        ({"lora__base_dtype": "int8"}, "lora.base_dtype is 'int8' and lora.rank is 0"),
        ({"lora__rank": 2, "lora__base_dtype": "int4"}, "lora.base_dtype"),
    ):
        with pytest.raises(Refusal, match=re.escape(message)):
            build.prepare(runs.config(tmp_path / "run", "rloo", **changes))
