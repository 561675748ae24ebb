"""Offline DPO and IPO: the SFT policy learns from given comparisons, without samples or a reward
model.

Rafailov et al. 2023, *Direct Preference Optimization*, arXiv 2305.18290, eq. 7 ("sigmoid");
Azar et al. 2023, *A General Theoretical Paradigm*, arXiv 2310.12036, eq. 17 ("ipo").

    margin  = [S(chosen) − S_ref(chosen)] − [S(rejected) − S_ref(rejected)],   S(y) = Σ_t log π(y_t | x, y_<t)
    sigmoid   −(1 − ε) log σ(β · margin) − ε log σ(−β · margin)
    ipo       (margin − 1 / (2β))²

S sums over the completion's tokens, the EOS included, at temperature 1. TRL's "ipo" divides S by
the number of tokens, which IPO's paper does not; a β of TRL is then to be divided by about that
number. The reference is the SFT policy. Its log-probabilities are computed once, before the first
update.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlhf_jax.devices import distributed, sharding
from rlhf_jax.models.api import Model
from rlhf_jax.models.common.linear import reducing_gradients
from rlhf_jax.models.common.rounding import is_rounded
from rlhf_jax.ops import losses
from rlhf_jax.ops.masked import masked_count, masked_sum
from rlhf_jax.ops.once import bound
from rlhf_jax.ops.scalars import scaled
from rlhf_jax.records.samples import SamplesWriter
from rlhf_jax.refusal import Refusal
from rlhf_jax.report.html import write_report
from rlhf_jax.run_directory import lock
from rlhf_jax.runtime import activity
from rlhf_jax.scoring import policy_outputs
from rlhf_jax.stages import comparisons as comparisons_stage
from rlhf_jax.stages import rlhf, sft
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.common.evaluation_metrics import Figures
from rlhf_jax.stages.common.evaluator import Evaluator, kept
from rlhf_jax.stages.common.supervised import SupervisedStage
from rlhf_jax.stages.settings.stages import DPOConfig as Config
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.tasks.api import Split
from rlhf_jax.types import Algorithm, Array, Mean, Metrics, Outputs, Params, TrainState

STAGE = "dpo"
SCALARS = ("beta", "label_smoothing")
"""Fields of `Config` that are arguments of the compiled update: see `ops/scalars.py`."""


@struct.dataclass
class Pairs:
    """Rows of comparisons, chosen then rejected. `reference_R` is S_ref, float32 in nats."""

    prompt_tokens_RQ: Array
    prompt_mask_RQ: Array
    tokens_RC: Array
    mask_RC: Array
    reference_R: Array


def loss(outputs: Outputs, pairs: Pairs, config: Config) -> tuple[Array, Metrics]:
    """Sum of the loss over pairs, to be divided by their number; and metrics.

    `accuracy` is the share of margins above 0; one of exactly 0, as at the reference, counts ½.
    `chosen_reward` and `rejected_reward` are the implicit rewards β · (S − S_ref), `margin` is in
    nats and without β. `reference_kl_k1` is the mean of S_ref − S over completions: where these are
    samples of the reference, an estimate of its KL to the policy.

    Args:
      outputs: log-probabilities and entropies `[R, C]`.
      pairs: R rows.
      config: names the loss.
    """
    logprob_U2 = masked_sum(outputs.logprob_RC, pairs.mask_RC, dim=1).reshape(-1, 2)
    change_U2 = logprob_U2 - pairs.reference_R.reshape(-1, 2)
    margin_U = change_U2[:, 0] - change_U2[:, 1]
    num_pairs, num_tokens = jnp.float32(margin_U.shape[0]), masked_count(pairs.mask_RC)
    accurate = jnp.sum(0.5 + 0.5 * jnp.sign(margin_U))
    return jnp.sum(margin_loss(margin_U, config)), {
        "accuracy": Mean(accurate, num_pairs),
        "margin": Mean(jnp.sum(margin_U), num_pairs),
        "chosen_reward": Mean(config.beta * jnp.sum(change_U2[:, 0]), num_pairs),
        "rejected_reward": Mean(config.beta * jnp.sum(change_U2[:, 1]), num_pairs),
        "chosen_logprob": Mean(jnp.sum(logprob_U2[:, 0]), num_pairs),
        "rejected_logprob": Mean(jnp.sum(logprob_U2[:, 1]), num_pairs),
        "reference_kl_k1": Mean(-jnp.sum(change_U2), 2 * num_pairs),
        "entropy": Mean(masked_sum(outputs.entropy_RC, pairs.mask_RC), num_tokens),
    }


def margin_loss(margin_U: Array, config: Config) -> Array:
    """The loss of each pair, `[U]`.

    Args:
      margin_U: of U pairs, nats.
      config: names the loss.
    """
    if config.loss_type == "ipo":
        return losses.ipo(margin_U, config.beta)
    return losses.smoothed_dpo(margin_U, config.beta, config.label_smoothing)


def outputs_of(model: Model, params: Params, pairs: Pairs) -> Outputs:
    """Log-probabilities and entropies of the completions, `[R, C]`, at temperature 1.

    Args:
      model: of the policy.
      params: of the policy.
      pairs: R rows.
    """
    rows = (pairs.prompt_tokens_RQ, pairs.prompt_mask_RQ, pairs.tokens_RC, pairs.mask_RC)
    return policy_outputs(params, *rows, jnp.float32(1.0), model=model)


def objective(model: Model, config: Config, params: Params, pairs: Pairs) -> tuple[Array, Metrics]:
    """The loss summed over pairs, and metrics: see `loss`.

    Args:
      model: of the policy.
      config: names the loss.
      params: of the policy.
      pairs: of comparisons.
    """

    def of_params(params: Params, pairs: Pairs) -> tuple[Array, Metrics]:
        return loss(outputs_of(model, params, pairs), pairs, config)

    return reducing_gradients(of_params, model)(params, pairs)


def completion_logprobs(model: Model, params: Params, pairs: Pairs) -> Array:
    """S of every row, `[R]` in nats.

    Args:
      model: of the policy.
      params: of the policy.
      pairs: R rows; their reference is not read.
    """
    return masked_sum(outputs_of(model, params, pairs).logprob_RC, pairs.mask_RC, dim=1)


def encode(workspace: Workspace, comparisons: list[comparisons_stage.Comparison]) -> Pairs:
    """Host arrays of two rows for each comparison, with a reference of 0.

    Args:
      workspace: has the tokenizer and the lengths.
      comparisons: U of them, which become R = 2 U rows.
    """
    arrays = comparisons_stage.encode(workspace, comparisons)
    return Pairs(*arrays, np.zeros(2 * len(comparisons), np.float32))  # type: ignore[arg-type]


def take(pairs: Pairs, index_U: np.ndarray) -> Pairs:
    """The pairs with these numbers.

    Args:
      pairs: on the host.
      index_U: numbers of pairs.
    """
    rows = comparisons_stage.rows_of_pairs(index_U)
    return jax.tree.map(lambda array: array[rows], pairs)


@dataclass(frozen=True)
class Logprobs:
    """Computes S of host pairs in batches of one compiled shape."""

    workspace: Workspace
    batch_pairs: int

    @cached_property
    def _compiled(self) -> Callable[[Params, Pairs], Array]:
        function = bound(completion_logprobs, self.workspace.model)
        return distributed.compiled(sharding.keeping_rows(function, self.workspace.mesh))

    def __call__(self, params: Params, pairs: Pairs) -> np.ndarray:
        """S of every row on the host, `[R]` float32; collective.

        Args:
          params: of the policy.
          pairs: on the host.
        """
        params = self.workspace.held(params)  # one program for reference and policy
        count, batch, found = pairs.tokens_RC.shape[0] // 2, self.batch_pairs, []
        filled = np.concatenate([np.arange(count), np.zeros(-count % batch, np.int64)])
        with activity.at_work(f"log-probabilities of {count} comparisons"):
            for start in range(0, count, batch):
                placed = place(take(pairs, filled[start : start + batch]), self.workspace)
                found.append(np.asarray(distributed.fetch(self._compiled(params, placed))))
        return np.concatenate(found)[: 2 * count]


def place(pairs: Pairs, workspace: Workspace) -> Pairs:
    """Host pairs, sharded over the mesh of the run; collective.

    Args:
      pairs: on the host.
      workspace: of the run.
    """
    return distributed.feed(pairs, sharding.row_shardings(pairs, workspace.mesh))


def supervised_stage(workspace: Workspace, config: Config) -> SupervisedStage:
    """The wiring of the stage.

    Args:
      workspace: of the run.
      config: of the stage.
    """
    shown = ("loss", "accuracy", "margin")
    title = "IPO" if config.loss_type == "ipo" else "DPO"
    return SupervisedStage(workspace, STAGE, title, workspace.model, config, shown)


@dataclass(frozen=True)
class Heldout:
    """Held-out comparisons, on which a policy's implicit reward is measured."""

    pairs: Pairs  # on the host, with the reference's S
    logprobs: Logprobs
    config: Config

    def figures(self, params: Params) -> Figures:
        """Loss, accuracy and implicit rewards of a policy; collective."""
        logprob_U2 = self.logprobs(params, self.pairs).astype(np.float64).reshape(-1, 2)
        change_U2 = logprob_U2 - np.asarray(self.pairs.reference_R).reshape(-1, 2)
        margin_U = change_U2[:, 0] - change_U2[:, 1]
        accurate_U, beta = 0.5 + 0.5 * np.sign(margin_U), self.config.beta
        loss_U = margin_loss(jnp.asarray(margin_U, jnp.float32), self.config)
        return {
            "heldout_loss": float(loss_U.mean()),
            "heldout_accuracy": float(accurate_U.mean()),
            "heldout_accuracy_stderr": float(accurate_U.std() / np.sqrt(len(accurate_U))),
            "heldout_margin": float(margin_U.mean()),
            "heldout_chosen_reward": float(beta * change_U2[:, 0].mean()),
            "heldout_rejected_reward": float(beta * change_U2[:, 1].mean()),
            "heldout_chosen_logprob": float(logprob_U2[:, 0].mean()),
            "heldout_rejected_logprob": float(logprob_U2[:, 1].mean()),
        }


