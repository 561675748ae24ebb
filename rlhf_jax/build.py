"""Turns a ConfigDict into components: its only reader, and where it is checked against the
directory of an earlier run.
"""

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from rlhf_jax import registry
from rlhf_jax.algorithms.common.checked import checked as checked_losses
from rlhf_jax.config import Count, Problems, Seed, fill, flat
from rlhf_jax.devices import distributed, mesh
from rlhf_jax.devices.placement import text_of
from rlhf_jax.models.common import family as families
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.ops.corrections import Correction, resolve
from rlhf_jax.planner.costs.hardware import Hardware
from rlhf_jax.records import notes
from rlhf_jax.refusal import ComponentError, Refusal
from rlhf_jax.rewards.api import LEARNED
from rlhf_jax.rewards.common.nodes import reward_configs, reward_nodes
from rlhf_jax.run_directory import changes, environment, history, lock, run_config, starts
from rlhf_jax.stages import comparisons, pipeline, reward_model, rlhf, sft
from rlhf_jax.stages.api import Lengths, Workspace
from rlhf_jax.stages.common import (
    beginning,
    checks,
    evaluator,
    planning,
    pretrained_models,
    resuming,
    stored_config,
    task_checks,
    vocabularies,
)
from rlhf_jax.tasks.api import Task
from rlhf_jax.text import encoding, tokenizers
from rlhf_jax.types import Algorithm


@dataclass(frozen=True)
class Run:
    """Keys of a config that belong to no component."""

    job: str = "pipeline"
    directory: str = "runs/unnamed"
    begin: str = (
        ""  # RUN or RUN@version: the run that this one takes its SFT policy and reward model from
    )
    seed: Seed = 0
    reward: str = LEARNED  # a name, or a sum: see `rewards/api.py`
    plan: str = ""  # see `pipeline.Stages`
    best_of_n: tuple[Count, ...] = (1, 2, 4, 8, 16)
    best_of_n_prompts: Count = 256


def node(config: Any, **first: Any) -> ConfigDict:
    """A ConfigDict of a component's dataclass, every key with its type; `first` are keys before its
    own (its name).
    """
    return ConfigDict(first | _plain(config))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def component(folder: str, name: str) -> ConfigDict:
    """The node of a component with its defaults: `component("algorithms", "online_dpo")`, or of a
    user's own module or file (see `registry.py`): `component("tasks", "my_lab.trivia")`.
    """
    return node(registry.settings(folder, name)(), name=name)


def model(family: str, preset: str = "") -> ConfigDict:
    """The node of a model: a preset of a family. A `vocab_size` of 0 is filled from the tokenizer.

    Args:
      family: a file of `models/`, or a module or a file of the user's own (see `registry.py`).
      preset: its name; "": `quickstart` where the family has it, else its first.

    Raises as `models.common.family.find`, and Refusal for a preset that the family lacks.
    """
    found = families.find(family)
    preset = preset or found.usual
    if preset not in found.presets:
        raise Refusal(
            f"no preset {preset!r} of the model family {family}; there are: "
            f"{', '.join(found.presets)}"
        )
    return node(found.presets[preset], family=family)


def default() -> ConfigDict:
    """Every key of a pipeline, with the defaults of its components."""
    return ConfigDict(
        _plain(Run())
        | {
            "task": component("tasks", "reviews"),
            "tokenizer": node(tokenizers.Config()),
            "model": model("gpt_neox", "quickstart"),
            "pretrained": node(pretrained_models.Config()),
            "lengths": node(Lengths()),
            "mesh": node(mesh.Config()),
            "algorithm": component("algorithms", "online_dpo"),
            "reward_settings": {},
            "sft": node(sft.Config()),
            "comparisons": node(comparisons.Config()),
            "reward_model": node(reward_model.Config()),
            "rlhf": node(rlhf.Config()),
            "evaluate": node(evaluator.Config()),
        }
    )


def named(folder: str, values: dict[str, Any], where: str) -> tuple[str, Any]:
    """The name in a component's node, and the settings that the node gives."""
    values = dict(values)
    if "name" not in values:
        raise Refusal(
            f"{where} lacks 'name', a file of rlhf_jax/{folder}/: "
            f"{', '.join(registry.names(folder))}"
        )
    name = values.pop("name")
    return name, fill(registry.settings(folder, name), values, where)


