"""The cells of a grid, each with its whole config checked, and the stages that cells share.

This part of a sweep touches the devices. It therefore runs in a process of its own, which ends
before the first cell begins: an accelerator has room for one process.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from ml_collections import ConfigDict

from rlhf_jax import build
from rlhf_jax.config import flatten
from rlhf_jax.refusal import Refusal
from rlhf_jax.run_directory import digests
from rlhf_jax.run_directory.stage_records import CODE, CONFIG, OWN_CODE
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.sweeps import grid, shared_stages
from rlhf_jax.sweeps.grid import Setting

NOT_A_NUMBER = ("directory", "compile_cache")
"""Keys that may differ between two configs of one cell."""


@dataclass(frozen=True)
class Checked:
    """A cell whose config can run.

    `identity` is the digest of its config and of the contents that it names. `shared` has the
    digest of each stage that it takes from the store, in the order in which they run. `updates` has
    the number of updates of each stage.
    """

    setting: Setting
    seed: int
    identity: str
    shared: dict[str, str]
    updates: dict[str, int]


def check(
    read: Callable[[Sequence[str]], ConfigDict],
    settings: Sequence[Setting],
    seeds: Sequence[int] | None,
    directory: str,
) -> list[Checked]:
    """Checks the config of every setting as the command `run` does, and makes its cells.

    Args:
      read: the config with further overrides, each `--config.<key>=<value>`.
      settings: of the grid.
      seeds: of each setting; None: the config's own.
      directory: that no run is in, for the checks.

    Raises Refusal for a key that no config has, a value of another type, a config that cannot run,
    and two settings that are the same config.
    """
    configs = [read(grid.overrides(setting)) for setting in settings]  # all of them, which is quick
    cells = []
    for setting, config in zip(settings, configs, strict=True):
        config.directory = directory
        cells += _cells(setting, config, seeds or [config.to_dict()["seed"]])
    known: dict[str, Checked] = {}
    for cell in cells:
        twin = known.setdefault(cell.identity, cell)
        if twin is not cell:
            labels = " and ".join(grid.label(each.setting, each.seed) for each in (twin, cell))
            raise Refusal(f"two cells are of the same config: {labels}; accepted: each once")
    return sorted(cells, key=lambda cell: cell.seed)


def _cells(setting: Setting, config: ConfigDict, seeds: Sequence[int]) -> list[Checked]:
    """The cells of a setting. Its config is checked once, with the first seed."""
    config.seed = seeds[0]
    try:
        values, (workspace, stages, algorithm), _ = build.checked(config)
    except Refusal as error:
        if not setting:
            raise
        where = " ".join(f"{key}={value}" for key, value in setting.items())
        raise Refusal(*(f"{where}: {message}" for message in error.messages)) from error
    facts = workspace.facts
    assert facts is not None
    needed = shared_stages.needed(values, stages, algorithm)
    given = {
        key: value for key, value in flatten(config.to_dict()).items() if key not in NOT_A_NUMBER
    }
    contents = {
        name: digest
        for name, digest in facts.digests.items()
        if name not in (CODE, CONFIG) and not name.startswith(OWN_CODE)
    }
    cells = []
    for seed in seeds:
        of_seed = replace(facts, values=dict(facts.values) | {"seed": seed})
        identity = digests.digest_values(given | {"seed": seed, "contents": contents})
        shared = {stage: shared_stages.digest(of_seed, stage) for stage in needed}
        cells.append(Checked(setting, seed, identity, shared, _updates(stages)))
    return cells


def _updates(stages: Stages) -> dict[str, int]:
    updates = {
        "sft": stages.sft.num_updates,
        "reward_model": stages.reward_model.num_updates,
        "rlhf": stages.rlhf.schedule().num_updates,
    }
    return updates | ({"dpo": stages.dpo.num_updates} if stages.dpo else {})


def as_json(cells: Sequence[Checked]) -> dict[str, Any]:
    """Cells as one process tells them to another, with the kind of its devices and the code."""
    return {
        "backend": jax.default_backend(),
        "code": digests.digest_code(),
        "cells": [vars(cell) for cell in cells],
    }


def from_json(told: Mapping[str, Any]) -> list[Checked]:
    """The cells of `as_json`."""
    return [Checked(**cell) for cell in told["cells"]]
