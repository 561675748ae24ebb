"""The base of a run's adapters, which its stages share: where it comes from, and params on it; the
params that trained roles begin with.

The base is the model of the published folder that the policy comes from; or the SFT policy of the
run that this one begins from, where that run trained all params; or else the fresh params that SFT
begins with, which are then kept in `checkpoints/base` of the run.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax

from rlhf_jax import randomness
from rlhf_jax.devices import bases, distributed, sharding
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import adapters
from rlhf_jax.models.common.adapters import Adapted, Base, Rest
from rlhf_jax.models.common.rounding import as_trained, is_rounded, is_shapes
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.pretrained import peft
from rlhf_jax.records.checkpoints import abstract_like, complete_steps, restore_params
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.runtime.program import Program
from rlhf_jax.runtime.spec import Reward
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.common import pretrained_models
from rlhf_jax.types import Params, States

FOLDER = "base"


def checked(workspace: Workspace) -> list[str]:
    """A line about the adapters of a run, and one about an int8 base; none for a run that trains all
    params.

    Raises Refusal for targets that the model does not have, for a `pretrained.adapter` without
    `lora.rank`, and for one that is not of these adapters.
    """
    lora, folder = workspace.lora, workspace.pretrained.adapter
    if folder and not lora.rank:
        raise Refusal(
            f"pretrained.adapter is {folder!r} and lora.rank is 0, which trains all params; "
            "accepted with it: the rank of the folder"
        )
    if not lora.rank:
        return []
    layers = adapters.targets(workspace.model, lora)
    if folder:
        peft.read(Path(folder), workspace.model, lora)
    trained = sum(lora.rank * (num_in + num_out) for num_in, num_out in layers.values())
    whole = jax.tree.leaves(jax.eval_shape(workspace.model.init, randomness.key(0)))
    names = ", ".join(dict.fromkeys(path[-1] for path in layers))
    lines = [
        f"adapters of rank {lora.rank} on {names}: {trained:,} params are trained, of "
        f"{sum(array.size for array in whole):,}; learning rates are the config's times "
        f"{lora.learning_rate_factor:g}"
    ]
    if lora.base_dtype:
        plain = dataclasses.replace(lora, base_dtype="")
        held, before = (_base_bytes(workspace.model, each) for each in (lora, plain))
        lines.append(
            f"the base is {held:,} bytes with its linear layers in {lora.base_dtype}, and would be "
            f"{before:,} in {workspace.model.dtype}"
        )
    return lines


def _base_bytes(model: Model, lora: adapters.Config) -> int:
    shapes = adapters.split(adapters.shapes(model, lora))[1]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def of(workspace: Workspace) -> Base | None:
    """The base of a run's adapters on the run's mesh: the same arrays at every call; None for a run
    that trains all params.

    Raises MissingInput where it is the fresh params of a run whose SFT stage has not begun.
    """
    if not workspace.lora.rank:
        return None
    begin = workspace.begin
    if begin is not None and workspace.source.lora.rank:
        return of(workspace.source)
    where = str(workspace.directory.resolve())
    if where not in workspace.bases:
        params = bases.compact(_read(workspace), workspace.model, workspace.lora, workspace.mesh)
        workspace.bases[where] = Base(params, workspace.lora.scale)
    return workspace.bases[where]


def rest(workspace: Workspace, model: Model | ValueModel) -> Rest:
    """The part of a role's params that the run's stages do not train; None without adapters.

    Args:
      workspace: of the run.
      model: the policy, or a value model on it.
    """
    base = of(workspace)
    return {"backbone": base} if base is not None and isinstance(model, ValueModel) else base


def begun(workspace: Workspace) -> Params:
    """Params on the base with the adapter that SFT begins with: that of `pretrained.adapter`, or a
    fresh one, which changes nothing.

    Raises as `of` and as `peft.read`.
    """
    base = of(workspace)
    assert base is not None
    folder = workspace.pretrained.adapter
    if not folder:
        return on_fresh_adapter(workspace, base.params)
    adapter = peft.read(Path(folder), workspace.model, workspace.lora)
    shardings = sharding.params_shardings(workspace.model, adapter, workspace.mesh)
    return Adapted(base.params, distributed.feed(adapter, shardings), workspace.lora.scale)


def on_fresh_adapter(workspace: Workspace, params: Params) -> Params:
    """A decoder's plain params with a fresh adapter beside them: the arrays are the same.

    Args:
      workspace: of the run.
      params: on its mesh.
    """
    model, lora = workspace.model, workspace.lora
    made = partial(adapters.init, model, lora)
    shardings = sharding.params_shardings(
        model, jax.eval_shape(made, randomness.key(0)), workspace.mesh
    )
    adapter = distributed.compiled(made, out_shardings=shardings)(workspace.key("lora"))
    return Adapted(params, adapter, lora.scale)


def critic_params(workspace: Workspace, reward: Reward, reference_params: Params) -> Params:
    """Initial params of the critic: the reward model, its head in units of the standardised score;
    without one, the SFT policy with a fresh head.
    """
    if reward.params is None:
        return workspace.value_model.init_from(reference_params, workspace.key("critic"))
    head = reward.params["value_head"]
    scaled = {
        "kernel": head["kernel"] / reward.std,
        "bias": (head["bias"] - reward.mean) / reward.std,
    }
    backbone = reward.params["backbone"]
    if (
        workspace.lora.rank and adapters.split(backbone)[1] is None
    ):  # of a reward model without adapters
        on_reward = dataclasses.replace(workspace, model=workspace.reward_network.backbone)
        backbone = on_fresh_adapter(on_reward, backbone)
    return {"backbone": backbone, "value_head": scaled}


def critic_of_spec(workspace: Workspace, reward: Reward, reference_params: Params) -> Params:
    """`critic_params` as a program's specification has them: shapes alone where the roles that the
    critic begins as are held rounded; `fresh_states` then reads them in float32.

    Args:
      workspace: of the run.
      reward: of the run.
      reference_params: of the SFT policy.
    """
    params = critic_params(workspace, reward, reference_params)
    return as_trained(params) if is_rounded(params) else params


def fresh_states(
    workspace: Workspace,
    program: Program,
    reward: Reward,
    first: Params,
    read_sft: Callable[[], Params],
) -> States:
    """The states at version 0. What is held rounded is read again in float32, and is not kept.

    Args:
      workspace: of the run.
      program: of its calls.
      reward: of the run.
      first: the policy, held or not.
      read_sft: reads the SFT policy's params in float32.
    """
    policy, critic = read_sft() if is_rounded(first) else first, program.spec.critic
    if critic is None or not is_shapes(critic.params):
        return program.init(policy)
    if reward.read is not None:
        reward = dataclasses.replace(reward, params=reward.read())
    sft_params = policy if reward.params is not None else read_sft()
    return program.init(policy, critic_params(workspace, reward, sft_params))


def keep(workspace: Workspace) -> None:
    """Writes the fresh params that SFT begins with, where they are the base and not written yet;
    collective. The directory's lock is held.
    """
    if not workspace.lora.rank or workspace.pretrained.policy or _is_kept(workspace):
        return
    model = workspace.model
    shardings = _shardings(workspace)
    fresh = distributed.compiled(lambda: model.init(workspace.key("init")), out_shardings=shardings)
    checkpoints = workspace.checkpoints(FOLDER)
    checkpoints.save(0, {"params": fresh()})
    checkpoints.close()


def abstract(workspace: Workspace, model: Model | ValueModel) -> Params:
    """Shapes with shardings of the params that a stage trains and saves, as restoring takes them.

    Args:
      workspace: of the run.
      model: the policy, or a value model on it.
    """
    trained = adapters.split(adapters.shapes(model, workspace.lora))[0]
    return abstract_like(trained, sharding.params_shardings(model, trained, workspace.mesh))


def _read(workspace: Workspace) -> Params:
    model, mesh = workspace.model, workspace.mesh
    if workspace.begin is not None:
        return _plain_sft(workspace.source)
    if workspace.pretrained.policy:
        return pretrained_models.load_policy(workspace.pretrained.policy, model, mesh)
    if not _is_kept(workspace):
        raise MissingInput(
            f"{workspace.directory} has no base for its adapters: run the stage 'sft' first "
            "(--config.job=sft)"
        )
    return restore_params(
        workspace.directory / "checkpoints" / FOLDER, sharding.abstract_params(model, mesh)
    )[0]


def _plain_sft(workspace: Workspace) -> Params:
    """The SFT policy of a run that trained all of its params."""
    if workspace.begin is not None:
        return _plain_sft(workspace.source)
    if workspace.pretrained.sft:
        return pretrained_models.load_policy(
            workspace.pretrained.sft, workspace.model, workspace.mesh
        )
    whole = sharding.abstract_params(workspace.model, workspace.mesh)
    return restore_params(workspace.directory / "checkpoints" / "sft", whole)[0]


def _is_kept(workspace: Workspace) -> bool:
    there = workspace.directory / "checkpoints" / FOLDER
    return distributed.agree(there.exists() and bool(complete_steps(there)))


def _shardings(workspace: Workspace) -> Params:
    model = workspace.model
    plain = jax.eval_shape(model.init, randomness.key(0))
    return sharding.params_shardings(model, plain, workspace.mesh)
