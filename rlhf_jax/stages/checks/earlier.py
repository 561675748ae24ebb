"""Checks that the files of earlier stages are there, of which a job goes on."""

from collections.abc import Set
from pathlib import Path

from rlhf_jax.records import lines, metrics
from rlhf_jax.records.checkpoints import complete_steps
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.run_directory import stage_records
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.common import reward_unit
from rlhf_jax.stages.settings.stages import Stages


def check(job: str, workspace: Workspace, stages: Stages, used: Set[str]) -> None:
    """Checks what the directory of a run holds for a job.

    Args:
      job: as in the config.
      workspace: of the run.
      stages: the settings of every stage.
      used: the stages that the job runs.

    Raises MissingInput for a job that goes on from the files of another one, which are not there;
    Refusal for RLHF in the directory of a run of DPO, and the other way round.
    """
    directory = workspace.directory
    policy_elsewhere = workspace.pretrained.sft or workspace.begin is not None
    if (
        job in ("comparisons", "reward_model", "prompt_values", "rlhf", "evaluate")
        and not policy_elsewhere
    ):
        complete_steps(stage_records.folder(directory, "sft"))
        stage_records.check_finished(directory, "sft")
    policy = stage_records.policy_stage(directory)
    if job in ("evaluate", "export"):
        complete_steps(stage_records.folder(directory, policy))
    for stage, another in (("rlhf", "dpo"), ("dpo", "rlhf")):
        if stage not in used:
            continue
        held = "a policy" if stage_records.steps(directory, another) else ""
        held = held or ("lines" if _has_lines(directory, another, stage) else "")
        if held:
            raise Refusal(
                f"{directory} has {held} of the stage {another!r}, and a run has a policy of "
                f"{stage!r} or of {another!r}; accepted: another --config.directory, with "
                f"--config.begin={directory} to take its SFT policy"
            )
    if job not in ("prompt_values", "rlhf", "evaluate") or not stages.learned or policy == "dpo":
        return
    owner = reward_unit.owner(workspace)
    if not (path := reward_unit.standard_path(owner)).exists():
        raise MissingInput(
            f"{path} is missing: run the stage 'reward_model' first (--config.job=reward_model)"
        )
    if not owner.pretrained.reward_model:
        stage_records.check_finished(owner.directory, "reward_model")


def _has_lines(directory: Path, stage: str, other: str) -> bool:
    """True where the last update or evaluation of two stages, of which a run has one, is of the
    first: it may have been killed before its first checkpoint.
    """
    path = directory / metrics.FILE
    heads = (head for _, _, head in lines.heads_from_end(path)) if path.exists() else ()
    for head in heads:
        if head.update is not None and {stage, other} & {head.stage, head.of}:
            return stage in (head.stage, head.of)
    return False