def check_directory(
    shared: Workspace, values: dict[str, Any], settings: pipeline.Stages, chosen: Algorithm
) -> None:
    """Compares a config with what its directory holds, says what has changed, writes `config.json`
    and a start; collective.

    The lock of the directory is held. Raises Refusal naming what may not change: see
    `run_directory/changes.py`.
    """
    snapshot = environment.snapshot()
    verdict = compared(shared, settings, chosen, snapshot)
    resuming.check_growth(shared.directory, settings.rlhf)
    distributed.barrier()  # all have compared with what was there, before it is replaced
    for note in verdict.notes:
        notes.say(note)
    if distributed.is_first():
        start = {"environment": snapshot, "mesh": values["mesh"], "begin": values["begin"]}
        assert shared.facts is not None
        changes.settle(shared.directory, values, shared.facts, verdict, start)


def compared(
    shared: Workspace, settings: pipeline.Stages, chosen: Algorithm, snapshot: dict[str, Any]
) -> changes.Verdict:
    """Compares a start with the last one in the directory.

    Raises Refusal that names the keys that may not change.
    """
    assert shared.facts is not None
    return changes.check(
        shared.directory, shared.facts, snapshot, _constant_schedules(settings, chosen)
    )


def _constant_schedules(settings: pipeline.Stages, chosen: Algorithm) -> bool:
    """True where no learning rate of the RLHF stage depends on the number of updates."""
    used = [settings.rlhf.optimizer] + [settings.rlhf.critic_optimizer] * (
        "critic" in chosen.losses
    )
    return all(optimizer.schedule == "constant" for optimizer in used)


def _defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Every key with its default, of the components that a config names."""
    tree = default().to_dict()
    values = tree | values
    for part, folder in (("algorithm", "algorithms"), ("task", "tasks")):
        tree[part] = component(folder, values[part]["name"]).to_dict()
    tree["reward_settings"] = reward_nodes(values["reward"], {})
    if values["model"]["family"] != "pretrained":
        fields = dataclasses.fields(families.find(values["model"]["family"]).config)
        known = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
        tree["model"] = (
            {"family": values["model"]["family"]} | dict.fromkeys(f.name for f in fields) | known
        )
    return tree


def known_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Every key that a config may have, joined by dots, with its default as JSON has it.

    Args:
      values: nested, with at least the names of its components (`algorithm.name`, `task.name`,
        `model.family`).
    """
    return flat(stored_config.as_json(_defaults(values)))


def check_task(task: Any, name: str) -> None:
    """Raises ComponentError for a task that lacks something of `tasks.api.Task`."""
    wanted = [name for name in vars(Task) if not name.startswith("_")]
    missing = [name for name in wanted if not hasattr(task, name)]
    if missing:
        raise ComponentError(
            f"the task {name} is a {type(task).__name__} without {', '.join(missing)} (see "
            "tasks/api.py)"
        )
    words = task.vocabulary
    if words is not None and not (
        isinstance(words, tuple | list) and all(isinstance(word, str) for word in words)
    ):
        raise ComponentError(
            f"the task {name}: vocabulary is {words!r}; accepted: a tuple of texts, or None"
        )


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
        begin=stored_config.begun_from(values, _defaults),
    )


def choices(argument: str, **defaults: str) -> dict[str, str]:
    """The choices of `--config=file.py:name=value,name=value` over the defaults.

    Raises Refusal for another name.
    """
    chosen = dict(defaults)
    for part in filter(None, argument.split(",")):
        name, equals, value = part.partition("=")
        if name not in defaults or not equals or not value:
            accepted = ", ".join(f"{key}=..." for key in defaults)
            raise Refusal(f"the config's argument {part!r} chooses nothing; accepted: {accepted}")
        chosen[name] = value
    return chosen


NODES = {
    "tokenizer": tokenizers.Config,
    "pretrained": pretrained_models.Config,
    "lengths": Lengths,
    "mesh": mesh.Config,
    "sft": sft.Config,
    "comparisons": comparisons.Config,
    "reward_model": reward_model.Config,
    "rlhf": rlhf.Config,
    "evaluate": evaluator.Config,
}
"""Nodes of a config whose keys are always the same; those of task, model and algorithm are their
component's.
"""


