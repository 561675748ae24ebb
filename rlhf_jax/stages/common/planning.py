"""Plans for the RLHF stage of a run: its round and models as the planner sees them, and the search,
profiled or not.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from rlhf_jax.dataflow import Call, Loop, calls_of
from rlhf_jax.devices import distributed
from rlhf_jax.devices.placement import OTHERS
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import adapters
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.planner.api import CostModel, Workload
from rlhf_jax.planner.costs import hardware, measure
from rlhf_jax.planner.costs.analytic import AnalyticCostModel
from rlhf_jax.planner.costs.hardware import Hardware
from rlhf_jax.planner.costs.hosts import OnEveryHost
from rlhf_jax.planner.costs.measured import MeasuredCostModel
from rlhf_jax.planner.costs.shapes import FULL, Shape, held_shape, model_shape
from rlhf_jax.planner.options import num_hosts, option
from rlhf_jax.planner.search.fit import fit
from rlhf_jax.planner.search.search import Candidate, Found, search
from rlhf_jax.planner.simulation import plan_memory
from rlhf_jax.planner.simulation.simulate import simulate
from rlhf_jax.records import ledger
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.rewards import learned
from rlhf_jax.runtime.program import Reward
from rlhf_jax.runtime.spec import ProgramSpec
from rlhf_jax.stages import rlhf
from rlhf_jax.stages.api import Lengths, Workspace
from rlhf_jax.stages.settings.rlhf import Config, places
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.types import Algorithm, Placement, Plan

SEARCH, FIT = "search", "fit"  # values of the key `plan` that a run replaces by a plan's text
PROFILE = Path("runs/profile.json")
MAX_SEARCHES = 6
"""Searches among figures of which more are measured each time, until the best plan's are all
measured.
"""


@dataclass(frozen=True)
class Problem:
    """A planning problem: the calls of a round, its workload, the roles' shapes, and the devices.

    Devices that fill several hosts are planned as a run takes them: a placement is the same slice of
    one host's devices on every host.
    """

    calls: tuple[Call, ...]
    work: Workload
    shapes: Mapping[str, Shape]
    hardware: Hardware
    num_devices: int
    hosts: int = 0  # processes that share the devices; 0: as many as the hardware's hosts

    @property
    def devices_per_host(self) -> int:
        return min(self.hardware.devices_per_host, self.num_devices)

    @property
    def num_hosts(self) -> int:
        """Hosts that the devices fill. Raises Refusal if the devices are not whole hosts."""
        return self.hosts or num_hosts(self.num_devices, self.devices_per_host)

    @property
    def devices_of_host(self) -> int:
        """Devices that a placement may name."""
        return self.num_devices // self.num_hosts

    def _of_hosts(self, costs: CostModel) -> CostModel:
        """Costs of placements on one host's devices, which every host has alike."""
        if self.num_hosts == 1:
            return costs
        return OnEveryHost(costs, self.num_hosts, self.devices_of_host)

    @property
    def _costs_of(self) -> Callable[[int], CostModel] | None:
        """Costs of another number of devices, on one host."""
        return self.formulas if self.num_hosts == 1 else None

    def formulas(self, num_devices: int | None = None) -> AnalyticCostModel:
        """Costs by formulas, of these devices or another number of them."""
        return AnalyticCostModel(
            self.hardware, num_devices or self.num_devices, self.shapes, self.work
        )

    def with_loop(self, loop: Loop, lag: int) -> "Problem":
        """The same round in another loop.

        Args:
          loop: "synchronous" or "asynchronous".
          lag: rounds.
        """
        return dataclasses.replace(self, work=dataclasses.replace(self.work, loop=loop, lag=lag))

    def search(self, costs: CostModel | None = None) -> Found:
        """The best plan by costs, by formulas if none are given.

        Raises Refusal where nothing fits, with what would.
        """
        return search(
            self.calls,
            self._of_hosts(costs or self.formulas()),
            self.work,
            self.devices_of_host,
            self.devices_per_host,
            costs_of=self._costs_of,
        )

    def fit(self, trainer: Placement) -> Plan:
        """The fastest plan that fits in which every call is on the trainer's devices and training
        keeps its mesh.

        Raises Refusal where nothing fits, with what would.
        """
        per_host = min(self.devices_per_host, len(trainer.devices))
        costs = self._of_hosts(self.formulas())
        return fit(self.calls, costs, self.work, trainer, per_host, self._costs_of)

    def expected(self, plan: Plan, default: Placement | None = None) -> Candidate:
        """Simulates a plan that was written by hand; `default` places the calls that it does not
        name.

        Raises Refusal that names the call which does not fit, by how much, and what would fit.
        """
        costs, num_devices = self._of_hosts(self.formulas()), self.devices_of_host
        whole = plan_memory.check(
            named(plan, self.calls),
            self.calls,
            costs,
            self.work,
            num_devices,
            self.devices_per_host,
            default,
        )
        return Candidate(whole, simulate(self.calls, whole, costs, self.work, num_devices))

    def resident_bytes(self, plan: Plan) -> float:
        """Bytes that stay on the fullest device while a plan runs: states, params, and versions of
        them.
        """
        costs = self._of_hosts(self.formulas())
        chosen = [option(call, costs, plan.placements[call.name]) for call in self.calls]
        kept = [dataclasses.replace(of, working_bytes=0.0) for of in chosen]
        return max(
            plan_memory.by_device(self.calls, kept, self.work.live_versions, self.devices_of_host)
        )


def named(plan: Plan, calls: Sequence[Call]) -> Plan:
    """A plan without what it says of calls that this round does not have, its entry for all others
    spelled out.

    Args:
      plan: a placement by the name of a call.
      calls: of a round.
    """
    placements = dict(plan.placements)
    others = placements.pop(OTHERS, None)
    found = {call.name: placements.get(call.name, others) for call in calls}
    return Plan({name: placement for name, placement in found.items() if placement is not None})


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
) -> Problem:
    """The problem of a run.

    Args:
      reward_network: of a learned reward; None: the reward is no model.
      completion_lengths: as completions are drawn, EOS included; (): all have every token.
      lora: adapters of the models that the run trains.
      published_reward: True where the reward model is a published one, without an adapter.
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
        loop=config.loop,  # type: ignore[arg-type]
        share_prompts=config.share_prompts,
        num_compactions=config.num_compactions,
        oversample=config.oversample,
    )
    critic = ValueModel(model) if reward_network is None else reward_network
    shapes = {
        "policy": model_shape(model, np.dtype(config.publish_dtype).itemsize, lora),
        "reference": held_shape(model, lora),
        "critic": model_shape(critic, lora=lora),
        "reward": held_shape(critic, FULL if published_reward else lora),
    }
    return Problem(
        calls_of(algorithm, reward_network is not None), work, shapes, device, num_devices
    )


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
