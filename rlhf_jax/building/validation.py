"""Checks of a config's values, each by itself, and of a task's attributes."""

import dataclasses
import inspect
from typing import Any

from rlhf_jax import registry
from rlhf_jax.building.nodes import NODES, OPTIONAL, Run, default, named
from rlhf_jax.config import Problems, fill, flatten
from rlhf_jax.models.common import family as families
from rlhf_jax.refusal import ComponentError, Refusal
from rlhf_jax.rewards.common.nodes import reward_configs, reward_nodes
from rlhf_jax.run_directory import history
from rlhf_jax.tasks.api import Task


def check_task(task: Task, name: str) -> None:
    """Raises ComponentError for a task that lacks something of `tasks.api.Task`.

    Args:
      task: as its `make` returned it.
      name: for the message.
    """
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


def check_values(values: dict[str, Any]) -> None:
    """Checks every value of a config by itself; see `config.py`.

    Raises Refusal with every problem.
    """
    problems, components = Problems(), {"task": "tasks", "algorithm": "algorithms"}
    flattened = flatten(values)
    if renamed := [key for key in flattened if history.is_renamed(key, flattened)]:
        raise Refusal(*map(history.new_name, renamed))
    if absent := sorted(set(default()) - values.keys()):
        raise Refusal(
            f"the config lacks {', '.join(map(repr, absent))}; build.default() has every key"
        )
    with problems.caught():
        elsewhere = {*NODES, *OPTIONAL, *components, "model", "reward_settings"}
        fill(Run, {key: value for key, value in values.items() if key not in elsewhere}, "")
    with problems.caught():
        reward_configs(values["reward"], reward_nodes(values["reward"], values["reward_settings"]))
    given = {key: config for key, config in OPTIONAL.items() if key in values}
    for key, config in (NODES | given).items():
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
