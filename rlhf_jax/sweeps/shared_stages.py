"""The store of stages that cells share: a directory for each SFT policy, each reward model and each
pass of prompt values.

    runs/stages/sft-<digest>             a run with job=sft
    runs/stages/reward_model-<digest>    a run with job=reward_model, begun from the SFT policy
    runs/stages/prompt_values-<digest>   a run with job=prompt_values, begun from the one before

A digest is of the resolved keys that enter the numbers of the stage, of the data and folders that
it reads, and of the code. Cells that agree on them begin from the same directory (`begin`), in this
sweep and in any later one: another beta or lag trains neither again. The cells of a study copy the
files of one pass of prompt values, from a directory beside its other stages.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.algorithms.api import REFERENCE_SCORES
from rlhf_jax.refusal import Refusal
from rlhf_jax.run_directory import digests, keys, lock
from rlhf_jax.run_directory.keys import Class
from rlhf_jax.run_directory.stage_records import CODE, CONFIG, FINISHED_BY, OWN_CODE, Facts
from rlhf_jax.runtime.program import Reward
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.types import Algorithm, Params

SFT, REWARD_MODEL, PROMPT_VALUES = "sft", "reward_model", "prompt_values"
NUM_PROMPTS = ("rlhf.total_prompts", "rlhf.oversample")
"""Keys that say how many prompts need values, and enter none of them."""
JOBS = ("pipeline", "rlhf", "dpo")
"""Jobs that take an SFT policy, and perhaps a reward model, from a run that they begin from."""
WAIT_SECONDS = 2.0  # between looks at a pass that another process makes
ENTERING = (Class.NUMBERS, Class.EXTENDING, Class.COMPUTED, Class.ROUNDING)


def needed(values: Mapping[str, Any], stages: Stages, algorithm: Algorithm) -> tuple[str, ...]:
    """The stages that a run can take from the store, in the order in which they run.

    None for a run that begins from another one, or whose job trains no policy from an SFT policy.

    Args:
      values: of the run's config.
      stages: its settings.
      algorithm: that it trains by.
    """
    if values["begin"] or values["job"] not in JOBS:
        return ()
    wanted = (
        (SFT, not values["pretrained"]["sft"]),
        (REWARD_MODEL, stages.learned and values["job"] != "dpo"),
        (PROMPT_VALUES, REFERENCE_SCORES in algorithm.needs and values["job"] != "dpo"),
    )
    return tuple(stage for stage, is_needed in wanted if is_needed)


def digest(facts: Facts, stage: str) -> str:
    """The digest of all that enters the numbers of a stage.

    Keys that change them by rounding alone count too: cells have the numbers that they would have
    with stages of their own.

    Args:
      facts: of a run.
      stage: of the store.
    """
    more = NUM_PROMPTS if stage == PROMPT_VALUES else ()
    config = {
        key: value
        for key, value in facts.values.items()
        if keys.class_of(key) in ENTERING and (key in more or keys.enters(key, stage))
    }
    contents = {
        name: found for name, found in facts.digests.items() if _content_enters(name, stage)
    }
    return digests.digest_values({"config": config, "contents": contents})


def _content_enters(name: str, stage: str) -> bool:
    if name in (CODE, CONFIG):
        return name == CODE
    return keys.enters(name.removeprefix(OWN_CODE), stage)


def directory(store: Path, stage: str, digest_of_stage: str) -> Path:
    """The directory of a stage in the store.

    Args:
      store: of all stages.
      stage: of the store.
      digest_of_stage: see `digest`.
    """
    return store / f"{stage}-{digest_of_stage}"


def take_prompt_values(
    workspace: Workspace,
    config: ConfigDict,
    algorithm: Algorithm,
    params: Params,
    reward: Reward,
    bases: Sequence[Path],
) -> None:
    """Copies the prompt values that a cell of a study needs into its directory; a pass that has not
    been made yet is made. Cells with the same pass and bases share it; several processes make it
    once. Does nothing where the algorithm needs none.

    Args:
      workspace: of the cell.
      config: of the cell.
      algorithm: of the cell.
      params: of the SFT policy, which draws the samples.
      reward: of the samples.
      bases: directories of the SFT policy's and of the reward's stages.

    Raises Refusal as the stage does.
    """
    if REFERENCE_SCORES not in algorithm.needs:
        return
    assert workspace.facts is not None
    name = digests.digest_values(
        {"stage": digest(workspace.facts, PROMPT_VALUES), "bases": [str(base) for base in bases]}
    )
    source = directory(bases[0].parent, PROMPT_VALUES, name[:16])
    (ended,) = FINISHED_BY[PROMPT_VALUES]
    while not (source / ended).exists():
        try:
            _make_prompt_values(source, config, params, reward)
        except Refusal:
            if not lock.is_held(source):
                raise
            time.sleep(WAIT_SECONDS)
    shutil.copytree(source / PROMPT_VALUES, workspace.directory / PROMPT_VALUES, dirs_exist_ok=True)


def _make_prompt_values(source: Path, config: ConfigDict, params: Params, reward: Reward) -> None:
    from rlhf_jax import build
    from rlhf_jax.stages import prompt_values

    config = config.copy_and_resolve_references()
    config.directory = str(source)
    workspace, stages, _ = build.prepare(config)
    try:
        prompt_values.run(workspace, stages, params, reward)
    finally:
        workspace.metrics.close()
