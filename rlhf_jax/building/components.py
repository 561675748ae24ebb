"""Makes the parts of a run from a config's values: task, tokenizer, model, mesh, stages, algorithm."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax import registry
from rlhf_jax.algorithms.common.checked import checked as checked_losses
from rlhf_jax.algorithms.common.interpolation import check_interpolation
from rlhf_jax.algorithms.common.numbers import with_arguments
from rlhf_jax.building.nodes import defaults, named
from rlhf_jax.building.validation import check_task
from rlhf_jax.config import Settings, fill
from rlhf_jax.devices import mesh, placement
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import adapters
from rlhf_jax.models.common import family as families
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.ops.corrections import Correction, resolve
from rlhf_jax.ops.once import once
from rlhf_jax.ops.policy_gradient.advantages import RUN_SEED
from rlhf_jax.planner.costs.gold import Gold
from rlhf_jax.planner.costs.hardware import Hardware
from rlhf_jax.planner.problem import Problem
from rlhf_jax.refusal import Refusal
from rlhf_jax.rewards.common.nodes import reward_configs, reward_nodes
from rlhf_jax.run_directory import environment
from rlhf_jax.stages import comparisons, dpo, reward_model, rlhf, sft
from rlhf_jax.stages.api import Lengths, Workspace
from rlhf_jax.stages.checks import vocabularies
from rlhf_jax.stages.common import (
    beginning,
    evaluator,
    planning,
    pretrained_models,
    stored_config,
)
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.text import encoding, tokenizers
from rlhf_jax.types import Algorithm


def workspace(values: dict[str, Any]) -> Workspace:
    """The run's shared parts; `values` is completed with what only they know (the vocabulary's
    size).
    """
    environment.pin()
    task = registry.make("tasks", *named("tasks", values["task"], "task"))
    check_task(task, values["task"]["name"])
    pretrained = fill(pretrained_models.Config, values["pretrained"], "pretrained")
    values["model"] = pretrained_models.model_values(values["model"], pretrained)
    if values["tokenizer"]["kind"] == "hf" and not values["tokenizer"]["path"]:
        values["tokenizer"]["path"] = pretrained.policy
    policy_folder = Path(pretrained.policy) if pretrained.policy else None
    tokenizer = tokenizers.make(
        fill(tokenizers.Config, values["tokenizer"], "tokenizer"), task.vocabulary, policy_folder
    )
    family_values = dict(values["model"])
    architecture = families.find(family_values.pop("family"))
    if family_values["vocab_size"] == 0:
        family_values["vocab_size"] = values["model"]["vocab_size"] = tokenizer.vocab_size
    tokenizer = tokenizers.within(tokenizer, family_values["vocab_size"])
    lengths = fill(Lengths, values["lengths"], "lengths")
    if hasattr(task, "fitted"):
        task = task.fitted(partial(encoding.count_tokens, tokenizer), lengths.max_prompt_tokens)
    pretrained_models.check(pretrained, tokenizer, task)
    vocabularies.check_template(task, tokenizer)
    return Workspace(
        directory=Path(values["directory"]),
        seed=values["seed"],
        task=task,
        tokenizer=tokenizer,
        model=architecture.checked(fill(architecture.config, family_values, "model")),
        mesh=mesh.make_mesh(fill(mesh.Config, values["mesh"], "mesh")),
        lengths=lengths,
        pretrained=pretrained,
        lora=fill(adapters.Config, values["lora"], "lora"),
        begin=stored_config.begun_from(values, defaults),
    )


def resolve_auto(values: dict[str, Any]) -> None:
    """Replaces every "auto" of a config's values by its meaning for the run's schedule and
    precision.
    """
    if "correction" not in values["algorithm"]:
        return
    advantage = values["algorithm"].get("advantage")
    if isinstance(advantage, dict) and advantage.get("noise_seed") == RUN_SEED:
        advantage["noise_seed"] = values["seed"] if advantage["noise"] else RUN_SEED
    schedule, given = (
        values["rlhf"],
        fill(Correction, values["algorithm"]["correction"], "algorithm.correction"),
    )
    scheduled = (
        bool(schedule["version_schedule"] or schedule["replay_schedule_of"])
        or max(schedule["sync_every"], schedule["buffer_rounds"]) > 1
    )
    resolved = resolve(
        given,
        lag=schedule["lag"],
        scheduled=scheduled,
        exact_sampler=exact_sampler(values),
    )
    values["algorithm"]["correction"] = dataclasses.asdict(resolved)
    check_interpolation(
        values["algorithm"].get("interpolation", 0.0),
        values["algorithm"].get("interpolation_by", "constant"),
        stale=bool(schedule["lag"]) or scheduled,
    )


def exact_sampler(values: dict[str, Any]) -> bool:
    """True where sampler and trainer compute a token's log-probability from the same float32
    numbers.
    """
    return values["model"]["dtype"] == "float32" and values["rlhf"]["publish_dtype"] == "float32"


def inexact_ratio(values: dict[str, Any]) -> str:
    """A sentence about a ratio to the behavior policy that is not 1 before the first update; ""
    where there is none.
    """
    if values["algorithm"].get("correction", {}).get("ratio_to") != "behavior" or exact_sampler(
        values
    ):
        return ""
    kind = (
        values["model"]["dtype"]
        if values["model"]["dtype"] != "float32"
        else values["rlhf"]["publish_dtype"]
    )
    return (
        f"algorithm.correction.ratio_to is 'behavior' and the sampler computes in {kind}: ratios "
        "differ from 1 before the "
        "first update, and those of long completions leave the clip; ratio_to=proximal takes them "
        "from the trainer's params"
    )


WIDE = 0.05
"""Distance of a clip from 1 that the mean ratio of a completion hardly ever leaves."""


def inert_clip(values: dict[str, Any]) -> str:
    """A sentence about a clip of completions that is as wide as one of tokens; "" where there is
    none.
    """
    node = values["algorithm"]
    surrogate = node.get("surrogate")
    if isinstance(surrogate, dict):
        key, clips, settings = "surrogate.low", surrogate.get("gate") == "clip", surrogate
    else:
        key, clips, settings = "clip_low" if "clip_low" in node else "clip", True, node
    low = settings.get(key.rpartition(".")[2])
    if not clips or low is None or settings.get("level") != "sequence_mean" or low < WIDE:
        return ""
    return (
        f"algorithm.{key} is {low} at level 'sequence_mean': the ratio of a "
        "completion to the power of one over its length hardly ever leaves such a clip; GSPO has "
        "0.0003 and 0.0004"
    )


def inert_remat_policy(values: dict[str, Any]) -> str:
    """A sentence about a remat policy that no update follows, by the model or the plan; "" where
    there is none.

    Args:
      values: of a config, whose plan is resolved.
    """
    node = values["model"]
    policy, plan = node.get("remat_policy", "full"), placement.parse(values["plan"])
    if policy == "full" or node["remat"] or any(place.remat for place in plan.placements.values()):
        return ""
    return (
        f"model.remat_policy is {policy!r}, but no update computes layers again: it takes effect with "
        "--config.model.remat=True, or remat in a plan"
    )


def algorithm(values: dict[str, Any]) -> Algorithm:
    """The algorithm that a node names."""
    name, config = named("algorithms", values, "algorithm")
    if registry.is_of_package("algorithms", values["name"]):
        return _of_package(name, config)
    algorithm = registry.make("algorithms", name, config)
    if not isinstance(algorithm, Algorithm):
        raise Refusal(
            f"algorithm.name is {values['name']!r}, which makes a {type(algorithm).__name__}; accepted: "
            "an Algorithm"
        )
    return checked_losses(with_arguments(algorithm, values["name"], config))


@once
def _of_package(name: str, config: Settings) -> Algorithm:
    return with_arguments(registry.make("algorithms", name, config), name, config)


def stages(values: dict[str, Any]) -> Stages:
    """The settings of every stage."""
    values["reward_settings"] = reward_nodes(values["reward"], values["reward_settings"])
    lora = fill(adapters.Config, values["lora"], "lora")
    begin = stored_config.begun_from(values, defaults)
    settings = Stages(
        sft=fill(sft.Config, values["sft"], "sft"),
        comparisons=fill(comparisons.Config, values["comparisons"], "comparisons"),
        reward_model=fill(reward_model.Config, values["reward_model"], "reward_model"),
        rlhf=fill(rlhf.Config, values["rlhf"], "rlhf"),
        evaluate=fill(evaluator.Config, values["evaluate"], "evaluate"),
        dpo=fill(dpo.Config, values["dpo"], "dpo") if "dpo" in values else None,
        reward=values["reward"],
        reward_settings=reward_configs(values["reward"], values["reward_settings"]),
        plan=values["plan"],
        best_of_n=tuple(values["best_of_n"]),
        best_of_n_prompts=values["best_of_n_prompts"],
        taken=beginning.taken(begin),
    )
    return settings.with_rates(lora.learning_rate_factor) if lora.rank else settings


def parts(config: ConfigDict) -> tuple[Workspace, Stages, Algorithm]:
    """The parts of a run, not checked against each other; nothing is written."""
    return parts_of_values(config.to_dict())


def parts_of_values(values: dict[str, Any]) -> tuple[Workspace, Stages, Algorithm]:
    """`parts` of a config's values, which are completed and resolved."""
    shared, settings = workspace(values), stages(values)
    resolve_auto(values)
    return shared, settings, algorithm(values["algorithm"])


