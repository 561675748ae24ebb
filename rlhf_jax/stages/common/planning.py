"""Plans for the RLHF stage of a run: its round and models as the planner sees them, and the search,
profiled or not.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from rlhf_jax.dataflow import calls_of
from rlhf_jax.devices import distributed, mesh
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import adapters
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.planner.api import Workload
from rlhf_jax.planner.costs import hardware, measure
from rlhf_jax.planner.costs.gold import Gold
from rlhf_jax.planner.costs.hardware import Hardware
from rlhf_jax.planner.costs.measured import MeasuredCostModel
from rlhf_jax.planner.costs.shapes import FULL, held_shape, model_shape
from rlhf_jax.planner.problem import Problem
from rlhf_jax.planner.search.search import Found
from rlhf_jax.records import ledger
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.rewards import learned
from rlhf_jax.runtime.program import Reward
from rlhf_jax.runtime.spec import ProgramSpec
from rlhf_jax.stages import rlhf
from rlhf_jax.stages.api import Lengths, Workspace
from rlhf_jax.stages.common import pretrained_models
from rlhf_jax.stages.settings.rlhf import Config, places
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.types import Algorithm, Plan

SEARCH, FIT = "search", "fit"  # values of the key `plan` that a run replaces by a plan's text
PROFILE = Path("runs/profile.json")
MAX_SEARCHES = 6
"""Searches among figures of which more are measured each time, until the best plan's are all
measured.
"""


def problem(
    config: Config,
    algorithm: Algorithm,
    lengths: Lengths,
    model: Model,
    reward_network: ValueModel | None,
    device: Hardware,
    num_devices: int,
    completion_lengths: Sequence[int] = (),
    lora: adapters.Config = FULL,
    published_reward: bool = False,
    gold: Gold | None = None,
) -> Problem:
    """The problem of a run.

    Args:
      reward_network: of a learned reward; None: the reward is no model.
      completion_lengths: as completions are drawn, EOS included; (): all have every token.
      lora: adapters of the models that the run trains.
      published_reward: True where the reward model is a published one, without an adapter.
      gold: a gold model that scores beside the rounds.
    """
    work = Workload(
        num_prompts=config.prompts_per_update * config.num_minibatches,
        samples_per_prompt=config.samples_per_prompt,
        prompt_tokens=lengths.max_prompt_tokens,
        completion_tokens=lengths.max_completion_tokens,
        completion_lengths=tuple(completion_lengths),
        rows_per_prompt=algorithm.rows_per_prompt(config.samples_per_prompt),
        num_minibatches=config.num_minibatches,
        num_epochs=config.num_epochs,
        lag=config.lag,
        sync_every=config.sync_every,
        staged=config.staged,
        inflight=config.weights == "inflight",
        pinned=config.weights == "pinned",
        loop=config.loop,  # type: ignore[arg-type]
        share_prompts=config.share_prompts,
        unit_rows=algorithm.unit_rows(config.samples_per_prompt),
        num_compactions=config.num_compactions,
        oversample=config.oversample,
    )
    critic = ValueModel(model) if reward_network is None else reward_network
    shapes = {
        "policy": model_shape(model, np.dtype(config.publish_dtype).itemsize, lora),
        "reference": held_shape(model, lora),
        "critic": model_shape(critic, lora=lora.on_published() if published_reward else lora),
        "reward": held_shape(critic, FULL if published_reward else lora),
    }
    return Problem(
        calls_of(algorithm, reward_network is not None),
        work,
        shapes,
        device,
        num_devices,
        gold=gold,
    )


def gold_beside(
    pretrained: pretrained_models.Config, stages: Stages, lengths: Lengths, on: mesh.Config
) -> Gold | None:
    """The gold model of a run as a plan needs it; None for a run without a pretrained one.

    Args:
      pretrained: names it.
      stages: the settings of every stage.
      lengths: of prompts and completions.
      on: the mesh of the run.

    Raises Refusal where neither its folder is here nor `pretrained.gold_shape` names its shape.
    """
    network = pretrained_models.gold_network(pretrained)
    if network is None:
        return None
    config, evaluate = stages.rlhf, stages.evaluate
    in_evaluation = evaluate.max_completion_tokens or lengths.max_completion_tokens
    updates = config.num_minibatches * config.num_epochs
    samples = config.num_minibatches * config.prompts_per_update * config.samples_per_prompt
    # A published classifier has no map to logits of its own.
    shape = held_shape(network)
    leaves = tuple(leaf for leaf in shape.leaves if leaf.place != "head")
    return Gold(
        shape=dataclasses.replace(shape, leaves=leaves),
        mesh=on,
        rows_per_batch=pretrained.gold_rows_per_batch,
        round_tokens=lengths.max_prompt_tokens + lengths.max_completion_tokens,
        evaluation_tokens=lengths.max_prompt_tokens + in_evaluation,
        rows_per_round=samples if config.ledger and config.ledger_gold else 0,
        rows_per_evaluation=evaluate.num_prompts_between * (evaluate.samples_per_prompt + 1),
        evaluations_per_round=min(1.0, updates / config.evaluate_every)
        if config.evaluate_every
        else 0.0,
    )


def gold_of_run(workspace: Workspace, stages: Stages) -> Gold | None:
    """`gold_beside` of a run, on one host.

    Args:
      workspace: of the run.
      stages: the settings of every stage.
    """
    on = mesh.Config(**workspace.mesh.shape)
    return gold_beside(workspace.pretrained, stages, workspace.lengths, on)


def drawn_lengths(directory: Path) -> tuple[int, ...]:
    """Lengths of a run's completions, from its ledger. Raises MissingInput where there is none."""
    path = directory / ledger.FILE
    if not path.exists():
        raise MissingInput(f"{path} is missing: lengths are read from the ledger of a run")
    return ledger.lengths(path)