def check_values(values: dict[str, Any]) -> None:
    """Checks every value of a config by itself; see `config.py`.

    Raises Refusal with every problem.
    """
    problems, components = Problems(), {"task": "tasks", "algorithm": "algorithms"}
    flattened = flat(values)
    if renamed := [key for key in flattened if history.is_renamed(key, flattened)]:
        raise Refusal(*map(history.new_name, renamed))
    if absent := sorted(set(default()) - values.keys()):
        raise Refusal(
            f"the config lacks {', '.join(map(repr, absent))}; build.default() has every key"
        )
    with problems.caught():
        elsewhere = {*NODES, *components, "model", "reward_settings"}
        fill(Run, {key: value for key, value in values.items() if key not in elsewhere}, "")
    with problems.caught():
        reward_configs(values["reward"], reward_nodes(values["reward"], values["reward_settings"]))
    for key, config in NODES.items():
        with problems.caught():
            fill(config, values[key], key)
    for key, folder in components.items():
        with problems.caught():
            named(folder, values[key], key)
    with problems.caught():
        check_stage(values["job"])
    with problems.caught():
        if not (
            values["pretrained"]["sft"] or values["pretrained"]["base"]
        ):  # else the folder says what the keys are
            check_model(values["model"])
    problems.refuse()


def check_stage(name: str) -> None:
    """Raises as `registry.entry`, and Refusal for a stage that cannot be called with workspace,
    stages and algorithm.
    """
    job = registry.entry("stages", name)
    try:
        inspect.signature(job).bind("workspace", "stages", "algorithm")
    except TypeError:
        taken = ", ".join(inspect.signature(job).parameters)
        raise Refusal(
            f"the stage {name} takes ({taken}); accepted: (workspace, stages, algorithm)"
        ) from None


def check_model(values: dict[str, Any]) -> None:
    """Checks the node of a model that no folder completes. Raises Refusal with every problem."""
    values = dict(values)
    name = values.pop("family", "pretrained")
    if name == "pretrained":
        raise Refusal(
            "model.family is 'pretrained', but neither pretrained.base nor pretrained.sft names a "
            "folder"
        )
    family = families.find(name)
    shape = family.config
    if others := sorted(values.keys() - {field.name for field in dataclasses.fields(shape)}):
        raise Refusal(
            f"model.family is {name!r}, which has no {', '.join(others)}; the keys of a family "
            "come with a preset, in a config "
            f'file: config.model = build.model("{name}", "{family.usual}")'
        )
    fill(shape, values, "model")


def resolve_auto(values: dict[str, Any]) -> None:
    """Replaces every "auto" of a config's values by its meaning for the run's schedule and
    precision.
    """
    if "correction" not in values["algorithm"]:
        return
    schedule, given = (
        values["rlhf"],
        fill(Correction, values["algorithm"]["correction"], "algorithm.correction"),
    )
    resolved = resolve(
        given,
        lag=schedule["lag"],
        scheduled=bool(schedule["version_schedule"] or schedule["replay_schedule_of"]),
        exact_sampler=exact_sampler(values),
    )
    values["algorithm"]["correction"] = dataclasses.asdict(resolved)


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


def algorithm(values: dict[str, Any]) -> Algorithm:
    """The algorithm that a node names."""
    made = registry.make("algorithms", *named("algorithms", values, "algorithm"))
    if not isinstance(made, Algorithm):
        raise Refusal(
            f"algorithm.name is {values['name']!r}, which makes a {type(made).__name__}; accepted: "
            "an Algorithm"
        )
    return made if registry.is_of_package("algorithms", values["name"]) else checked_losses(made)


def stages(values: dict[str, Any]) -> pipeline.Stages:
    """The settings of every stage."""
    values["reward_settings"] = reward_nodes(values["reward"], values["reward_settings"])
    begin = stored_config.begun_from(values, _defaults)
    return pipeline.Stages(
        sft=fill(sft.Config, values["sft"], "sft"),
        comparisons=fill(comparisons.Config, values["comparisons"], "comparisons"),
        reward_model=fill(reward_model.Config, values["reward_model"], "reward_model"),
        rlhf=fill(rlhf.Config, values["rlhf"], "rlhf"),
        evaluate=fill(evaluator.Config, values["evaluate"], "evaluate"),
        reward=values["reward"],
        reward_settings=reward_configs(values["reward"], values["reward_settings"]),
        plan=values["plan"],
        best_of_n=tuple(values["best_of_n"]),
        best_of_n_prompts=values["best_of_n_prompts"],
        taken=beginning.taken(begin),
    )


