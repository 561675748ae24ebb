"""Reward model: learns from comparisons, beginning as the SFT model; then its origin and scale are
measured.
"""

import json
import time
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlhf_jax.devices import distributed, sharding
from rlhf_jax.models.common.adapters import join
from rlhf_jax.models.common.linear import reducing_gradients
from rlhf_jax.models.common.rounding import held, is_rounded
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.ops.losses import pairwise_logistic
from rlhf_jax.ops.once import bound
from rlhf_jax.records.checkpoints import restore_params
from rlhf_jax.records.jsonl import replace
from rlhf_jax.refusal import Refusal
from rlhf_jax.rewards import learned
from rlhf_jax.run_directory import lock, stage_records
from rlhf_jax.runtime import activity
from rlhf_jax.stages import comparisons as comparisons_stage
from rlhf_jax.stages import sft
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.common import pretrained_models
from rlhf_jax.stages.common.reward_unit import (
    STAGE,
    Standard,
    measure_standard,
    owner,
    read_standard,
    set_standard_aside,
    standard_path,
)
from rlhf_jax.stages.common.supervised import SupervisedStage
from rlhf_jax.stages.lora import base
from rlhf_jax.stages.settings.stages import RewardModelConfig as Config
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.types import Algorithm, Array, Mean, Metrics, Params, TrainState


@struct.dataclass
class Pairs:
    """Rows of comparisons, chosen then rejected."""

    tokens_RL: Array
    mask_RL: Array

    @property
    def mask_RC(self) -> Array:
        """The mask of rows, which the update counts."""
        return self.mask_RL


def objective(value_model: ValueModel, params: Params, rows: Pairs) -> tuple[Array, Metrics]:
    """Pairwise logistic loss summed over pairs, and the share of pairs that are ordered as
    labelled.

    Args:
      value_model: of the reward.
      params: of it.
      rows: of U pairs, chosen then rejected.
    """

    def of_params(params: Params, rows: Pairs) -> tuple[Array, Metrics]:
        score_R = learned.score_tokens(value_model, params, rows.tokens_RL, rows.mask_RL)
        margin_U = score_R[0::2] - score_R[1::2]
        count = jnp.float32(margin_U.shape[0])
        loss = pairwise_logistic(score_R[0::2], score_R[1::2]).sum()
        return loss, {
            "accuracy": Mean((margin_U > 0).sum(dtype=jnp.float32), count),
            "margin": Mean(margin_U.sum(), count),
        }

    return reducing_gradients(of_params, value_model)(params, rows)


def encode(workspace: Workspace, comparisons: list[comparisons_stage.Comparison]) -> Pairs:
    """Host arrays of `[2 * len(comparisons), Q + C]`."""
    prompt_tokens, prompt_mask, tokens, mask = comparisons_stage.encode(workspace, comparisons)
    joined = (
        np.concatenate([prompt_tokens, tokens], axis=1),
        np.concatenate([prompt_mask, mask], axis=1),
    )
    return Pairs(*joined)  # type: ignore[arg-type]


def place(pairs: Pairs, workspace: Workspace) -> Pairs:
    return distributed.feed(pairs, sharding.row_shardings(pairs, workspace.mesh))


def take(pairs: Pairs, order: np.ndarray) -> Pairs:
    """The pairs with these numbers."""
    rows = comparisons_stage.rows_of_pairs(order)
    return Pairs(pairs.tokens_RL[rows], pairs.mask_RL[rows])


def supervised_stage(workspace: Workspace, config: Config) -> SupervisedStage:
    """The wiring of the stage."""
    model, shown = workspace.value_model, ("loss", "accuracy")
    return SupervisedStage(workspace, STAGE, "Reward model", model, config, shown)


def heldout_accuracy(workspace: Workspace, params: Params, batch_pairs: int) -> float:
    """Share of held-out comparisons that the reward model orders as gold does.

    Args:
      workspace: of the run.
      params: of the reward model.
      batch_pairs: pairs that are scored at once.
    """
    comparisons = comparisons_stage.read(workspace, "heldout")
    if not comparisons:
        raise Refusal(
            f"{comparisons_stage.path(workspace, 'heldout')} has no comparison to measure the "
            "reward model on"
        )
    filled = comparisons + comparisons[:1] * (-len(comparisons) % batch_pairs)
    score = distributed.compiled(bound(learned.score_tokens, workspace.reward_network))
    margins = []
    for start in range(0, len(filled), batch_pairs):
        pairs = place(encode(workspace, filled[start : start + batch_pairs]), workspace)
        score_R = distributed.fetch(score(params, pairs.tokens_RL, pairs.mask_RL))
        margins.append(score_R[0::2] - score_R[1::2])
    return float((np.concatenate(margins)[: len(comparisons)] > 0).mean())


def needs_comparisons(workspace: Workspace) -> bool:
    """True where a reward model is trained here: none is published, and the run that this one
    begins from has none.
    """
    return not workspace.pretrained.reward_model and owner(workspace) is workspace


def run(workspace: Workspace, config: Config, sft_params: Params) -> None:
    """Trains the reward model and measures its unit, unless an earlier run did.

    Args:
      workspace: of the run.
      config: of the stage.
      sft_params: of the policy whose samples set the unit, held (`Workspace.held`) or not. The
        reward model begins from them in float32, and reads them again where they are rounded.
    """
    measured = distributed.agree(standard_path(owner(workspace)).exists())
    if measured and (workspace.pretrained.reward_model or owner(workspace) is not workspace):
        return
    if workspace.pretrained.reward_model:
        with lock.hold(workspace.directory):
            _measure_published(workspace, config, sft_params)
        return
    stage = supervised_stage(workspace, config)
    begin = stage.newest_state()
    if measured and begin is not None and begin[0] == config.num_updates:
        stage.checkpoints.close()
        return
    with lock.hold(workspace.directory):
        if measured:
            set_standard_aside(workspace, stage.checkpoints, config.num_updates)
        _train(stage, config, sft_params, begin)


