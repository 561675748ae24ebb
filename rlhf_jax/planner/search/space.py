"""The plans that a search chooses from: an option of every call by its number, the seconds of a
choice, and whether it fits.
"""

from collections.abc import Callable, Sequence

from rlhf_jax.dataflow import Call
from rlhf_jax.planner.api import CostModel, Workload
from rlhf_jax.planner.options import MICRO_BATCHES, Option, options
from rlhf_jax.planner.simulation import plan_memory, steady_state
from rlhf_jax.planner.simulation.graph import Dataflow
from rlhf_jax.types import Placement, Plan

Choice = tuple[int, ...]
"""The number of an option for every call."""


class Space:
    """The options of every call, and what choices of them cost.

    The best of the choices that were asked for are kept.
    """

    def __init__(
        self,
        calls: Sequence[Call],
        costs: CostModel,
        work: Workload,
        num_devices: int,
        devices_per_host: int,
        micro_batches: Sequence[int] = MICRO_BATCHES,
        accepted: Callable[[Call, Placement], bool] | None = None,
    ):
        """Lists the options; `accepted` is that of `options.options`."""
        self.calls, self.costs, self.work = tuple(calls), costs, work
        self.num_devices, self.devices_per_host = num_devices, devices_per_host
        self.flow = Dataflow(calls, costs, work)
        self.options = [
            options(call, costs, num_devices, devices_per_host, micro_batches, accepted)
            for call in calls
        ]
        self.versions = work.versions
        self.evaluations = 0
        self._by_slice = [_grouped(options_of_call) for options_of_call in self.options]
        self._seconds: dict[Choice, float] = {}
        self._best: dict[tuple[int, ...], tuple[float, Choice]] = {}

    def slices(self, index: int) -> dict[tuple[int, int], list[int]]:
        """Numbers of a call's options by where their slice begins and its size, the fastest option
        first.
        """
        return self._by_slice[index]

    def chosen(self, choice: Choice) -> list[Option]:
        """The options themselves."""
        return [
            options_of_call[number]
            for options_of_call, number in zip(self.options, choice, strict=True)
        ]

    def plan(self, choice: Choice) -> Plan:
        """The placements by the names of the calls."""
        return Plan(
            {
                call.name: option.placement
                for call, option in zip(self.calls, self.chosen(choice), strict=True)
            }
        )

    def seconds(self, choice: Choice) -> float:
        """Seconds of a round. The choices must fit in memory, since the best are kept as plans."""
        if choice not in self._seconds:
            self.evaluations += 1
            seconds_per_round = steady_state.seconds_per_round(
                self.flow, self.flow.round(self.chosen(choice))
            )
            self._seconds[choice] = seconds_per_round
            self._keep(choice, seconds_per_round)
        return self._seconds[choice]

    def excess(self, choice: Choice) -> float:
        """Bytes that the fullest device would hold too many; what fits is 0 or less.

        The devices of an option are consecutive, so the fullest one is where some call's slice
        begins.
        """
        chosen = self.chosen(choice)
        layouts = [self.flow.layout_of(option) for option in chosen]
        stays = self._stays(chosen, [layout for layout, _ in layouts])
        most = 0.0
        for begin in {option.placement.devices[0] for option in chosen}:
            resident = working = 0.0
            for index, (option, (_, mask)) in enumerate(zip(chosen, layouts, strict=True)):
                if mask >> begin & 1:
                    resident += stays[index]
                    working = max(working, self.working_bytes(index, option))
            most = max(most, resident + working)
        return most - self.costs.device_bytes

    def working_bytes(self, index: int, option: Option) -> float:
        """Bytes that an option of a call needs while it runs, beside those that stay."""
        return plan_memory.working_bytes(self.calls[index], option, self.versions)

    def _stays(self, chosen: Sequence[Option], layouts: Sequence[int]) -> list[float]:
        """Bytes that stay on a device (`plan_memory.resident_by_call`), by indices of options."""
        resident = []
        for index, (call, option) in enumerate(zip(self.calls, chosen, strict=True)):
            if call.kind == "infer":
                same = [
                    earlier
                    for earlier, other_call in enumerate(self.calls)
                    if other_call.role == call.role
                    and (
                        other_call.kind == "train"
                        or (other_call.kind == "infer" and earlier < index)
                    )
                ]
                resident.append(
                    0.0
                    if any(layouts[earlier] == layouts[index] for earlier in same)
                    else option.resident_bytes
                )
            else:
                resident.append(
                    option.resident_bytes
                    * (self.versions.in_training if call.kind == "generate" else 1)
                )
        return resident

    def best(self) -> list[tuple[float, Choice]]:
        """The choices that were asked for, fastest first.

        Among choices that give every call the same number of devices, only one is kept.
        """
        return sorted(self._best.values())

    def _keep(self, choice: Choice, seconds: float) -> None:
        key = tuple(len(option.placement.devices) for option in self.chosen(choice))
        if key not in self._best or seconds < self._best[key][0]:
            self._best[key] = seconds, choice

    def default(self) -> Choice | None:
        """Every call on all devices, with the one mesh that is the fastest for all; None where none
        fits.
        """
        fitting: list[tuple[float, Choice]] = []
        whole = (0, self.num_devices)
        shapes = {self.options[0][n].placement.mesh_shape for n in self.slices(0).get(whole, ())}
        for shape in sorted(shapes):
            numbers = [
                [
                    n
                    for n in self.slices(index).get(whole, ())
                    if self.options[index][n].placement.mesh_shape == shape
                ]
                for index in range(len(self.calls))
            ]
            if choice := self._fastest_that_fits(numbers):
                fitting.append((self.seconds(choice), choice))
        return min(fitting)[1] if fitting else None

    def _fastest_that_fits(self, numbers: Sequence[Sequence[int]]) -> Choice | None:
        """The fastest options that fit, of calls on the same devices and mesh: what each keeps does
        not depend on its option.
        """
        if not all(numbers):
            return None
        first = tuple(candidates[0] for candidates in numbers)
        layouts = [self.flow.layout_of(option)[0] for option in self.chosen(first)]
        left = self.costs.device_bytes - sum(self._stays(self.chosen(first), layouts))
        picked = [
            next(
                (
                    n
                    for n in candidates
                    if self.working_bytes(index, self.options[index][n]) <= left
                ),
                None,
            )
            for index, candidates in enumerate(numbers)
        ]
        return None if None in picked else tuple(n for n in picked if n is not None)


def _grouped(options_of_call: Sequence[Option]) -> dict[tuple[int, int], list[int]]:
    groups: dict[tuple[int, int], list[int]] = {}
    for number, option in enumerate(options_of_call):
        groups.setdefault((option.placement.devices[0], len(option.placement.devices)), []).append(
            number
        )
    for numbers in groups.values():
        numbers.sort(key=lambda number: (options_of_call[number].seconds, number))
    return groups