def parts(config: ConfigDict) -> tuple[Workspace, pipeline.Stages, Algorithm]:
    """The parts of a run, not checked against each other; nothing is written."""
    return _parts(config.to_dict())


def _parts(values: dict[str, Any]) -> tuple[Workspace, pipeline.Stages, Algorithm]:
    """`parts` of a config's values, which are completed and resolved."""
    shared, settings = workspace(values), stages(values)
    resolve_auto(values)
    return shared, settings, algorithm(values["algorithm"])


def checked(
    config: ConfigDict,
) -> tuple[dict[str, Any], tuple[Workspace, pipeline.Stages, Algorithm], list[str]]:
    """Returns the resolved values of a config, the checked parts of its run, and what a person
    should know of it.

    The checks go from what is known at once to what has to be read: every value by itself, the
    settings against each other and the devices, the task and the folders of models, and then the
    task against the settings. Nothing is compiled or written.

    Raises:
      Refusal: for what cannot run.
    """
    values = config.to_dict()
    (shared, settings, chosen), notices = _checked(values)
    if values["plan"] == planning.SEARCH:
        values["plan"] = _earlier_plan(shared.directory) or text_of(
            planning.for_run(shared, settings, chosen).advised.plan
        )
        settings = dataclasses.replace(settings, plan=values["plan"])
        rlhf.check(settings.rlhf, chosen, shared.mesh, settings.plan)
    if "rlhf" in checks.stages_of(values["job"], settings, shared.pretrained):
        notices += planning.check_memory(shared, settings, chosen)
        notices += filter(None, [inexact_ratio(values)])
    values["mesh"] = environment.mesh_on_each_host(shared.mesh.shape)
    facts = stored_config.facts_of(values, shared, settings, _defaults)
    if shared.begin is not None:
        beginning.check(shared.begin, facts, shared.directory)
    return (
        values,
        (dataclasses.replace(shared, facts=facts), settings, chosen),
        [task_checks.summary(shared), *notices],
    )


def prepare(
    config: ConfigDict, say: Callable[[str], None] = lambda line: None
) -> tuple[Workspace, pipeline.Stages, Algorithm]:
    """Returns the checked parts of a run, whose directory then holds its `config.json`.

    The directory's lock is held while it is compared and written; stages that train hold it again.

    Args:
      config: of the run.
      say: is told what was read, and what a person should know about a run that begins, a line
        each.

    Raises:
      Refusal: before anything is compiled or written.
    """
    values, made, lines = checked(config)
    with lock.hold(made[0].directory):
        check_directory(made[0], values, *made[1:])
    for line in lines:
        say(line)
    return made


def _checked(
    values: dict[str, Any],
) -> tuple[tuple[Workspace, pipeline.Stages, Algorithm], list[str]]:
    """The checked parts of a config's values, which are completed and resolved, and what a person
    should know.
    """
    check_values(values)
    checks.check_directory_name(values["directory"])
    stored_config.as_before(values, _defaults)
    check_settings(values)
    made = _parts(values)
    return made, task_checks.Check(values["job"], *made[:2]).run()


def check_settings(values: dict[str, Any]) -> None:
    """Checks a config's settings against each other and the devices.

    Raises Refusal with every problem.
    """
    values = copy.deepcopy(values)
    settings, pretrained = (
        stages(values),
        fill(pretrained_models.Config, values["pretrained"], "pretrained"),
    )
    resolve_auto(values)
    devices = mesh.make_mesh(fill(mesh.Config, values["mesh"], "mesh"))
    if settings.plan == planning.SEARCH:  # which is searched for once the models are known
        settings = dataclasses.replace(settings, plan="")
    checks.check_settings(
        values["job"], settings, pretrained, algorithm(values["algorithm"]), devices
    )