def order(seed: int, num_pairs: int, config: Config) -> np.ndarray:
    """The pairs of every update, `[num_updates, pairs_per_update]`: each epoch in an order of its
    own, without the pairs that do not fill a last update.

    Args:
      seed: of the run.
      num_pairs: that there are, at least `pairs_per_update`.
      config: of the stage.
    """
    batch = config.pairs_per_update
    return np.stack(
        [
            comparisons_stage.pairs_of_update(seed, num_pairs, batch, update)
            for update in range(config.num_updates)
        ]
    )


def evaluated_versions(config: Config) -> tuple[int, ...]:
    """The versions from 1 that are evaluated; the last one among them."""
    every = config.evaluate_every or config.num_updates
    return (*range(every, config.num_updates, every), config.num_updates)


def run(workspace: Workspace, stages: Stages, sft_params: Params) -> Params:
    """Trains, or reads what an earlier run trained.

    Args:
      workspace: of the run, whose comparisons are there.
      stages: the settings of every stage.
      sft_params: of the reference, held (`Workspace.held`) or not. The policy begins as the SFT
        policy unless the run begins from a version of another one.

    Returns the policy's params.

    Raises Refusal where there are too few comparisons.
    """
    config = settings(stages)
    stage = supervised_stage(workspace, config)
    begin = stage.newest_state()
    if begin is not None and begin[0] == config.num_updates:
        stage.checkpoints.close()
        return stage.params(begin[1])
    with lock.hold(workspace.directory):
        return _train(stage, config, stages, sft_params, begin)


