"""The config's node of a run's rewards: settings of each term by its label."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rlhf_jax import registry
from rlhf_jax.config import fill
from rlhf_jax.refusal import Refusal
from rlhf_jax.rewards.api import LEARNED
from rlhf_jax.rewards.common.terms import parse


def reward_nodes(reward: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The config's `reward_settings`: of every term with settings, its defaults under those given.

    Args:
      reward: the text of the reward, which names its terms.
      given: settings by label.

    Raises Refusal for settings of no term, and for a term that is not found.
    """
    terms = parse(reward)
    for label in given:
        if label not in [term.label for term in terms]:
            accepted = ", ".join(term.label for term in terms)
            raise Refusal(
                f"reward_settings has no key {label!r}, as reward is {reward!r}; accepted: "
                f"{accepted}"
            )
    defaults = {
        term.label: dataclasses.asdict(registry.settings("rewards", term.name)()) for term in terms
    }
    nodes = {label: values | dict(given.get(label, {})) for label, values in defaults.items()}
    return {label: values for label, values in nodes.items() if values or label in given}


def reward_configs(reward: str, nodes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of every term, a `Config` by label.

    Args:
      reward: the text of the reward, which names its terms.
      nodes: the config's `reward_settings`; a term that is absent has its defaults.

    Raises Refusal for a key that a term lacks, and for a model other than the learned reward.
    """
    configs = {}
    for term in parse(reward):
        kind = registry.settings("rewards", term.name)
        is_model = getattr(registry.find("rewards", term.name), "KIND", "host") != "host"
        if is_model and term.name != LEARNED:
            raise Refusal(
                f"reward names {term.name}, which is a model; accepted: {LEARNED}, or rewards on "
                "text"
            )
        configs[term.label] = fill(kind, nodes.get(term.label, {}), f"reward_settings.{term.label}")
    return configs
