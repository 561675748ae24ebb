"""Supervised fine-tuning: the policy learns the task's reference completions."""

import time
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from rlhf_jax.devices import distributed, sharding
from rlhf_jax.models.common.adapters import join
from rlhf_jax.ops.losses import cross_entropy_sum
from rlhf_jax.ops.masked import masked_count, masked_sum
from rlhf_jax.records.checkpoints import restore_params
from rlhf_jax.refusal import ComponentError
from rlhf_jax.run_directory import lock, stage_records
from rlhf_jax.runtime import activity
from rlhf_jax.stages.api import PromptStream, Workspace
from rlhf_jax.stages.common import pretrained_models
from rlhf_jax.stages.common.supervised import SupervisedStage
from rlhf_jax.stages.lora import base
from rlhf_jax.stages.settings.stages import SFTConfig as Config
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.text import encoding
from rlhf_jax.types import Algorithm, Array, Batch, Mean, Metrics, Outputs, Params, TrainState
from rlhf_jax.updating import (
    policy_objective,
)

STAGE = "sft"


def loss(outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
    """Negative log-likelihood summed over completion tokens.

    Args:
      outputs: log-probabilities and entropies `[R, C]`.
      batch: R rows.
    """
    tokens = masked_count(batch.mask_RC)
    return cross_entropy_sum(outputs.logprob_RC, batch.mask_RC), {
        "entropy": Mean(masked_sum(outputs.entropy_RC, batch.mask_RC), tokens)
    }


def rows(workspace: Workspace, stream: PromptStream, config: Config, update: int) -> Batch:
    """The rows of an update: consecutive prompts of the stream, each with one of its references,
    with the next one in the next epoch.

    Args:
      workspace: of the run.
      stream: of prompts.
      config: of the stage.
      update: its number, from 0.
    """
    start, count = update * config.rows_per_update, config.rows_per_update
    prompts = stream.prompts(start, count)
    epoch_length = workspace.task.num_prompts(stream.split)
    texts = stream.one_reference(
        start, [place // epoch_length for place in range(start, start + count)]
    )
    if None in texts:
        prompt = stream.texts(start + texts.index(None), 1)[0]
        raise ComponentError(
            f"the task {type(workspace.task).__name__} gives no reference for prompt "
            f"{prompt!r:.60}, which SFT is to learn; accepted: one text or more"
        )
    chosen = [text for text in texts if text is not None]
    length = workspace.lengths.max_completion_tokens
    last_R = np.asarray(prompts.tokens_PQ)[:, -1]  # prompts are left-padded
    tokens, mask = encoding.encode_completions(chosen, workspace.tokenizer, length, last_R)
    rows: tuple[Any, Any] = tokens, mask
    batch = Batch(prompts.tokens_PQ, prompts.mask_PQ, *rows, temperature=jnp.float32(1.0))
    return distributed.feed(batch, sharding.row_shardings(batch, workspace.mesh))


def supervised_stage(workspace: Workspace, config: Config) -> SupervisedStage:
    """The wiring of the stage."""
    return SupervisedStage(workspace, STAGE, "SFT", workspace.model, config)


def first_state(stage: SupervisedStage) -> TrainState:
    """The initial train state: on the params of `pretrained.base`, or on fresh ones."""
    workspace, shardings = stage.workspace, stage.shardings
    if workspace.lora.rank:
        fresh = distributed.compiled(stage.init_state, out_shardings=shardings)
        return fresh(base.begun(workspace))
    if not workspace.pretrained.base:
        fresh = distributed.compiled(
            lambda: stage.init_state(workspace.model.init(workspace.key("init"))),
            out_shardings=shardings,
        )
        return fresh()
    params = pretrained_models.load_policy(
        workspace.pretrained.base, workspace.model, workspace.mesh
    )
    return distributed.compiled(stage.init_state, donate_argnums=0, out_shardings=shardings)(params)


def run(workspace: Workspace, config: Config) -> Params:
    """Trains, or reads what an earlier run trained, `pretrained.sft` holds or another run has.

    Args:
      workspace: of the run.
      config: of the stage.

    Returns the SFT policy's params.
    """
    if workspace.begin is not None or workspace.pretrained.sft:
        return load(workspace)
    stage = supervised_stage(workspace, config)
    begin = stage.newest_state()
    if begin is not None and begin[0] == config.num_updates:
        return stage.params(begin[1])
    with lock.hold(workspace.directory):
        workspace.record(STAGE)
        base.keep(workspace)
        began = time.perf_counter()
        state = stage.train(
            begin,
            init=partial(first_state, stage),
            rows=partial(rows, workspace, workspace.stream("train", STAGE), config),
            objective=policy_objective(loss, workspace.model),
            aggregation="token",
        )
        workspace.metrics.write_timing(STAGE, activity.timings_since(began))
        return stage.params(state)


def load(workspace: Workspace) -> Params:
    """The params of a finished SFT stage, of `pretrained.sft`, or of the run that this one begins
    from: with adapters, on the base of the run.

    Raises MissingInput when it has not run, or not to its end.
    """
    if workspace.begin is not None and (workspace.source.lora.rank or not workspace.lora.rank):
        return load(workspace.source)
    if workspace.lora.rank and (workspace.begin is not None or workspace.pretrained.sft):
        return base.begun(workspace)
    if workspace.pretrained.sft:
        return pretrained_models.load_policy(
            workspace.pretrained.sft, workspace.model, workspace.mesh
        )
    stage_records.check_finished(workspace.directory, STAGE)
    abstract = base.abstract(workspace, workspace.model)
    trained = restore_params(workspace.directory / "checkpoints" / STAGE, abstract)[0]
    return join(trained, base.of(workspace))


def job(workspace: Workspace, stages: Stages, algorithm: Algorithm) -> None:
    """`--config.job=sft`: this stage alone."""
    del algorithm
    run(workspace, stages.sft)
