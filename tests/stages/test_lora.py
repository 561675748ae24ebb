"""Runs with adapters: every stage trains them, a killed run goes on to the same bits, and commands
read what they wrote.
"""

import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax import build
from rlhf_jax.models import llama
from rlhf_jax.models.common import adapters
from rlhf_jax.pretrained import export
from rlhf_jax.pretrained.folders import Folder
from rlhf_jax.refusal import Refusal
from rlhf_jax.stages import export as export_stage
from rlhf_jax.stages import rlhf, sft
from rlhf_jax.stages.common import pretrained_models
from tests.models.families import random_params

from . import adapter_runs, runs
from .adapter_runs import PPO, leaves

LORA = {"lora__rank": 3, "lora__alpha": 6.0}
NEOX = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}


@pytest.fixture(scope="module")
def ppo(tmp_path_factory):
    """A pipeline of four roles with adapters on a fresh base: SFT, reward model and PPO."""
    directory = tmp_path_factory.mktemp("ppo") / "run"
    runs.run(directory, **PPO, **LORA)
    return directory


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    """A published Llama of the quickstart's vocabulary."""
    folder = tmp_path_factory.mktemp("base") / "llama"
    model = llama.make(llama.Config(158, 16, 1, 2, 1, 32))
    export.save(folder, model, random_params(model, 0), token_ids={"pad_token_id": 0})
    return folder


def of_folder(folder, **changes):
    return {"pretrained__sft": str(folder), "model__family": "pretrained"} | LORA | changes


def test_every_stage_saves_adapters_alone(ppo):
    """Params, two moments of Adam, and counters; a value head beside the adapter. RLHF also keeps the
    policy's last gradient, as `rlhf.gradient_cosine` asks.
    """
    workspace, _, _ = build.of_directory(ppo)
    layers = adapters.targets(workspace.model, workspace.lora)
    assert {path[-1] for path in layers} == NEOX
    size = sum(3 * (num_in + num_out) for num_in, num_out in layers.values())
    head = workspace.model.width + 1
    for stage, expected in (
        ("sft", 3 * size),
        ("reward_model", 3 * (size + head)),
        ("rlhf", 3 * (2 * size + head) + size),
    ):
        arrays = runs.state(ppo, stage)
        assert expected <= sum(x.size for x in arrays) <= expected + 16, stage


def test_all_roles_read_one_base(ppo):
    _, stages, _ = build.of_directory(ppo)
    policy, reference = adapter_runs.roles_on_one_base(ppo)
    changed = [
        float(jnp.abs(x - y).max())
        for x, y in zip(leaves(policy.adapter), leaves(reference.adapter), strict=True)
    ]
    assert min(changed) > 0
    assert stages.sft.optimizer.learning_rate == 10 * runs.config(ppo).sft.optimizer.learning_rate


def test_kl_to_the_reference_begins_at_zero(ppo):
    adapter_runs.kl_begins_at_zero(ppo)


def test_a_run_that_lost_its_last_rounds_ends_on_the_same_bits(ppo, tmp_path):
    adapter_runs.goes_on_to_the_same_bits(ppo, tmp_path / "again", **PPO, **LORA)


def test_commands_read_the_run(ppo, tmp_path, capsys):
    workspace = adapter_runs.commands_read(ppo, tmp_path / "merged")
    export_stage.write(workspace, "reward_model", tmp_path / "reward", adapter=True)
    arrays = load_file(str(tmp_path / "reward" / "adapter_model.safetensors"))
    assert "base_model.model.score.weight" in arrays
    capsys.readouterr()