def spec_of(workspace: Workspace, stages: Stages, algorithm: Algorithm) -> ProgramSpec:
    """The spec of a run with params of zeros: enough to time its calls.

    Args:
      workspace: of the run.
      stages: the settings of every stage.
      algorithm: of the RLHF stage.
    """
    reward = Reward(host=lambda samples: np.zeros(samples.tokens_BC.shape[0], np.float32))
    if stages.learned:
        network = workspace.reward_network
        lora = adapters.Config() if workspace.pretrained.reward_model else workspace.lora
        params = measure.zeros(network, lora)
        reward = Reward(learned.make(network), params, network)
    return rlhf.make_spec(
        workspace, stages.rlhf, algorithm, reward, measure.zeros(workspace.model, workspace.lora)
    )


def profiled(of: Problem, spec: ProgramSpec, path: Path | None) -> tuple[Found, MeasuredCostModel]:
    """The best plan by what was measured: what it calls for is measured and it is searched again,
    until all of it was.
    """
    profile = MeasuredCostModel(spec, of.formulas(), path)
    found = of.search(profile)
    for _ in range(MAX_SEARCHES - 1):
        if not profile.missing(of.calls, found.best.plan):
            break
        profile.measure(of.calls, found.best.plan)
        found = of.search(profile)
    return found, profile


def of_run(workspace: Workspace, stages: Stages, algorithm: Algorithm) -> Problem:
    """The problem of a run on the devices at hand. Raises Refusal for devices without figures."""
    network = workspace.reward_network if stages.learned else None
    device, num_devices = hardware.lookup(jax.devices()[0]), len(jax.devices())
    models = workspace.lengths, workspace.model, network
    of_devices = problem(
        stages.rlhf,
        algorithm,
        *models,
        device,
        num_devices,
        lora=workspace.lora,
        published_reward=bool(workspace.pretrained.reward_model),
        gold=gold_of_run(workspace, stages),
    )
    return dataclasses.replace(of_devices, hosts=1)


def check_memory(workspace: Workspace, stages: Stages, algorithm: Algorithm) -> list[str]:
    """Compares what the RLHF stage is expected to need with the memory of the devices at hand,
    where that is known.

    Returns a notice where the run's mesh is too small by the planner's formulas, which do not know
    how XLA schedules a program.

    Raises:
      Refusal: for a written plan that does not fit, and for states and params that stay which alone
        are too large.
    """
    if distributed.several() or not memory_is_known():
        # Several hosts: a placement is of one host's devices, the figures are of all; the program's
        # own check must do. Unknown devices: what does not fit is told when it is compiled.
        return []
    of = of_run(workspace, stages, algorithm)
    where = places(stages.rlhf, workspace.mesh, stages.plan)
    plan = Plan({call.name: where.placement(call.name) for call in of.calls})
    try:
        of.expected(plan)
    except Refusal as error:
        if stages.plan or of.resident_bytes(plan) > of.formulas().device_bytes:
            raise
        return [f"may not fit in memory: {error}"]
    return []


def memory_is_known() -> bool:
    """True where the table has the memory of the devices at hand, each its own."""
    try:
        return not hardware.lookup(jax.devices()[0]).shared_throughput
    except Refusal:
        return False


def fitted(workspace: Workspace, stages: Stages, algorithm: Algorithm) -> Plan:
    """The plan of a run whose `plan` is "fit": its own mesh, and each call cut so that it fits in
    the memory of the devices at hand; an empty one where that memory is not known, as on a CPU.

    Raises Refusal where nothing fits, with what would, or on several processes.
    """
    if distributed.several():
        raise Refusal(
            f'plan is {FIT!r} on {jax.process_count()} processes; accepted there: "" (every call '
            "on the run's mesh, in one part), or a plan's text"
        )
    if not memory_is_known():
        return Plan()
    trainer = places(stages.rlhf, workspace.mesh, "").placement("train_policy")
    try:
        return of_run(workspace, stages, algorithm).fit(trainer)
    except Refusal as error:
        raise Refusal(f'{error}. By formulas: --config.plan="" tries it all the same') from error


def for_run(workspace: Workspace, stages: Stages, algorithm: Algorithm) -> Found:
    """The plan of a run on the devices at hand: by what `experiments.plan --profile` measured, else
    by formulas.

    Raises Refusal for devices without figures, where nothing fits, or on several processes.
    """
    if distributed.several():
        raise Refusal(
            f"plan is 'search' on {jax.process_count()} processes; accepted there: a plan's text, "
            "the same slice of devices on "
            "every host (experiments.plan prints one)"
        )
    of = of_run(workspace, stages, algorithm)
    profile = MeasuredCostModel(spec_of(workspace, stages, algorithm), of.formulas(), PROFILE)
    return of.search(profile if profile.known else None)


def _searched(workspace: Workspace, stages: Stages, algorithm: Algorithm) -> Plan:
    return for_run(workspace, stages, algorithm).advised.plan


CHOSEN: Mapping[str, Callable[[Workspace, Stages, Algorithm], Plan]] = {
    SEARCH: _searched,
    FIT: fitted,
}
"""What chooses the plan of a run, by the value of its key `plan`."""
