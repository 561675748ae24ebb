"""A trained model as a checkpoint folder that `transformers` loads."""

from pathlib import Path
from typing import Any

from rlhf_jax.hub import export
from rlhf_jax.hub.folders import Folder
from rlhf_jax.jobs import reward_model, rlhf, sft
from rlhf_jax.jobs.api import Workspace
from rlhf_jax.refusal import Refusal

CARRIED = (
    "bos_token_id",
    "max_position_embeddings",
)  # of the folder that a run began with: what a family's shape lacks


def params_of(workspace: Workspace, stage: str, version: int | None) -> Any:
    """The params of a finished stage. Raises MissingInput when they are not there."""
    if stage == rlhf.STAGE:
        return rlhf.load(workspace, version)[0]
    if version is not None:
        raise Refusal(f"version is {version}, but {stage} keeps its last params alone; accepted: none")
    return sft.load(workspace) if stage == sft.STAGE else reward_model.load(workspace)[0]


def write(
    workspace: Workspace, stage: str, directory: Path, version: int | None = None, dtype: str = "float32"
) -> None:
    """Writes the params of `stage` (sft, reward_model, rlhf) to a new folder, with the tokenizer's files.

    Raises Refusal where the folder is there or the stage unknown, FileNotFoundError where the stage has not run.
    """
    accepted = (sft.STAGE, reward_model.STAGE, rlhf.STAGE)
    if stage not in accepted:
        raise Refusal(f"stage is {stage!r}; accepted: {', '.join(accepted)}")
    model = workspace.reward_network.backbone if stage == reward_model.STAGE else workspace.model
    ids = {"eos_token_id": workspace.tokenizer.eos_id, "pad_token_id": workspace.tokenizer.pad_id}
    began = workspace.hub.reward_model if stage == reward_model.STAGE else ""
    began = began or workspace.hub.policy
    published = Folder(Path(began)).config if began else {}
    export.save(
        directory,
        model,
        params_of(workspace, stage, version),
        token_ids={key: published[key] for key in CARRIED if key in published} | ids,
        tokenizer_from=getattr(workspace.tokenizer, "folder", None),
        dtype=dtype,
    )


def job(workspace: Workspace, stages: Any, algorithm: Any) -> None:
    """`--config.job=export`: the newest policy, to `exported` in the run's directory."""
    del stages, algorithm
    write(workspace, rlhf.STAGE, workspace.directory / "exported")