def test_a_folder_is_the_base_and_its_export_begins_another_run(base_folder, tmp_path):
    first = tmp_path / "first"
    runs.run(first, algorithm="rloo", **of_folder(base_folder, rlhf__total_prompts=8))
    workspace, _, _ = build.of_directory(first)
    policy, _ = rlhf.load(workspace)
    export_stage.write(workspace, "", tmp_path / "adapter", adapter=True)
    second = runs.config(
        tmp_path / "second",
        "rloo",
        **of_folder(base_folder, pretrained__adapter=str(tmp_path / "adapter")),
    )
    other, _, _ = build.parts(second)
    begun = sft.load(other)
    for x, y in zip(leaves(policy), leaves(begun), strict=True):
        np.testing.assert_array_equal(x, y)
    third = runs.config(tmp_path / "third", "rloo", begin=f"{first}@2", **of_folder(base_folder))
    third_workspace, _, _ = build.parts(third)
    from_run = rlhf.first_policy(third_workspace, sft.load(third_workspace))
    assert jax.tree.structure(from_run) == jax.tree.structure(policy)
    (base,) = third_workspace.bases.values()
    assert all(x is y for x, y in zip(leaves(from_run.base), leaves(base.params), strict=True))


def test_another_base_is_refused(base_folder, tmp_path):
    folder, directory = tmp_path / "folder", tmp_path / "run"
    shutil.copytree(base_folder, folder)
    changes = of_folder(folder, rlhf__total_prompts=8)
    runs.run(directory, algorithm="rloo", **changes)
    weights = next(folder.glob("*.safetensors"))
    arrays = load_file(str(weights))
    name = sorted(arrays)[0]
    arrays[name] = arrays[name] + 1
    save_file(arrays, str(weights), metadata={"format": "pt"})
    with pytest.raises(Refusal, match=r"pretrained\.sft"):
        runs.run(directory, algorithm="rloo", **changes)


def test_other_adapters_than_those_of_the_run_that_is_begun_from_are_refused(base_folder, tmp_path):
    directory = tmp_path / "run"
    runs.run(directory, algorithm="rloo", **of_folder(base_folder, rlhf__total_prompts=8))
    for changes, message in (
        ({"lora__rank": 0}, "lora.rank is 3, and here it is 0"),
        ({"lora__targets": "q_proj"}, "lora.targets is 'all', and here it is 'q_proj'"),
    ):
        begun = runs.config(
            tmp_path / "other", "rloo", begin=str(directory), **of_folder(base_folder, **changes)
        )
        with pytest.raises(Refusal, match=re.escape(message)):
            build.prepare(begun)


def test_a_run_with_adapters_begins_from_one_that_trained_all_params(tmp_path):
    """Its base is that run's SFT policy, and so is its reference."""
    full = tmp_path / "full"
    runs.run(full, algorithm="rloo", rlhf__total_prompts=8)
    directory = tmp_path / "adapted"
    runs.run(directory, algorithm="rloo", begin=str(full), rlhf__total_prompts=8, **LORA)
    workspace, _, _ = build.of_directory(directory)
    whole = sft.load(build.of_directory(full)[0])
    policy, _ = rlhf.load(workspace)
    for x, y in zip(leaves(policy.base), leaves(whole), strict=True):
        np.testing.assert_array_equal(x, y)
    version = f"{full}@{runs.steps(full)[-1]}"
    refused = runs.config(tmp_path / "refused", "rloo", begin=version, **LORA)
    with pytest.raises(Refusal, match=r"the KL reference would need another base"):
        build.prepare(refused)


def test_an_adapter_without_a_rank_is_refused(base_folder, tmp_path):
    changes = of_folder(base_folder, lora__rank=0, pretrained__adapter="somewhere")
    with pytest.raises(Refusal, match=r"pretrained.adapter is 'somewhere' and lora.rank is 0"):
        build.prepare(runs.config(tmp_path / "run", "rloo", **changes))


def test_the_base_is_held_in_the_dtype_of_the_computation(base_folder):
    model = pretrained_models.model_of(Folder(base_folder), dtype="bfloat16")
    shapes = adapters.shapes(model, adapters.Config(rank=2))
    assert {x.dtype for x in leaves(shapes.base) if x.ndim == 2} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in leaves(shapes.base) if x.ndim == 1} == {jnp.dtype("float32")}
    assert {x.dtype for x in leaves(shapes.adapter)} == {jnp.dtype("float32")}
