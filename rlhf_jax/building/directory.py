"""A run's directory: its config is compared with a new start, and read again."""

import math
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from rlhf_jax.building.components import parts
from rlhf_jax.building.nodes import defaults
from rlhf_jax.devices import distributed, mesh
from rlhf_jax.records import notes
from rlhf_jax.refusal import Refusal
from rlhf_jax.run_directory import changes, environment, run_config, starts
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.common import (
    beginning,
    resuming,
    stored_config,
)
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.types import Algorithm


def check_directory(
    shared: Workspace, values: dict[str, Any], settings: Stages, chosen: Algorithm
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
        start["origins"] = beginning.origins(shared.begin)
        assert shared.facts is not None
        changes.settle(shared.directory, values, shared.facts, verdict, start)


def compared(
    shared: Workspace, settings: Stages, chosen: Algorithm, snapshot: dict[str, Any]
) -> changes.Verdict:
    """Compares a start with the last one in the directory.

    Args:
      shared: the run's workspace.
      settings: of every stage.
      chosen: the algorithm.
      snapshot: the environment of this start.

    Raises Refusal that names the keys that may not change.
    """
    assert shared.facts is not None
    return changes.check(
        shared.directory, shared.facts, snapshot, _constant_schedules(settings, chosen)
    )


def _constant_schedules(settings: Stages, chosen: Algorithm) -> bool:
    """True where no learning rate of the RLHF stage depends on the number of updates."""
    used = [settings.rlhf.optimizer] + [settings.rlhf.critic_optimizer] * (
        "critic" in chosen.losses
    )
    return all(optimizer.schedule == "constant" for optimizer in used)


def earlier_plan(where: Path) -> str:
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


def config_of(directory: Path) -> ConfigDict:
    """The config of the run whose directory this is, from its `config.json`.

    Raises Refusal for a directory without a run.
    """
    stored, _ = run_config.read(directory)
    values = stored_config.completed(stored, str(directory / run_config.FILE), defaults)
    values["mesh"] = _readers_mesh(values["mesh"])
    return ConfigDict(_tuples(values) | {"directory": str(directory)})


def _tuples(value: object) -> Any:
    """JSON's lists as the tuples that they were written from."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def of_directory(directory: Path) -> tuple[Workspace, Stages, Algorithm]:
    """The parts of the run whose directory this is; nothing is written.

    Raises Refusal for a directory without a run.
    """
    return parts(config_of(directory))


def _readers_mesh(used: dict[str, int]) -> dict[str, int]:
    """The mesh that a run was made on; where there are fewer devices here, all of them, with
    sharded params.
    """
    num_hosts, num_devices = distributed.devices_by_host().shape
    sizes = {axis: used[axis] for axis in mesh.AXES}
    # A run on several hosts is read on as many devices as one of them has, where one reads it.
    hosts = used["fsdp_hosts"] if num_hosts % used["fsdp_hosts"] == 0 else 1
    if -1 in sizes.values() or math.prod(sizes.values()) <= num_devices:
        return sizes | {"fsdp_hosts": hosts}
    return {"data": 1, "fsdp": -1, "tensor": 1, "fsdp_hosts": hosts}


def check_shared(directory: Path) -> None:
    """Raises Refusal on a process that does not see what the first has written."""
    distributed.barrier()
    if not (directory / "config.json").exists():
        raise Refusal(
            f"process {jax.process_index()} does not see {directory / 'config.json'}, which "
            "process 0 has written; accepted: a "
            "--config.directory on a disk that all hosts share"
        )
