"""Makes the program of a config's RLHF stage from shapes alone: no weights, no data, and devices
that need not be here.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.building.components import (
    algorithm,
    gold_beside,
    networks,
    resolve_auto,
    stages,
)
from rlhf_jax.building.validation import check_values
from rlhf_jax.config import fill
from rlhf_jax.devices import distributed, mesh
from rlhf_jax.devices.placement import text_of
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import adapters, rounding
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.planner.costs import hardware
from rlhf_jax.planner.problem import Problem
from rlhf_jax.refusal import Refusal
from rlhf_jax.rewards import learned
from rlhf_jax.rewards.common.terms import is_plain, parse
from rlhf_jax.run_directory import environment
from rlhf_jax.runtime.program import Program, Reward
from rlhf_jax.stages import rlhf
from rlhf_jax.stages.api import Lengths, Workspace
from rlhf_jax.stages.checks.settings import stages_of
from rlhf_jax.stages.common import planning, pretrained_models
from rlhf_jax.stages.settings.rlhf import places
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.text.tokenizers import EOS_ID, PAD_ID
from rlhf_jax.types import Algorithm, Device, Prompts


@dataclasses.dataclass(frozen=True)
class TokenIds:
    """The ids that a program is compiled with in place of a tokenizer's, those of the tokenizers
    without a file: which they are changes no shape.
    """

    eos_ids: tuple[int, ...] = (EOS_ID,)
    pad_id: int = PAD_ID


@dataclasses.dataclass(frozen=True)
class Shaped:
    """A program made from shapes.

    Attributes:
      program: its calls lower and compile, and cannot run.
      problem: the same round as the planner sees it.
      notices: what was assumed, a sentence each.
      devices_by_host: that it was made for, `[hosts, devices of a host]`.
    """

    program: Program
    problem: Problem
    notices: tuple[str, ...]
    devices_by_host: np.ndarray

    def standing_in(self) -> contextlib.AbstractContextManager[None]:
        """A block in which the program is lowered. On one host it is lowered outside as well."""
        return distributed.standing_in(self.devices_by_host)


def shaped(
    config: ConfigDict, devices: Sequence[Device] | np.ndarray, num_layers: int = 0
) -> Shaped:
    """The program of a config on these devices; of several hosts, that of the first one.

    Models whose folders are not there have the shapes that `pretrained` names.

    Args:
      config: of a run.
      devices: real ones, or those of a topology: of one host, or `[hosts, devices of a host]`.
      num_layers: of every model; 0: as many as it has. A plan that is chosen is that of the whole
        models, so that figures of two depths give those of any other.

    Raises Refusal for a config that cannot run on these devices, or whose models are not known.
    """
    environment.pin()
    values = config.to_dict()
    check_values(values)
    settings = stages(values)
    resolve_auto(values)
    pretrained = fill(pretrained_models.Config, values["pretrained"], "pretrained")
    if "rlhf" not in stages_of(values["job"], settings, pretrained):
        raise Refusal(f"job is {values['job']!r}; the calls of the stage rlhf are compiled alone")
    model, network, notices = _networks(config, settings, pretrained)
    chosen = algorithm(values["algorithm"])
    lengths = fill(Lengths, values["lengths"], "lengths")
    grid = np.atleast_2d(np.asarray(devices))
    kind, on_mesh = _kind(grid), fill(mesh.Config, values["mesh"], "mesh")
    gold = gold_beside(values, settings, lengths)
    of_adapters = {
        "lora": fill(adapters.Config, values["lora"], "lora"),
        "published_reward": bool(pretrained.reward_model),
    }

    def planned(model: Model, network: ValueModel | None) -> Problem:
        of = settings.rlhf, chosen, lengths, model, network, kind, grid.size
        found = planning.problem(*of, **of_adapters, gold=gold)
        copy_hosts = mesh.hosts_of_a_copy(on_mesh, len(grid))
        return dataclasses.replace(found, hosts=len(grid), copy_hosts=copy_hosts)

    problem = whole = planned(model, network)
    if num_layers:
        model = model.with_config(num_layers=num_layers)
        network = network and network.with_config(num_layers=num_layers)
        notices.append(f"every model has {num_layers} layer(s)")
        problem = planned(model, network)
    with distributed.standing_in(grid):
        on = mesh.make_mesh(on_mesh)
        if settings.plan in planning.CHOSEN:
            plan, notice = _plan(settings, whole, on)
            settings = dataclasses.replace(settings, plan=plan)
            notices.append(notice)
        program = _program(values, settings, chosen, lengths, model, network)
    return Shaped(program, problem, tuple(notices), grid)


def _kind(devices_by_host: np.ndarray) -> hardware.Hardware:
    """The figures of the devices, with as many per host as there are."""
    first, (num_hosts, devices_per_host) = devices_by_host[0, 0], devices_by_host.shape
    found = hardware.lookup(first)
    if num_hosts == 1:
        return found
    if first.platform == "tpu":
        return hardware.in_slice(found, devices_per_host)
    return dataclasses.replace(found, devices_per_host=devices_per_host)


def _plan(settings: Stages, problem: Problem, on: Mesh) -> tuple[str, str]:
    """The text of the plan that a config lets be chosen, and a sentence about it."""
    fits = settings.plan == planning.FIT
    if fits and problem.hardware.shared_throughput:
        return "", "plan=fit: every call on the run's mesh, in one part"
    trainer = places(settings.rlhf, on, "").placement("train_policy")
    try:
        plan = text_of(problem.fit(trainer) if fits else problem.search().advised.plan)
    except Refusal as error:
        return "", f"plan={settings.plan}: {error}; every call on the run's mesh, in one part"
    return plan, f"plan={settings.plan}: {plan}"


def _networks(
    config: ConfigDict, settings: Stages, pretrained: pretrained_models.Config
) -> tuple[Model, ValueModel | None, list[str]]:
    """The networks of policy and learned reward, and what was assumed of them."""
    absent = not (pretrained.policy and Path(pretrained.policy).exists())
    if (
        config.to_dict()["model"]["family"] == "pretrained"
        and absent
        and not pretrained.policy_shape
    ):
        raise Refusal(
            f"the policy's shape is that of the folder {pretrained.policy!r}, which is not here; "
            "--config.pretrained.policy_shape=FAMILY/PRESET compiles a published one"
        )
    model, network = networks(config, settings)
    notices = []
    of_reward = pretrained.reward_model
    if of_reward and not pretrained.reward_model_shape and not Path(of_reward).exists():
        notices.append(
            f"{of_reward} is not here: the reward model is taken to be as large as the policy"
        )
    return model, network, notices


def _program(
    values: dict[str, Any],
    settings: Stages,
    chosen: Algorithm,
    lengths: Lengths,
    model: Model,
    network: ValueModel | None,
) -> Program:
    placeholder: Any = TokenIds()
    no_task: Any = None
    lora = fill(adapters.Config, values["lora"], "lora")
    workspace = Workspace(
        directory=Path(values["directory"]),
        seed=values["seed"],
        task=no_task,
        tokenizer=placeholder,
        model=model,
        mesh=mesh.make_mesh(fill(mesh.Config, values["mesh"], "mesh")),
        lengths=lengths,
        lora=lora,
    )
    rlhf.check(settings.rlhf, chosen, workspace.mesh, settings.plan)
    reference = adapters.shapes(model, lora)
    spec = rlhf.make_spec(workspace, settings.rlhf, chosen, Reward(), reference, settings.plan)
    # A published reward model is used as it is.
    lora_of_reward = adapters.Config() if values["pretrained"]["reward_model"] else lora
    critic = spec.critic
    if critic is not None:
        of_critic = network or workspace.value_model
        lora_of_critic = lora.on_published() if values["pretrained"]["reward_model"] else lora
        critic = dataclasses.replace(
            critic, model=of_critic, params=adapters.shapes(of_critic, lora_of_critic)
        )
    spec = dataclasses.replace(
        spec,
        critic=critic,
        reward=_reward(settings, network, lora_of_reward),
        key=jax.eval_shape(lambda: workspace.key("rollout")),
        prompts=lambda round_index: _prompts(settings, lengths),
    )
    return Program(spec, rounding.held(model, reference))


def _reward(settings: Stages, network: ValueModel | None, lora: adapters.Config) -> Reward:
    """The reward as the compiled calls see it: scores on text are an input of credit.

    Args:
      settings: of every stage.
      network: of a learned reward.
      lora: of its adapters.
    """
    terms = parse(settings.reward)
    parts: dict[str, Any] = {"terms": () if is_plain(terms) else terms}
    if network is not None:
        params = rounding.held(network, adapters.shapes(network, lora))
        parts |= {"model": learned.make(network), "params": params, "network": network}
    else:
        parts |= {"host": lambda samples: np.zeros(samples.tokens_BC.shape[0], np.float32)}
    return Reward(**parts)


def _prompts(settings: Stages, lengths: Lengths) -> Prompts:
    """Shapes of a round's prompts."""
    count = settings.rlhf.sampled_prompts
    size = (count, lengths.max_prompt_tokens)
    arrays: tuple[Any, Any, Any] = (
        jax.ShapeDtypeStruct(size, np.int32),
        jax.ShapeDtypeStruct(size, np.bool_),
        jax.ShapeDtypeStruct((count,), np.int32),
    )
    return Prompts(*arrays)
