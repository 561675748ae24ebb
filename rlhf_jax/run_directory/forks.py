"""The way to go on in another directory where a config cannot be used in this one."""

import shlex
from pathlib import Path

from rlhf_jax.config import flatten
from rlhf_jax.refusal import Refusal
from rlhf_jax.run_directory import history, keys, run_config, stage_records

ELSEWHERE = "take another --config.directory"


def advice(directory: Path, version: int | None) -> str:
    """Returns options that begin another run from a version of a directory, or `ELSEWHERE` where
    none can be begun from.

    Args:
      directory: whose checkpoints are there, perhaps without the config of a run.
      version: of the policy; None: the SFT policy.
    """
    run = source(directory, version)
    if run is None:
        return ELSEWHERE
    suffix = "" if version is None else f"@{version}"
    return f"add --config.begin={shlex.quote(f'{run}{suffix}')} --config.directory={shlex.quote(f'{directory}_fork')}"


def source(directory: Path, version: int | None) -> Path | None:
    """The run that may be begun from in the place of a directory: that one, or the one that its
    stages were copied from.

    Returns None where neither has a config, the SFT policy and the version.
    """
    candidates = [directory]
    candidates += [
        candidate
        for stage in reversed(keys.STAGES)
        if (candidate := stage_records.origin(directory, stage)) is not None
    ]
    for candidate in candidates:
        if _has_policy(candidate) and (
            version is None or version in stage_records.policy_steps(candidate)
        ):
            return candidate
    return None


def _has_policy(directory: Path) -> bool:
    """True for a run whose SFT policy is there, or comes from elsewhere."""
    try:
        values = history.translated(
            flatten(run_config.read(directory)[0]), str(directory / run_config.FILE)
        )
    except Refusal:
        return False
    return bool(values.get("begin") or values.get("pretrained.sft")) or stage_records.finished(
        directory, "sft", values
    )