def settings(stages: Stages) -> Config:
    """The settings of the stage. Raises Refusal where the config has no node for them."""
    if stages.dpo is None:
        raise Refusal(
            "the config has no node 'dpo', which job=dpo needs; accepted: "
            "config.dpo = build.node(dpo.Config()) in the config file, as in configs/offline_dpo.py"
        )
    return stages.dpo


def _train(
    stage: SupervisedStage,
    config: Config,
    stages: Stages,
    sft_params: Params,
    begin: tuple[int, TrainState] | None,
) -> Params:
    """The rest of the stage's updates and evaluations; see `run`. `begin` is the newest checkpoint."""
    workspace, began = stage.workspace, time.perf_counter()
    pairs = encode(workspace, _read(workspace, "train", config.pairs_per_update))
    heldout = encode(workspace, _read(workspace, "heldout", 1))
    workspace.record(STAGE)
    logprobs = Logprobs(workspace, config.pairs_per_update)
    reference_params = workspace.held(sft_params)
    index_NU = order(workspace.seed, pairs.tokens_RC.shape[0] // 2, config)
    pairs = _with_reference(pairs, np.unique(index_NU), logprobs, reference_params)
    count = heldout.tokens_RC.shape[0] // 2
    heldout = _with_reference(heldout, np.arange(count), logprobs, reference_params)
    measured = _Evaluations(
        workspace,
        Evaluator(workspace, stages.evaluate, reference_params),
        Heldout(heldout, logprobs, config),
        config.num_updates,
        began,
    )
    first_state = distributed.compiled(
        lambda params: stage.init_state(jax.tree.map(jnp.copy, params)),
        out_shardings=stage.shardings,
    )
    first_params = reference_params
    if begin is None:
        first_params = workspace.held(rlhf.first_policy(workspace, reference_params))

    def init() -> TrainState:
        # Training begins in float32; what is held is rounded.
        first = rlhf.first_policy(workspace, reference_params)
        return first_state(sft.load(workspace) if is_rounded(first) else first)

    def on_resume(update: int) -> None:
        # A version is evaluated before its checkpoint is written; version 0 has no checkpoint.
        workspace.metrics.resume(STAGE, update, update + 1 if update else 0)
        measured.samples.resume(STAGE, update)
        if not update:
            measured.evaluate(first_params, 0)

    state = stage.train(
        begin,
        init=init,
        rows=lambda update: place(take(pairs, index_NU[update]), workspace),
        objective=scaled(partial(partial, objective, workspace.model), config, SCALARS),
        aggregation="pair",
        unit_rows=2,
        on_resume=on_resume,
        evaluate=lambda version, state: measured.evaluate(stage.params(state), version),
        evaluate_at=evaluated_versions(config),
    )
    workspace.metrics.write_timing(STAGE, activity.timings_since(began) | measured.seconds)
    return stage.params(state)


def _read(workspace: Workspace, split: Split, least: int) -> list[comparisons_stage.Comparison]:
    """The comparisons of a split. Raises Refusal for fewer than `least`."""
    found = comparisons_stage.read(workspace, split)
    if len(found) < least:
        needed = "dpo.pairs_per_update" if split == "train" else "one, to measure the policy on"
        raise Refusal(
            f"{comparisons_stage.path(workspace, split)} has {len(found)} comparisons (pairs that "
            f"the judge scores equal are left out); accepted: at least {least} ({needed})"
        )
    return found


def _with_reference(
    pairs: Pairs, used_U: np.ndarray, logprobs: Logprobs, reference_params: Params
) -> Pairs:
    """The pairs with the reference's S where it is used. It is a function of the pairs and of the
    schedule alone, so that a resumed run computes the same bits.
    """
    reference_R = np.zeros_like(pairs.reference_R)
    rows = comparisons_stage.rows_of_pairs(used_U)
    reference_R[rows] = logprobs(reference_params, take(pairs, used_U))
    return pairs.replace(reference_R=reference_R)  # type: ignore[attr-defined]


@dataclass
class _Evaluations:
    """Evaluates versions of the policy, and writes the figures and some completions."""

    workspace: Workspace
    evaluator: Evaluator
    heldout: Heldout
    num_updates: int
    began: float  # seconds of `time.perf_counter`
    seconds: dict[str, float] = field(default_factory=lambda: {"evaluate_seconds": 0.0})

    @cached_property
    def samples(self) -> SamplesWriter:
        """Writes completions of the first and the last version."""
        return SamplesWriter(self.workspace.directory)

    def evaluate(self, params: Params, version: int) -> None:
        """On all prompts and with completions for the first and the last version; collective.

        Args:
          params: of the policy.
          version: updates that made them.
        """
        began, full = time.perf_counter(), version in (0, self.num_updates)
        config = self.evaluator.config
        num_prompts = config.num_prompts if full else config.num_prompts_between
        with activity.at_work(f"the evaluation of version {version}"):
            figures, judged = self.evaluator.evaluate(params, num_prompts)
            figures |= self.heldout.figures(params)
        now = time.perf_counter()
        self.seconds["evaluate_seconds"] += activity.seconds_without_compiling(began, now)
        self.workspace.metrics.write("evaluate", version, figures, now - self.began, of=STAGE)
        if full:
            kind = "after" if version else "before"
            self.samples.write(STAGE, version, kind, kept(judged, config))


def job(workspace: Workspace, stages: Stages, algorithm: Algorithm) -> None:
    """`--config.job=dpo`: the SFT policy and the comparisons where they are not there yet, this
    stage, and the report.

    Args:
      workspace: of the run.
      stages: the settings of every stage.
      algorithm: of RLHF, which this job does not use.
    """
    del algorithm
    sft_params = workspace.held(sft.run(workspace, stages.sft))
    comparisons_stage.run(workspace, stages.comparisons, sft_params)
    run(workspace, stages, sft_params)
    workspace.metrics.close()
    if distributed.is_first():
        print(f"report: {write_report(workspace.directory)}")
