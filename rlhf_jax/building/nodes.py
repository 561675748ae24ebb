"""Nodes of a config: every key of a run and of its components, with defaults."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax import registry
from rlhf_jax.config import Count, Seed, fill, flatten
from rlhf_jax.devices import compile_cache, mesh
from rlhf_jax.models.common import adapters
from rlhf_jax.models.common import family as families
from rlhf_jax.records import tracking
from rlhf_jax.refusal import Refusal
from rlhf_jax.rewards.api import LEARNED
from rlhf_jax.rewards.common.nodes import reward_nodes
from rlhf_jax.stages import comparisons, dpo, reward_model, rlhf, sft
from rlhf_jax.stages.api import Lengths
from rlhf_jax.stages.common import (
    evaluator,
    pretrained_models,
    stored_config,
)
from rlhf_jax.text import tokenizers


@dataclass(frozen=True)
class Run:
    """Keys of a config that belong to no component."""

    # the stage or chain that is run: a file of stages/, or a function of your own
    job: str = "pipeline"
    directory: str = "runs/unnamed"  # of the run; the same command goes on with what is in it
    begin: str = (
        ""  # RUN or RUN@version: the run that this one takes its SFT policy and reward model from
    )
    seed: Seed = 0  # of all random numbers but those of the task
    reward: str = LEARNED  # a name, or a sum: see `rewards/api.py`
    plan: str = ""  # placements of calls, as `devices/placement.py` reads them; "": one mesh
    # numbers of samples per prompt for best-of-n, drawn from the SFT policy
    best_of_n: tuple[Count, ...] = (1, 2, 4, 8, 16)
    best_of_n_prompts: Count = 256  # held-out prompts for best-of-n
    compile_cache: str = (
        compile_cache.AUTO
    )  # "auto", "off" or a folder: see `devices/compile_cache`
    # the trackers of the run: "auto" (TensorBoard where it is installed), "off", or names with
    # commas between them, such as tensorboard,wandb: see `records/tracking`
    track: str = tracking.AUTO


def node(config: object, **first: object) -> ConfigDict:
    """A ConfigDict of a component's dataclass, every key with its type; `first` are keys before its
    own (its name).
    """
    return ConfigDict(first | _plain(config))


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def component(folder: str, name: str) -> ConfigDict:
    """The node of a component with its defaults: `component("algorithms", "online_dpo")`, or of a
    user's own module or file (see `registry.py`): `component("tasks", "my_lab.trivia")`.

    Args:
      folder: of `rlhf_jax/`: "algorithms", "tasks", "rewards".
      name: of a file in it, or a path of the user's own.
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
            "lora": node(adapters.Config()),
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
    """The name in a component's node, and the settings that the node gives.

    Args:
      folder: of `rlhf_jax/` whose component is meant.
      values: of the node.
      where: the node's key, for messages.
    """
    values = dict(values)
    if "name" not in values:
        raise Refusal(
            f"{where} lacks 'name', a file of rlhf_jax/{folder}/: "
            f"{', '.join(registry.names(folder))}"
        )
    name = values.pop("name")
    return name, fill(registry.settings(folder, name), values, where)


def defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Every key with its default, of the components that a config names."""
    tree = default().to_dict()
    values = tree | values
    for part, folder in (("algorithm", "algorithms"), ("task", "tasks")):
        tree[part] = component(folder, values[part]["name"]).to_dict()
    tree |= {name: _plain(config()) for name, config in OPTIONAL.items() if name in values}
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
    return flatten(stored_config.as_json(defaults(values)))


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
    "lora": adapters.Config,
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

OPTIONAL = {"dpo": dpo.Config}
"""Nodes that a config has only where its job needs them."""