def planned_model(config: ConfigDict) -> Model:
    """The policy's decoder, as far as a plan needs it: where its folder is not there it has the
    shape that `pretrained.policy_shape` names.

    Raises Refusal for a shape that there is not; FileNotFoundError for a model that only a folder
    tells.
    """
    values = config.to_dict()
    pretrained = fill(pretrained_models.Config, values["pretrained"], "pretrained")
    chosen = dict(values["model"])
    absent = pretrained.policy and not Path(pretrained.policy).exists()
    if chosen["family"] == "pretrained" and absent and pretrained.policy_shape:
        computed = {key: chosen[key] for key in pretrained_models.COMPUTED}
        return pretrained_models.model_of_shape(pretrained, "policy_shape", **computed)
    if chosen["family"] == "pretrained" or not chosen["vocab_size"]:
        return workspace(values | {"mesh": dataclasses.asdict(mesh.Config())}).model
    family = families.find(chosen.pop("family"))
    return family.make(fill(family.config, chosen, "model"))


def problem(
    config: ConfigDict, device: Hardware, num_devices: int, completion_lengths: Sequence[int] = ()
) -> Problem:
    """The planning problem of a config's RLHF stage; its devices and its models' folders need not
    exist here.

    Args:
      config: of a run.
      device: the hardware to plan for.
      num_devices: of it.
      completion_lengths: tokens of completions that were seen; (): all have the greatest length.

    Models whose folders are not there have the shapes that `pretrained` names; without one a
    reward model is taken to be as large as the policy.

    Raises Refusal for a config that cannot run, or FileNotFoundError for a model that only a folder
    tells.
    """
    values = config.to_dict()
    settings = stages(values)
    resolve_auto(values)
    network, reward = networks(config, settings)
    lengths, chosen = fill(Lengths, values["lengths"], "lengths"), algorithm(values["algorithm"])
    return planning.problem(
        settings.rlhf,
        chosen,
        lengths,
        network,
        reward,
        device,
        num_devices,
        completion_lengths,
        fill(adapters.Config, values["lora"], "lora"),
        bool(values["pretrained"]["reward_model"]),
        gold_beside(values, settings, lengths),
    )


