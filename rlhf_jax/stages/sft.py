"""Supervised fine-tuning: the policy learns the task's reference completions."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import Count, Fraction, Natural
from rlhf_jax.devices import distributed, sharding
from rlhf_jax.ops.losses import cross_entropy_sum
from rlhf_jax.ops.masked import masked_count, masked_sum
from rlhf_jax.records.checkpoints import Checkpoints, restore_params
from rlhf_jax.records.progress import progress
from rlhf_jax.refusal import ComponentError
from rlhf_jax.run_directory import lock, made
from rlhf_jax.runtime.supervised import resumed, train
from rlhf_jax.stages.api import PromptStream, Workspace
from rlhf_jax.stages.common import pretrained_models
from rlhf_jax.text import encoding
from rlhf_jax.types import Algorithm, Array, Batch, Mean, Metrics, Outputs, Params, TrainState
from rlhf_jax.updating import (
    OptimizerConfig,
    init_state,
    make_optimizer,
    policy_objective,
    train_step,
)

STAGE = "sft"


@dataclass(frozen=True)
class Config:
    """Supervised fine-tuning on prompt and reference; the loss is on the completion's tokens, the
    EOS included.
    """

    num_updates: Count = 300
    rows_per_update: Count = 64
    num_micro_batches: Count = 1
    checkpoint_every: Natural = 100  # updates; 0: only at the end
    min_whole_references: Fraction = (
        0.05  # share that must keep their EOS within lengths.max_completion_tokens
    )
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=3e-3, schedule="cosine")
    )


def loss(outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
    """Negative log-likelihood summed over completion tokens."""
    tokens = masked_count(batch.mask_RC)
    return cross_entropy_sum(outputs.logprob_RC, batch.mask_RC), {
        "entropy": Mean(masked_sum(outputs.entropy_RC, batch.mask_RC), tokens)
    }


def rows(workspace: Workspace, stream: PromptStream, config: Config, update: int) -> Batch:
    """The rows of an update: consecutive prompts of the stream, each with one of its references in
    turn.
    """
    start, count = update * config.rows_per_update, config.rows_per_update
    prompts = stream.prompts(start, count)
    epoch_length = workspace.task.num_prompts(stream.split)
    of_prompts = stream.references(start, count)
    if not all(of_prompts):
        place = start + of_prompts.index(())
        raise ComponentError(
            f"the task {type(workspace.task).__name__} gives no reference for prompt "
            f"{stream.texts(place, 1)[0]!r:.60}, which "
            "SFT is to learn; accepted: one text or more"
        )
    chosen = [
        references[(start + row) // epoch_length % len(references)]
        for row, references in enumerate(of_prompts)
    ]
    length = workspace.lengths.max_completion_tokens
    last_R = np.asarray(prompts.tokens_PQ)[:, -1]  # prompts are left-padded
    tokens, mask = encoding.encode_completions(chosen, workspace.tokenizer, length, last_R)
    rows: tuple[Any, Any] = tokens, mask
    batch: Any = Batch(prompts.tokens_PQ, prompts.mask_PQ, *rows, temperature=jnp.float32(1.0))
    return distributed.feed(batch, sharding.row_shardings(batch, workspace.mesh))


def state_layout(workspace: Workspace, config: Config) -> tuple[Any, TrainState, TrainState]:
    """The optimizer, the shapes of the state, and its shardings."""
    optimizer = make_optimizer(config.optimizer, config.num_updates)
    shapes = jax.eval_shape(
        lambda key: init_state(workspace.model.init(key), optimizer), workspace.key("init")
    )
    return (
        optimizer,
        shapes,
        sharding.state_shardings(workspace.model, shapes, optimizer, workspace.mesh),
    )


def first_state(
    workspace: Workspace, optimizer: Any, shardings: TrainState
) -> Callable[[], TrainState]:
    """A function that makes the initial train state: on the params of `pretrained.base`, or on
    fresh ones.
    """
    make = partial(init_state, optimizer=optimizer)
    if not workspace.pretrained.base:
        return distributed.compiled(
            lambda: make(workspace.model.init(workspace.key("init"))), out_shardings=shardings
        )

    def published() -> TrainState:
        params = pretrained_models.load_policy(
            workspace.pretrained.base, workspace.model, workspace.mesh
        )
        return distributed.compiled(make, donate_argnums=0, out_shardings=shardings)(params)

    return published


def run(workspace: Workspace, config: Config) -> Params:
    """Trains, or reads what an earlier run trained, `pretrained.sft` holds or another run has.
    Returns the SFT policy's params.
    """
    if workspace.begin is not None or workspace.pretrained.sft:
        return load(workspace)
    checkpoints = workspace.checkpoints(STAGE)
    optimizer, shapes, shardings = state_layout(workspace, config)
    begin = resumed(checkpoints, shapes, shardings, config.num_updates)
    if begin is not None and begin[0] == config.num_updates:
        return begin[1].params
    with lock.hold(workspace.directory):
        workspace.record(STAGE)
        return _train(workspace, config, checkpoints, begin, optimizer, shardings)


def _train(
    workspace: Workspace,
    config: Config,
    checkpoints: Checkpoints,
    begin: Any,
    optimizer: Any,
    shardings: TrainState,
) -> Params:
    """The rest of the stage's updates. Returns the SFT policy's params."""
    began = time.perf_counter()
    everywhere = sharding.replicated(workspace.mesh)
    step = partial(
        train_step,
        objective=policy_objective(loss, workspace.model),
        optimizer=optimizer,
        aggregation="token",
        num_micro_batches=config.num_micro_batches,
    )
    stream = workspace.stream("train", STAGE)
    with progress("SFT", total=config.num_updates, start=begin[0] if begin else 0) as bar:

        def report(update: int, metrics: Metrics) -> None:
            values = {name: metric.value() for name, metric in metrics.items()}
            workspace.metrics.write(STAGE, update, values, time.perf_counter() - began)
            bar.advance(1, loss=values["loss"])

        state = train(
            begin=begin,
            init=first_state(workspace, optimizer, shardings),
            step=distributed.compiled(
                sharding.keeping_rows(step, workspace.mesh),
                donate_argnums=0,
                out_shardings=(shardings, everywhere),
            ),
            rows=partial(rows, workspace, stream, config),
            num_updates=config.num_updates,
            checkpoints=checkpoints,
            checkpoint_every=config.checkpoint_every or config.num_updates,
            on_resume=lambda update: workspace.metrics.resume(STAGE, update),
            report=report,
        )
    checkpoints.close()
    workspace.metrics.write_timing(STAGE, {"wall_seconds": time.perf_counter() - began})
    return state.params


def load(workspace: Workspace) -> Params:
    """The params of a finished SFT stage, of `pretrained.sft`, or of the run that this one begins
    from.

    Raises MissingInput when it has not run, or not to its end.
    """
    if workspace.begin is not None:
        return load(workspace.source)
    if workspace.pretrained.sft:
        return pretrained_models.load_policy(
            workspace.pretrained.sft, workspace.model, workspace.mesh
        )
    made.check_finished(workspace.directory, STAGE)
    abstract = sharding.abstract_params(workspace.model, workspace.mesh)
    return restore_params(workspace.directory / "checkpoints" / STAGE, abstract)[0]


def job(workspace: Workspace, stages: Any, algorithm: Algorithm) -> None:
    """`--config.job=sft`: this stage alone."""
    del algorithm
    run(workspace, stages.sft)
