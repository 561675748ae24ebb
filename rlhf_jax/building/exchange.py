"""Nodes of the components that a config names, exchanged when an override names another one."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.building.nodes import component, model
from rlhf_jax.rewards.common.nodes import reward_nodes
from rlhf_jax.rewards.common.terms import parse

FOLDERS = {"algorithm": "algorithms", "task": "tasks"}
PRETRAINED = "pretrained"
"""The model family that is read from a folder: it keeps the keys that it does not replace."""


def exchanged(config: ConfigDict, overrides: Mapping[str, str]) -> ConfigDict:
    """A copy of a config in which the nodes of the components that overrides name have their own
    keys, at their defaults.

    What the config file has set of another component is not carried over: a key of the same name
    may mean something else. A model family has the keys of its preset `quickstart`, or of its first
    where it has none of that name.

    Args:
      config: as its file gives it.
      overrides: texts by key, such as {"algorithm.name": "my_lab.raft", "reward":
        "rewards/mine.py"}.

    Raises as `registry.settings`, and Refusal for a text that is no reward.
    """
    changed: Any = config.copy_and_resolve_references()
    with changed.unlocked():
        for key, folder in FOLDERS.items():
            name = overrides.get(f"{key}.name")
            if name is not None and key in changed and name != changed[key].get("name"):
                changed[key] = component(folder, name)
        family = overrides.get("model.family")
        if (
            family not in (None, PRETRAINED)
            and "model" in changed
            and family != changed.model.get("family")
        ):
            changed.model = model(family)
        if "reward" in changed and "reward_settings" in changed:
            reward, given = (
                overrides.get("reward", changed.reward),
                changed.reward_settings.to_dict(),
            )
            labels = [term.label for term in parse(reward)]
            settings = (
                given
                if reward == changed.reward
                else {label: given[label] for label in given if label in labels}
            )
            changed.reward_settings = ConfigDict(reward_nodes(reward, settings))
    return changed