def gold_beside(values: dict[str, Any], settings: Stages, lengths: Lengths) -> Gold | None:
    """The gold model of a config as a plan needs it: see `planning.gold_beside`.

    Args:
      values: of the config.
      settings: of its stages.
      lengths: of its prompts and completions.
    """
    pretrained = fill(pretrained_models.Config, values["pretrained"], "pretrained")
    on = fill(mesh.Config, values["mesh"], "mesh")
    return planning.gold_beside(pretrained, settings, lengths, on)


def networks(config: ConfigDict, settings: Stages) -> tuple[Model, ValueModel | None]:
    """The networks of the policy and of a learned reward, as far as a plan needs them.

    Args:
      config: of a run.
      settings: of its stages.

    Raises as `planned_model`.
    """
    values = config.to_dict()
    pretrained = fill(pretrained_models.Config, values["pretrained"], "pretrained")
    network = planned_model(config)
    if not settings.learned:
        return network, None
    if pretrained.reward_model and Path(pretrained.reward_model).exists():
        return network, pretrained_models.classifier(pretrained.reward_model, dtype=network.dtype)
    if pretrained.reward_model_shape:
        computed = {name: values["model"][name] for name in pretrained_models.COMPUTED}
        backbone = pretrained_models.model_of_shape(pretrained, "reward_model_shape", **computed)
        return network, ValueModel(backbone)
    return network, ValueModel(network)
