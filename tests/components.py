"""Components that are not of the package, which `pytest --component=` adds to the battery of their
kind.

pytest --component=my_lab.my_algorithm                 the kind is told by what the name makes
pytest --component=reward=my_lab.rewards:brevity       or said: algorithm, task, reward or model
pytest --component=task=my_lab.tasks --component=reward=my_lab.rewards:overlap     the reward is asked about that task's rows
"""

import inspect
from typing import Any

import pytest

from rlhf_jax import registry
from rlhf_jax.refusal import ComponentError, Refusal
from rlhf_jax.rewards.common import host_rewards
from rlhf_jax.types import Algorithm

FOLDERS = {"algorithm": "algorithms", "task": "tasks", "reward": "rewards", "model": "models"}
BATTERIES = {
    "algorithms": ("tests/algorithms/test_battery.py",),
    "tasks": ("tests/tasks/test_battery.py",),
    "rewards": ("tests/rewards/test_battery.py",),
    "models": ("tests/models/test_battery.py", "tests/models/test_battery_params.py"),
}
_own: dict[str, list[str]] = {folder: [] for folder in BATTERIES}


def names(folder: str) -> list[str]:
    """Names of the components to be tested of a folder: those of the package, or those of the
    command line alone.
    """
    return own(folder) if any(_own.values()) else registry.names(folder)


def own(folder: str) -> list[str]:
    """Names of the command line that are of a folder."""
    return list(_own[folder])


def every_own() -> set[str]:
    """All names of the command line."""
    return {name for found in _own.values() for name in found}


def is_own(folder: str, name: str) -> bool:
    """True for a component that is not of the package."""
    return name in _own[folder]


def make(folder: str, name: str) -> Any:
    """A component with the defaults of its settings: an algorithm or a task."""
    return registry.make(folder, name, registry.settings(folder, name)())


def add(text: str) -> None:
    """Adds `[kind=]name`. Raises pytest.UsageError in one line for another kind, and a name of
    which none can be told.
    """
    kind, equals, name = text.partition("=")
    if equals and kind not in FOLDERS:
        raise pytest.UsageError(
            f"--component={text}: no kind {kind!r}; accepted: {', '.join(FOLDERS)}"
        )
    if not equals:
        name = text
    try:
        folder = FOLDERS[kind] if equals else _folder_of(name)
        registry.entry(folder, name)
    except (Refusal, ComponentError) as error:
        raise pytest.UsageError(f"--component={text}: {error}") from error
    _own[folder].append(name)


def batteries() -> list[str]:
    """The files of the batteries that have a component of the command line."""
    return [path for folder, paths in BATTERIES.items() if _own[folder] for path in paths]


def _folder_of(name: str) -> str:
    """The folder of a component, by its presets, the parameters of its entry, or what that makes."""
    module, _ = registry.located("algorithms", name)
    if hasattr(module, "PRESETS"):
        return "models"
    for folder in ("rewards", "algorithms"):
        try:
            made_by = registry.entry(folder, name)
        except Refusal:
            continue
        parameters = set(inspect.signature(made_by).parameters)
        if folder == "rewards" and ("completions" in parameters or "task" in parameters):
            return folder
        try:
            made = make(folder, name) if folder == "algorithms" else None
        except (Refusal, ComponentError) as error:
            raise Refusal(
                f"{error}; accepted: KIND={name} with a kind of {', '.join(FOLDERS)}"
            ) from error
        if isinstance(made, Algorithm):
            return folder
        if hasattr(made, "num_prompts"):
            return "tasks"
    raise Refusal(
        f"what {name} is cannot be told; accepted: KIND={name} with a kind of {', '.join(FOLDERS)}"
    )


def reward_of(name: str, task: Any) -> host_rewards.HostJudge:
    """A reward with the defaults of its settings, on a task."""
    return host_rewards.make(name, task, registry.settings("rewards", name)())
