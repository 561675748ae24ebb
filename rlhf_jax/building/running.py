"""Checks a whole config, prepares its directory, and runs its stage."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax import registry
from rlhf_jax.building import unread
from rlhf_jax.building.components import (
    algorithm,
    inert_clip,
    inert_remat_policy,
    inexact_ratio,
    parts_of_values,
    resolve_auto,
    stages,
)
from rlhf_jax.building.directory import check_directory, check_shared, compared, earlier_plan
from rlhf_jax.building.nodes import defaults
from rlhf_jax.building.validation import check_values
from rlhf_jax.config import fill
from rlhf_jax.devices import distributed, mesh
from rlhf_jax.devices.placement import text_of
from rlhf_jax.records import tracking
from rlhf_jax.run_directory import environment, lock
from rlhf_jax.runtime import activity
from rlhf_jax.stages import rlhf
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.checks import settings as settings_checks
from rlhf_jax.stages.checks import supervised_memory
from rlhf_jax.stages.checks import task as task_checks
from rlhf_jax.stages.common import (
    beginning,
    planning,
    pretrained_models,
    stored_config,
)
from rlhf_jax.stages.lora import base
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.types import Algorithm


def checked(
    config: ConfigDict,
) -> tuple[dict[str, Any], tuple[Workspace, Stages, Algorithm], list[str]]:
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
    run = settings_checks.stages_of(values["job"], settings, shared.pretrained)
    if values["plan"] in planning.CHOSEN:
        values["plan"] = _chosen_plan(values["plan"], shared, settings, chosen, run)
        settings = dataclasses.replace(settings, plan=values["plan"])
        rlhf.check(settings.rlhf, chosen, shared.mesh, settings.plan)
    shared, settings = supervised_memory.chosen(shared, settings, run)
    for stage, count in supervised_memory.micro_batches(settings).items():
        values[stage]["num_micro_batches"] = count
    values["model"]["remat"] = shared.model.remat
    notices += supervised_memory.notices(shared, settings, run)
    notices += filter(None, [inert_remat_policy(values)])
    if "rlhf" in run:
        notices += planning.check_memory(shared, settings, chosen)
        notices += filter(None, [inexact_ratio(values), inert_clip(values)])
    values["mesh"] = environment.mesh_on_each_host(shared.mesh)
    facts = stored_config.facts_of(values, shared, settings, defaults)
    if shared.begin is not None:
        beginning.check(shared.begin, facts, shared.directory)
    return (
        values,
        (dataclasses.replace(shared, facts=facts), settings, chosen),
        [task_checks.summary(shared), *notices],
    )


def _chosen_plan(
    value: str, shared: Workspace, settings: Stages, chosen: Algorithm, run: frozenset[str]
) -> str:
    """The text of the plan that a value of the key `plan` chooses: that of an earlier start, or a
    new one. "" for a run without the RLHF stage on its own mesh.
    """
    if value == planning.FIT and "rlhf" not in run:
        return ""
    found = earlier_plan(shared.directory)
    return found or text_of(planning.CHOSEN[value](shared, settings, chosen))


def prepare(
    config: ConfigDict, say: Callable[[str], None] = lambda line: None
) -> tuple[Workspace, Stages, Algorithm]:
    """Returns the checked parts of a run, whose directory then holds its `config.json`.

    The directory's lock is held while it is compared and written; stages that train hold it again.

    Args:
      config: of the run.
      say: is told what was read, and what a person should know about a run that begins, a line
        each.

    Raises:
      Refusal: before anything is compiled or written.
    """
    activity.listen_to_compiles()  # stages write how long they compiled
    values, parts, lines = checked(config)
    tracking.check(values["track"])
    with lock.hold(parts[0].directory):
        check_directory(parts[0], values, *parts[1:])
    for line in lines:
        say(line)
    return parts


def _checked(
    values: dict[str, Any],
) -> tuple[tuple[Workspace, Stages, Algorithm], list[str]]:
    """The checked parts of a config's values, which are completed and resolved, and what a person
    should know.
    """
    check_values(values)
    settings_checks.check_directory_name(values["directory"])
    stored_config.as_before(values, defaults)
    check_settings(values)
    parts = parts_of_values(values)
    notices = [f"note: {note}" for note in unread.notes(values)] + base.checked(parts[0])
    return parts, [*notices, *task_checks.Check(values["job"], *parts[:2]).run()]


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
    if settings.plan in planning.CHOSEN:  # once the models are known
        settings = dataclasses.replace(settings, plan="")
    settings_checks.check_settings(
        values["job"],
        settings,
        pretrained,
        algorithm(values["algorithm"]),
        devices,
        values["lora"]["rank"],
    )


def parts_for(config: ConfigDict, job: str) -> tuple[Workspace, Stages, Algorithm]:
    """The parts of a run, checked for a job; nothing is written.

    Args:
      config: of a run.
      job: that the checks are for.

    Raises Refusal with every problem.
    """
    return _checked(config.to_dict() | {"job": job})[0]


def run(config: ConfigDict) -> None:
    """Checks the whole config, then runs its job with the directory's lock held, unless the job
    only reads.

    Raises Refusal before anything is compiled or written.
    """
    activity.listen_to_compiles()
    distributed.check_same("config", config.to_json())
    values, parts, lines = checked(config)
    job = registry.entry("stages", values["job"])
    if _only_reads(values["job"]):
        compared(*parts, environment.snapshot())
        job(*parts)
        return
    tracking.check(values["track"])
    with lock.hold(parts[0].directory):
        check_directory(parts[0], values, *parts[1:])
        check_shared(parts[0].directory)
        for line in lines if distributed.is_first() else ():
            print(line)
        job(*parts)


def _only_reads(job: str) -> bool:
    """True for a job whose module says that it writes nothing of training: it needs no lock."""
    return getattr(registry.located("stages", job)[0], "ONLY_READS", False)
