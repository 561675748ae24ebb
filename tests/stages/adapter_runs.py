"""Assertions about runs with adapters, whatever their base is held in."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import build
from rlhf_jax.cli import evaluate as evaluate_command
from rlhf_jax.cli import generate as generate_command
from rlhf_jax.models.common import adapters
from rlhf_jax.stages import export as export_stage
from rlhf_jax.stages import reward_model, rlhf, sft
from rlhf_jax.stages.common import pretrained_models

from . import runs

PPO = {"algorithm": "ppo", "reward": "learned", "rlhf__evaluate_every": 8}


def leaves(params) -> list[jax.Array]:
    return jax.tree.leaves(params)


def roles_on_one_base(directory: Path) -> tuple[Any, Any]:
    """Policy and reference of a run, after policy, reference and reward were seen to have the arrays of
    one base.
    """
    workspace, _, _ = build.of_directory(directory)
    policy, _ = rlhf.load(workspace)
    reward, _ = reward_model.load(workspace)
    reference = sft.load(workspace)
    of_reward: Any = adapters.split(reward)[1]
    bases = [adapters.split(policy)[1], adapters.split(reference)[1], of_reward["backbone"]]
    for other in bases[1:]:
        assert all(x is y for x, y in zip(leaves(bases[0]), leaves(other), strict=True))
    return policy, reference


def kl_begins_at_zero(directory: Path) -> None:
    """The first evaluation has no KL to the reference, and the last one has."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    evaluated = [x for x in lines if x.get("stage") == "evaluate" and x.get("of", "rlhf") == "rlhf"]
    first, last = evaluated[0], evaluated[-1]
    assert first["update"] == 0
    assert last["update"] > 0
    assert abs(first["kl"]) < 1e-6 < abs(last["kl"])


def goes_on_to_the_same_bits(directory: Path, again: Path, **changes: Any) -> None:
    """A copy of a run that lost the later half of its checkpoints ends with the same state.

    Args:
      directory: of the run.
      again: of the copy.
      changes: of the run.
    """
    shutil.copytree(directory, again)
    kept = runs.steps(again)
    for step in kept[len(kept) // 2 :]:
        shutil.rmtree(again / "checkpoints" / "rlhf" / str(step))
    runs.run(again, **changes)
    assert runs.steps(again)[-1] == kept[-1]
    for x, y in zip(runs.state(directory), runs.state(again), strict=True):
        np.testing.assert_array_equal(x, y)


def commands_read(directory: Path, merged: Path) -> Any:
    """`generate`, `evaluate`, and the merged export, which computes what the run does.

    Args:
      directory: of the run.
      merged: folder of the export.

    Returns: the workspace of the run.
    """
    assert (
        generate_command.main([str(directory), "--prompt", "the hotel was", "--max_tokens=4"]) == 0
    )
    assert (
        evaluate_command.main([f"--directory={directory}", "--config.evaluate.num_prompts=8"]) == 0
    )
    workspace, _, _ = build.of_directory(directory)
    export_stage.write(workspace, "rlhf", merged)
    policy, _ = rlhf.load(workspace)
    whole = pretrained_models.load_policy(str(merged), workspace.model, workspace.mesh)
    tokens = jnp.array([[5, 7, 9, 11]])
    mask = jnp.ones(tokens.shape, bool)
    kept, exported = (
        workspace.model.head(p, workspace.model.apply(p, tokens, jnp.arange(4)[None], mask)[0])
        for p in (policy, whole)
    )
    np.testing.assert_allclose(kept, exported, atol=1e-5)
    return workspace