def _earlier_plan(where: Path) -> str:
    """The plan that a run's directory holds, so that going on with it does not search again; ""
    where there is none, or it was searched for other devices.
    """
    past = starts.read(where)
    if past and past[-1]["environment"]["num_devices"] != len(jax.devices()):
        return ""
    try:
        return run_config.read(where)[0].get("plan", "")
    except Refusal:
        return ""


def problem(
    config: ConfigDict, device: Hardware, num_devices: int, completion_lengths: Sequence[int] = ()
) -> planning.Problem:
    """The planning problem of a config's RLHF stage; its devices and its models' folders need not
    exist here.

    A reward model whose folder is not there is taken to be as large as the policy. Raises Refusal
    for a config that cannot run, or FileNotFoundError for a model that only a folder tells.
    """
    values = config.to_dict()
    settings = stages(values)
    resolve_auto(values)
    pretrained, model_values = (
        fill(pretrained_models.Config, values["pretrained"], "pretrained"),
        dict(values["model"]),
    )
    if model_values["family"] == "pretrained" or not model_values["vocab_size"]:
        network = workspace(values | {"mesh": dataclasses.asdict(mesh.Config())}).model
    else:
        family = families.find(model_values.pop("family"))
        network = family.make(fill(family.config, model_values, "model"))
    reward = None
    if settings.learned:
        there = pretrained.reward_model and Path(pretrained.reward_model).exists()
        reward = (
            pretrained_models.classifier(pretrained.reward_model, dtype=network.dtype)
            if there
            else ValueModel(network)
        )
    lengths, chosen = fill(Lengths, values["lengths"], "lengths"), algorithm(values["algorithm"])
    return planning.problem(
        settings.rlhf, chosen, lengths, network, reward, device, num_devices, completion_lengths
    )


def config_of(directory: Path) -> ConfigDict:
    """The config of the run whose directory this is, from its `config.json`.

    Raises Refusal for a directory without a run.
    """
    stored, _ = run_config.read(directory)
    values = stored_config.completed(stored, str(directory / run_config.FILE), _defaults)
    values["mesh"] = _readers_mesh(values["mesh"])
    return ConfigDict(_tuples(values) | {"directory": str(directory)})


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were written from."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def of_directory(directory: Path) -> tuple[Workspace, pipeline.Stages, Algorithm]:
    """The parts of the run whose directory this is; nothing is written.

    Raises Refusal for a directory without a run.
    """
    return parts(config_of(directory))


def parts_for(config: ConfigDict, job: str) -> tuple[Workspace, pipeline.Stages, Algorithm]:
    """The parts of a run, checked for a job; nothing is written.

    Raises Refusal with every problem.
    """
    return _checked(config.to_dict() | {"job": job})[0]


def _readers_mesh(used: dict[str, int]) -> dict[str, int]:
    """The mesh that a run was made on; where there are fewer devices here, all of them, with
    sharded params.
    """
    if -1 in used.values() or math.prod(used.values()) <= distributed.grid().shape[1]:
        return used
    return {"data": 1, "fsdp": -1, "tensor": 1}


def check_shared(directory: Path) -> None:
    """Raises Refusal on a process that does not see what the first has written."""
    distributed.barrier()
    if not (directory / "config.json").exists():
        raise Refusal(
            f"process {jax.process_index()} does not see {directory / 'config.json'}, which "
            "process 0 has written; accepted: a "
            "--config.directory on a disk that all hosts share"
        )


def run(config: ConfigDict) -> None:
    """Checks the whole config, then runs its job with the directory's lock held, unless the job
    only reads.

    Raises Refusal before anything is compiled or written.
    """
    distributed.check_same("config", config.to_json())
    values, made, lines = checked(config)
    job = registry.entry("stages", values["job"])
    if _only_reads(values["job"]):
        compared(*made, environment.snapshot())
        job(*made)
        return
    with lock.hold(made[0].directory):
        check_directory(made[0], values, *made[1:])
        check_shared(made[0].directory)
        for line in lines if distributed.is_first() else ():
            print(line)
        job(*made)


def _only_reads(job: str) -> bool:
    """True for a job whose module says that it writes nothing of training: it needs no lock."""
    return getattr(registry.located("stages", job)[0], "ONLY_READS", False)
