"""A planning problem: a round, the shapes of its models and the devices, with the searches for a plan
and what is expected of one.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rlhf_jax.dataflow import Call, Loop
from rlhf_jax.devices.placement import OTHERS
from rlhf_jax.planner.api import CostModel, Versions, Workload
from rlhf_jax.planner.costs.analytic import AnalyticCostModel
from rlhf_jax.planner.costs.gold import Gold, Seconds, beside
from rlhf_jax.planner.costs.hardware import Hardware
from rlhf_jax.planner.costs.hosts import OnEveryHost
from rlhf_jax.planner.costs.shapes import Shape
from rlhf_jax.planner.options import num_hosts, option
from rlhf_jax.planner.search.fit import fit
from rlhf_jax.planner.search.search import Candidate, Found, search
from rlhf_jax.planner.simulation import plan_memory
from rlhf_jax.planner.simulation.simulate import simulate
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Placement, Plan


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
    copy_hosts: int = 1  # of them, those that share a copy of the params
    gold: Gold | None = None  # a gold model that scores beside the rounds

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
        assert isinstance(costs, AnalyticCostModel)  # nothing is measured on several hosts
        return self._on_every_host(costs)

    def _on_every_host(self, costs: AnalyticCostModel) -> OnEveryHost:
        return OnEveryHost(costs, self.num_hosts, self.devices_of_host, self.copy_hosts)

    def placed_costs(self) -> AnalyticCostModel | OnEveryHost:
        """Costs by formulas of placements on one host's devices, as plans name them."""
        costs = self.formulas()
        return costs if self.num_hosts == 1 else self._on_every_host(costs)

    @property
    def _costs_of(self) -> Callable[[int], CostModel] | None:
        """Costs of another number of devices, on one host."""
        return self.formulas if self.num_hosts == 1 else None

    def formulas(self, num_devices: int | None = None) -> AnalyticCostModel:
        """Costs by formulas, of these devices or another number of them, beside a gold model."""
        costs = AnalyticCostModel(
            self.hardware, num_devices or self.num_devices, self.shapes, self.work
        )
        return costs if self.gold is None else beside(costs, self.gold, self.num_hosts)

    def gold_seconds(self) -> Seconds:
        """Seconds in which gold scores, which no plan changes."""
        assert self.gold is not None
        return self.gold.seconds(self.hardware, self.num_devices, self.num_hosts)

    @contextlib.contextmanager
    def _naming_gold(self) -> Iterator[None]:
        """Has a Refusal say first what the gold model takes of each device."""
        try:
            yield
        except Refusal as error:
            if self.gold is None:
                raise
            costs = self.formulas()
            raise Refusal(
                f"the gold model takes {plan_memory.gigabytes(costs.held_bytes)} of each device, "
                f"and {plan_memory.gigabytes(costs.scoring_bytes)} while it scores "
                f"{self.gold.rows_per_batch} rows (pretrained.gold_rows_per_batch); in what it "
                f"leaves {error}"
            ) from error

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
        with self._naming_gold():
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
        with self._naming_gold():
            return fit(self.calls, costs, self.work, trainer, per_host, self._costs_of)

    def expected(self, plan: Plan, default: Placement | None = None) -> Candidate:
        """Simulates a plan that was written by hand; `default` places the calls that it does not
        name.

        Raises Refusal that names the call which does not fit, by how much, and what would fit.
        """
        costs, num_devices = self._of_hosts(self.formulas()), self.devices_of_host
        with self._naming_gold():
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
        """Bytes that stay on the fullest device while a plan runs: states, params, and the versions of
        them that an update finds.
        """
        costs, held = self._of_hosts(self.formulas()), self.work.versions.in_training
        chosen = [option(call, costs, plan.placements[call.name]) for call in self.calls]
        kept = [dataclasses.replace(of, working_bytes=0.0) for of in chosen]
        versions = Versions(held, held)
        return max(plan_memory.by_device(self.calls, kept, versions, self.devices_of_host))

    def further_bytes(self, call: Call, placement: Placement) -> float:
        """Bytes of published versions that a device holds while a call runs, and not while a round is
        trained on: those of sampling.

        Args:
          call: of the round.
          placement: of the call.
        """
        version = self._of_hosts(self.formulas()).params_bytes(call.role, placement)
        return self.work.versions.working_bytes(call, 0.0, version)


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