def _measure_published(workspace: Workspace, config: Config, sft_params: Params) -> None:
    """Measures the unit of `pretrained.reward_model`."""
    began, network = time.perf_counter(), workspace.reward_network
    path = workspace.pretrained.reward_model
    params = held(network, pretrained_models.load_classifier(path, network, workspace.mesh))
    finish(workspace, config, params, sft_params, {}, began)


def _train(
    stage: SupervisedStage,
    config: Config,
    sft_params: Params,
    begin: tuple[int, TrainState] | None,
) -> None:
    """Makes the rest of the stage's updates, and measures the reward model and its unit."""
    workspace, began = stage.workspace, time.perf_counter()
    workspace.record(STAGE)
    pairs = encode(workspace, comparisons_stage.read(workspace, "train"))
    num_pairs, batch = pairs.tokens_RL.shape[0] // 2, config.pairs_per_update
    if num_pairs < batch:
        raise Refusal(
            f"{num_pairs} comparisons are fewer than reward_model.pairs_per_update = {batch} "
            "(pairs that the judge scores equal are left out); accepted: more comparisons "
            "(comparisons.num_train), a smaller batch, or a reward without a model, such as "
            "--config.reward=gold or exact_match"
        )
    head_key = workspace.key("value_head")
    first_state = distributed.compiled(
        lambda params: stage.init_state(
            workspace.value_model.init_from(jax.tree.map(jnp.copy, params), head_key)
        ),
        out_shardings=stage.shardings,
    )

    def init() -> TrainState:
        # Training begins in float32; what is held is rounded.
        return first_state(sft.load(workspace) if is_rounded(sft_params) else sft_params)

    def rows(update: int) -> Pairs:
        index_U = comparisons_stage.pairs_of_update(workspace.seed, num_pairs, batch, update)
        return place(take(pairs, index_U), workspace)

    state = stage.train(
        begin,
        init=init,
        rows=rows,
        objective=bound(objective, workspace.value_model),
        aggregation="pair",
        unit_rows=2,
    )
    params = held(workspace.reward_network, stage.params(state))
    del state  # what follows only scores: the optimizer is not kept for it
    accuracy = heldout_accuracy(workspace, params, batch)
    finish(workspace, config, params, sft_params, {"heldout_accuracy": accuracy}, began)


def finish(
    workspace: Workspace,
    config: Config,
    params: Params,
    sft_params: Params,
    figures: dict[str, float],
    began: float,
) -> None:
    """Measures the reward's unit, and writes it and the stage's figures.

    Args:
      workspace: of the run.
      config: of the stage.
      params: of the reward model, as they are held where no update changes them.
      sft_params: of the policy that samples.
      figures: of the stage that are known.
      began: seconds of `time.perf_counter`.
    """
    measured = measure_standard(workspace, params, sft_params, config.standardize_prompts)
    figures = figures | {"raw_mean": measured.mean, "raw_std": measured.std}
    workspace.metrics.write(
        "evaluate", config.num_updates, figures, time.perf_counter() - began, of=STAGE
    )
    workspace.metrics.write_timing(STAGE, activity.timings_since(began))
    standard = measured if config.standardize else Standard(0.0, 1.0)
    # The last file of the stage: with it and the last checkpoint the stage has ended.
    replace(standard_path(workspace), json.dumps(asdict(standard)).encode())
    distributed.barrier()


def load(workspace: Workspace) -> tuple[Params, Standard]:
    """Loads the results of a finished stage, here or in the run that this one begins from.

    Raises MissingInput when it has not run, or not to its end.
    """
    workspace = owner(workspace)
    standard = read_standard(workspace)
    if workspace.pretrained.reward_model:
        return pretrained_models.load_classifier(
            workspace.pretrained.reward_model, workspace.reward_network, workspace.mesh
        ), standard
    stage_records.check_finished(workspace.directory, STAGE)
    model = workspace.value_model
    trained, _ = restore_params(
        workspace.directory / "checkpoints" / STAGE, base.abstract(workspace, model)
    )
    return join(trained, base.rest(workspace, model)), standard


def reward_parts(workspace: Workspace) -> dict[str, Any]:
    """The parts of a `runtime.spec.Reward` that a finished stage gives: the model, its params as they
    are held where no update changes them, and its unit.

    Raises as `load`.
    """
    params, standard = load(workspace)
    network = workspace.reward_network
    return {
        "model": learned.make(network),
        "params": held(network, params),
        "network": network,
        "mean": standard.mean,
        "std": standard.std,
        "read": lambda: load(workspace)[0],
    }


def job(workspace: Workspace, stages: Stages, algorithm: Algorithm) -> None:
    """`--config.job=reward_model`: this stage alone, from the SFT policy of the run's directory or
    of `pretrained.sft`, and comparisons, which are made first where they are not there.
    """
    del algorithm
    sft_params = workspace.held(sft.load(workspace))
    if needs_comparisons(workspace):
        comparisons_stage.run(workspace, stages.comparisons, sft_params)
    run(workspace, stages.reward_model, sft_params)
