"""The plans that a search chooses from: an option of every call by its number, the seconds of a
choice, and whether it fits.
"""

from collections.abc import Sequence

from rlhf_jax.dataflow import Call
from rlhf_jax.planner.api import CostModel, Workload
from rlhf_jax.planner.options import MICRO_BATCHES, Option, options
from rlhf_jax.planner.simulation import steady_state
from rlhf_jax.planner.simulation.graph import Dataflow
from rlhf_jax.types import Plan

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
    ):
        self.calls, self.costs, self.work = tuple(calls), costs, work
        self.num_devices, self.devices_per_host = num_devices, devices_per_host
        self.flow = Dataflow(calls, costs, work)
        self.options = [
            options(call, costs, num_devices, devices_per_host, micro_batches) for call in calls
        ]
        self.versions = work.live_versions
        self.evaluations = 0
        self._by_slice = [_grouped(found) for found in self.options]
        self._held: dict[Choice, float] = {}
        self._kept: dict[tuple[int, ...], tuple[float, Choice]] = {}

    def slices(self, index: int) -> dict[tuple[int, int], list[int]]:
        """Numbers of a call's options by where their slice begins and its size, the fastest option
        first.
        """
        return self._by_slice[index]

    def chosen(self, choice: Choice) -> list[Option]:
        """The options themselves."""
        return [found[number] for found, number in zip(self.options, choice, strict=True)]

    def plan(self, choice: Choice) -> Plan:
        """The placements by the names of the calls."""
        return Plan(
            {
                call.name: of.placement
                for call, of in zip(self.calls, self.chosen(choice), strict=True)
            }
        )

    def seconds(self, choice: Choice) -> float:
        """Seconds of a round. The choices must fit in memory, since the best are kept as plans."""
        if choice not in self._held:
            self.evaluations += 1
            found = steady_state.seconds_per_round(self.flow, self.flow.round(self.chosen(choice)))
            self._held[choice] = found
            self._keep(choice, found)
        return self._held[choice]

    def excess(self, choice: Choice) -> float:
        """Bytes that the fullest device would hold too many; what fits is 0 or less.

        The devices of an option are consecutive, so the fullest one is where some call's slice
        begins.
        """
        chosen = self.chosen(choice)
        places = [self.flow.known(of) for of in chosen]
        stays = self._stays(chosen, [place for place, _ in places])
        most = 0.0
        for begin in {of.placement.devices[0] for of in chosen}:
            resident = working = 0.0
            for of, (_, mask), kept in zip(chosen, places, stays, strict=True):
                if mask >> begin & 1:
                    resident += kept
                    working = max(working, of.working_bytes)
            most = max(most, resident + working)
        return most - self.costs.device_bytes

    def _stays(self, chosen: Sequence[Option], places: Sequence[int]) -> list[float]:
        """Bytes that stay on a device (`plan_memory.kept`), by indices of options."""
        found = []
        for index, (call, of) in enumerate(zip(self.calls, chosen, strict=True)):
            if call.kind == "infer":
                same = [
                    other
                    for other, another in enumerate(self.calls)
                    if another.role == call.role
                    and (another.kind == "train" or (another.kind == "infer" and other < index))
                ]
                found.append(
                    0.0
                    if any(places[other] == places[index] for other in same)
                    else of.resident_bytes
                )
            else:
                found.append(of.resident_bytes * (self.versions if call.kind == "generate" else 1))
        return found

    def best(self) -> list[tuple[float, Choice]]:
        """The choices that were asked for, the fastest first; of those that give every call as many
        devices, one.
        """
        return sorted(self._kept.values())

    def _keep(self, choice: Choice, seconds: float) -> None:
        key = tuple(len(of.placement.devices) for of in self.chosen(choice))
        if key not in self._kept or seconds < self._kept[key][0]:
            self._kept[key] = seconds, choice

    def default(self) -> Choice | None:
        """Every call on all devices, with the one mesh that is the fastest for all; None where none
        fits.
        """
        found: list[tuple[float, Choice]] = []
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
                found.append((self.seconds(choice), choice))
        return min(found)[1] if found else None

    def _fastest_that_fits(self, numbers: Sequence[Sequence[int]]) -> Choice | None:
        """The fastest options that fit, of calls on the same devices and mesh: what each keeps does
        not depend on its option.
        """
        if not all(numbers):
            return None
        first = tuple(of_call[0] for of_call in numbers)
        places = [self.flow.known(of)[0] for of in self.chosen(first)]
        left = self.costs.device_bytes - sum(self._stays(self.chosen(first), places))
        picked = [
            next((n for n in of_call if self.options[index][n].working_bytes <= left), None)
            for index, of_call in enumerate(numbers)
        ]
        return None if None in picked else tuple(n for n in picked if n is not None)


def _grouped(found: Sequence[Option]) -> dict[tuple[int, int], list[int]]:
    groups: dict[tuple[int, int], list[int]] = {}
    for number, of in enumerate(found):
        groups.setdefault((of.placement.devices[0], len(of.placement.devices)), []).append(number)
    for numbers in groups.values():
        numbers.sort(key=lambda number: (found[number].seconds, number))
    return groups
