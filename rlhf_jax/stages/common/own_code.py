"""The components of a run that are a user's own: their modules, and digests of their sources."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf_jax import registry
from rlhf_jax.rewards.common.terms import parse
from rlhf_jax.run_directory import digests
from rlhf_jax.run_directory.made import OWN_CODE


def modules(values: Mapping[str, Any]) -> dict[str, ModuleType]:
    """The modules of a config's components that are not of this package, by their keys; of a reward by `reward.<label>`.

    Args:
      values: of a config, resolved or not.

    Raises as `registry.find`.
    """
    named = {
        "algorithm": ("algorithms", values["algorithm"]["name"]),
        "task": ("tasks", values["task"]["name"]),
        "job": ("stages", values["job"]),
    }
    named |= {f"reward.{term.label}": ("rewards", term.name) for term in parse(values["reward"])}
    if values["model"]["family"] != "pretrained":
        named["model"] = ("models", values["model"]["family"])
    found = {key: registry.located(folder, name)[0] for key, (folder, name) in named.items()}
    return {key: module for key, module in found.items() if not module.__name__.startswith(f"{registry.PACKAGE}.")}


def of_sources(values: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the sources of those modules, without comments, docstrings and layout. Files that they import are not read."""
    return {f"{OWN_CODE}{key}": _of_module(module) for key, module in modules(values).items()}


def _of_module(module: ModuleType) -> str:
    if module.__file__ is None:
        return ""
    path = Path(module.__file__)
    return digests.of_source(path) if path.suffix == ".py" else digests.of_file(path)
