"""A trained model as a checkpoint folder that `transformers` loads."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_jax.models.api import Model
from rlhf_jax.models.common import adapters
from rlhf_jax.pretrained import carried, export, peft
from rlhf_jax.pretrained.folders import Folder
from rlhf_jax.refusal import Refusal
from rlhf_jax.report import model_card
from rlhf_jax.run_directory import stage_records
from rlhf_jax.stages import dpo, reward_model, rlhf, sft
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.text.tokenizers import Tokenizer
from rlhf_jax.types import Algorithm, Params


def params_of(workspace: Workspace, stage: str, version: int | None) -> tuple[Params, int | None]:
    """The params of a finished stage, and their version where the stage keeps several. Raises
    MissingInput when they are not there.
    """
    if stage in (rlhf.STAGE, dpo.STAGE):
        return rlhf.load(workspace, version)
    if version is not None:
        raise Refusal(
            f"version is {version}, but {stage} keeps its last params alone; accepted: none"
        )
    load = sft.load if stage == sft.STAGE else lambda shared: reward_model.load(shared)[0]
    return load(workspace), None


def write(
    workspace: Workspace,
    stage: str,
    directory: Path,
    version: int | None = None,
    dtype: str = "float32",
    adapter: bool = False,
) -> None:
    """Writes the params of `stage` (sft, reward_model, rlhf, dpo) to a new folder.

    Args:
      workspace: of the run.
      stage: sft, reward_model, rlhf or dpo; "": the one whose policy the run has.
      directory: the new folder.
      version: of the RLHF or DPO stage; None: the newest.
      dtype: of the weights. Those of a run with adapters are merged in float32, and cast once.
      adapter: True writes the adapter alone, as a folder of PEFT.

    With them the config.json and other files of the folder that the run began with, but for
    weights, the tokenizer's, and a model card. Raises Refusal where the folder is there or the stage unknown,
    MissingInput where the stage has not run.
    """
    policy = stage_records.policy_stage(workspace.directory)
    stage = stage or policy
    accepted = (sft.STAGE, reward_model.STAGE, policy)
    if stage not in accepted:
        raise Refusal(f"stage is {stage!r}; accepted: {', '.join(accepted)}")
    model = workspace.reward_network.backbone if stage == reward_model.STAGE else workspace.model
    began = workspace.pretrained.reward_model if stage == reward_model.STAGE else ""
    began = began or workspace.pretrained.policy
    folder = Folder(Path(began)) if began else None
    tokenizer_file = getattr(workspace.tokenizer, "file", None)  # some tokenizers need none
    params, exported = params_of(workspace, stage, version)
    if adapter:
        card = ""
        if workspace.lora.base_dtype:
            card = model_card.text(workspace.directory, stage, exported, directory, False, True)
        _write_adapter(workspace, directory, model, params, began, dtype, card)
        return
    export.save(
        directory,
        model,
        adapters.merged(params),
        token_ids=token_ids(workspace.tokenizer, folder.config if folder else {}),
        tokenizer_from=tokenizer_file,
        model_from=folder,
        dtype=dtype,
        card=model_card.text(
            workspace.directory, stage, exported, directory, tokenizer_file is not None
        ),
    )


def _write_adapter(
    workspace: Workspace,
    directory: Path,
    model: Model,
    params: Params,
    began: str,
    dtype: str,
    card: str,
) -> None:
    """Writes the adapter of params to a new folder, beside its place and renamed at the end.

    Args:
      workspace: of the run.
      directory: the new folder.
      model: of the base.
      params: with an adapter.
      began: the folder of the base; "": the run has its base itself.
      dtype: of the tensors.
      card: the text of a model card, for adapters on an int8 base; "": none is written.

    Raises Refusal where the folder is there, or the params have no adapter.
    """
    if adapters.split(params)[1] is None:
        raise Refusal(
            f"{workspace.directory} trained all params (lora.rank is {workspace.lora.rank}): there "
            "is no adapter to export; accepted: a run with lora.rank, or no --adapter"
        )
    if directory.exists():
        raise Refusal(f"{directory} is there already; export to a new folder")
    partial_directory = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial_directory, ignore_errors=True)
    partial_directory.mkdir(parents=True)
    peft.write(partial_directory, model, params, workspace.lora, began, dtype)
    if card:
        (partial_directory / export.CARD).write_text(card, encoding="utf-8")
    partial_directory.rename(directory)


def token_ids(tokenizer: Tokenizer, published: Mapping[str, Any]) -> dict[str, Any]:
    """The token ids of config.json: where texts of the run end, and its padding unless the folder
    has one.

    An EOS never becomes the padding: in transformers its embedding would then get no gradient.
    """
    found: dict[str, Any] = {"eos_token_id": carried.merged(tokenizer.eos_ids, None)}
    if published.get("pad_token_id") is None:
        found["pad_token_id"] = None if tokenizer.pad_id in tokenizer.eos_ids else tokenizer.pad_id
    return found


def job(workspace: Workspace, stages: Stages, algorithm: Algorithm) -> None:
    """`--config.job=export`: the newest policy, to `exported` in the run's directory."""
    del stages, algorithm
    write(workspace, "", workspace.directory / "exported")
