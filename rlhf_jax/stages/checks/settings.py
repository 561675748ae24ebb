"""Checks the settings of a job against each other and against the devices, before anything is
compiled or written.

`task.py` then checks its task. Both ask only for what the stages of the job use:

    sft            the SFT stage                          unless pretrained.sft holds its policy
    comparisons    pairs, sampled or given                unless pretrained.reward_model holds
                   their model, or the reward is no model; the job dpo has them in any case
    reward_model   the reward model, or pretrained.reward_model's unit
    dpo            offline DPO on the comparisons, and its evaluations
    prompt_values  scores of the SFT policy's samples, where the algorithm of the RLHF stage needs them
    rlhf           rounds of RLHF, and their evaluations
    best_of_n      best-of-n beside it
    evaluate       evaluations of saved policies
"""

import os
from pathlib import Path

from jax.sharding import Mesh

from rlhf_jax.algorithms.api import REFERENCE_SCORES
from rlhf_jax.config import Problems
from rlhf_jax.devices.mesh import check_rows
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime.inflight.slot_program import check_adapters
from rlhf_jax.stages import dpo, reward_model, rlhf
from rlhf_jax.stages.checks import signal
from rlhf_jax.stages.common import pretrained_models
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.types import Algorithm
from rlhf_jax.updating import check_schedule

STAGES_OF_JOB = {
    "sft": {"sft"},
    "comparisons": {"comparisons"},
    "reward_model": {"comparisons", "reward_model"},
    "prompt_values": {"prompt_values"},
    "rlhf": {"rlhf"},
    "dpo": {"sft", "comparisons", "dpo"},
    "evaluate": {"evaluate"},
    "export": set[str](),
}
WHOLE = {
    "sft",
    "comparisons",
    "reward_model",
    "rlhf",
    "best_of_n",
}  # a pipeline; a job of a user's own may use any stage
EVALUATED = {"rlhf", "dpo", "evaluate", "best_of_n"}


def stages_of(job: str, stages: Stages, pretrained: pretrained_models.Config) -> frozenset[str]:
    """The stages that a job runs: see the table of this module.

    Args:
      job: as in the config.
      stages: the settings of every stage.
      pretrained: folders that stand for what a stage would train.
    """
    found = set(STAGES_OF_JOB.get(job, WHOLE))
    learns_from_pairs = {"comparisons"} & found if "dpo" in found else set[str]()
    found -= stages.taken
    if pretrained.sft:
        found -= {"sft"}
    if job not in STAGES_OF_JOB and not stages.learned:
        found -= {"comparisons", "reward_model", "best_of_n"}
    if pretrained.reward_model and job != "comparisons":
        found -= {"comparisons"}
    if not stages.best_of_n:
        found -= {"best_of_n"}
    return frozenset(found | learns_from_pairs)


def check_settings(
    job: str,
    stages: Stages,
    pretrained: pretrained_models.Config,
    algorithm: Algorithm,
    mesh: Mesh,
    lora_rank: int = 0,
) -> None:
    """Checks what the settings alone decide: schedules, and batches that the mesh must divide.

    Args:
      job: as in the config.
      stages: the settings of every stage.
      pretrained: folders of models.
      algorithm: of the RLHF stage.
      mesh: of the run.
      lora_rank: of the run's adapters; 0: there are none.

    Raises Refusal with every problem, naming the keys.
    """
    used, problems = stages_of(job, stages, pretrained), Problems()
    if "sft" in used:
        with problems.caught():
            check_rows(
                "sft.rows_per_update",
                stages.sft.rows_per_update,
                mesh,
                stages.sft.num_micro_batches or 1,
            )
        with problems.caught():
            check_schedule(stages.sft.optimizer, "sft.optimizer", stages.sft.num_updates)
    if "reward_model" in used:
        _check_reward_model(stages.reward_model, pretrained, mesh, problems)
    if "dpo" in used:
        _check_dpo(dpo.settings(stages), mesh, problems)
    if "rlhf" in used:
        with problems.caught():
            rlhf.check(stages.rlhf, algorithm, mesh, stages.plan)
        with problems.caught():
            check_adapters(stages.rlhf.weights == "pinned", bool(lora_rank))
        with problems.caught():
            signal.check_reward(stages.rlhf.signal, stages.reward)
    if "prompt_values" in used or ("rlhf" in used and REFERENCE_SCORES in algorithm.needs):
        with problems.caught():
            size = stages.rlhf.prompt_values.prompts_per_batch
            check_rows("rlhf.prompt_values.prompts_per_batch", size, mesh)
    if pretrained.gold and used & (EVALUATED | {"comparisons"}):
        with problems.caught():
            check_rows("pretrained.gold_rows_per_batch", pretrained.gold_rows_per_batch, mesh)
    if "best_of_n" in used:
        with problems.caught():
            _check_best_of_n(stages)
    problems.refuse()


def _check_reward_model(
    config: reward_model.Config,
    pretrained: pretrained_models.Config,
    mesh: Mesh,
    problems: Problems,
) -> None:
    with problems.caught():
        check_rows("reward_model.standardize_prompts", config.standardize_prompts, mesh)
    if pretrained.reward_model:
        return
    with problems.caught():
        check_rows(
            "reward_model.pairs_per_update",
            config.pairs_per_update,
            mesh,
            config.num_micro_batches or 1,
        )
    with problems.caught():
        check_schedule(config.optimizer, "reward_model.optimizer", config.num_updates)


def _check_dpo(config: dpo.Config, mesh: Mesh, problems: Problems) -> None:
    with problems.caught():
        parts = config.num_micro_batches or 1
        check_rows("dpo.pairs_per_update", config.pairs_per_update, mesh, parts)
    with problems.caught():
        check_schedule(config.optimizer, "dpo.optimizer", config.num_updates)


def _check_best_of_n(stages: Stages) -> None:
    sizes = stages.best_of_n
    if any(max(sizes) % n for n in sizes):
        raise Refusal(f"best_of_n is {sizes}; accepted: sizes that divide the largest")
    if stages.best_of_n_prompts > stages.evaluate.num_prompts:
        raise Refusal(
            f"best_of_n_prompts is {stages.best_of_n_prompts}; accepted: at most "
            "evaluate.num_prompts = "
            f"{stages.evaluate.num_prompts}"
        )


def check_directory_name(name: str) -> Path:
    """The run's directory. Raises Refusal where it cannot be one; nothing is made."""
    if not name.strip():
        raise Refusal(
            "directory is empty; accepted: a folder for the run's files, e.g. "
            "--config.directory=runs/first"
        )
    path = Path(name)
    aboves = [place for place in (path, *path.parents) if place.name == ".."]
    if name.startswith("~") or not all(place.exists() for place in aboves):
        # `~` would be the name of a folder here, and `missing/..` is no folder for the system.
        meant = os.path.realpath(os.path.expanduser(name))
        raise Refusal(f"directory is {name!r}, which is read as it is written; accepted: {meant!r}")
    above = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not above.is_dir():
        raise Refusal(
            f"directory is {name!r}, but {above} is a file; accepted: a folder, or a name that is "
            "free"
        )
    read_only = (
        os.statvfs(above).f_flag & os.ST_RDONLY
    )  # a failure of the disk, and not of the config
    if not os.access(above, os.W_OK | os.X_OK) and not read_only:
        raise Refusal(
            f"directory is {name!r}, but nothing may be written in {above}; accepted: a folder of "
            "your own"
        )
    return path
