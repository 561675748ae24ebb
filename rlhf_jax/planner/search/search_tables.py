"""Costs of a branch and bound as arrays: of every option, and seconds between every two layouts."""

from collections.abc import Callable, Sequence

import numpy as np

from rlhf_jax.planner.options import Option
from rlhf_jax.planner.search.space import Space
from rlhf_jax.planner.search.symmetry import Exchanges, Slice


class Tables:
    """Options of every call as arrays, without those of a frozen role that another mesh of the same
    slice beats.
    """

    def __init__(self, space: Space):
        self.space, flow = space, space.flow
        self.calls, self.generate, self.trains = space.calls, flow.generate, flow.trains
        self.policy = flow.trains["policy"]
        self.scores = [index for index, call in enumerate(self.calls) if call.kind == "infer"]
        self.layouts, numbers_of = zip(
            *(_layouts(candidates) for candidates in space.options), strict=True
        )
        self.layout_of = [np.array(numbers, int) for numbers in numbers_of]
        self.moves = {
            index: self._pairs(self.trains[self.calls[index].role], index, index, flow.move_seconds)
            for index in flow.resharded
        }
        self.transfers = {
            pair: self._pairs(*pair, pair[0], flow.transfer_seconds) for pair in flow.data
        }
        self.seconds = [
            np.array([option.seconds for option in candidates]) for candidates in space.options
        ]
        self.working = [
            np.array([space.working_bytes(index, option) for option in candidates])
            for index, candidates in enumerate(space.options)
        ]
        self.resident = [
            np.array([option.resident_bytes for option in candidates])
            for candidates in space.options
        ]
        self.layout_key = [
            np.array([flow.layout_of(option)[0] for option in candidates], int)
            for candidates in space.options
        ]
        self.on = [_incidence(candidates, space.num_devices) for candidates in space.options]
        self.slices = [[_slice(option) for option in candidates] for candidates in space.options]
        self.worth_trying = [self._undominated(index) for index in range(len(self.calls))]
        self.least = [float(candidates.min(initial=np.inf)) for candidates in self.seconds]
        self.least_area = [
            float((candidates * on.sum(1)).min(initial=np.inf))
            for candidates, on in zip(self.seconds, self.on, strict=True)
        ]
        self.exchanges = Exchanges(space.num_devices, space.devices_per_host)
        self.symmetric = self.exchanges.keep(*self._for_symmetry())

    def _pairs(
        self,
        source: int,
        target: int,
        index: int,
        seconds: Callable[[int, Option, Option], float],
    ) -> np.ndarray:
        """Seconds between every two layouts of two calls, `[source layout, target layout]`."""
        return np.array(
            [[seconds(index, a, b) for b in self.layouts[target]] for a in self.layouts[source]]
        )

    def _for_symmetry(
        self,
    ) -> tuple[list[list[tuple[Slice, object]]], list[tuple[int, int, np.ndarray]]]:
        keys, tables = [], []
        for index, layouts in enumerate(self.layouts):
            numbers_by_layout: dict[int, list[object]] = {}
            for number, layout in enumerate(self.layout_of[index]):
                option = self.space.options[index][number]
                numbers = (
                    float(f"{option.seconds:.12g}"),
                    float(f"{option.working_bytes:.12g}"),
                    option.resident_bytes,
                )
                numbers_by_layout.setdefault(int(layout), []).append(
                    (option.placement.num_micro_batches, option.placement.remat, *numbers)
                )
            keys.append(
                [
                    (
                        _slice(option),
                        (option.placement.mesh_shape, tuple(numbers_by_layout[layout])),
                    )
                    for layout, option in enumerate(layouts)
                ]
            )
        tables += [
            (self.trains[self.calls[index].role], index, table)
            for index, table in self.moves.items()
        ]
        tables += [(*pair, table) for pair, table in self.transfers.items()]
        return keys, tables

    def _undominated(self, index: int) -> np.ndarray:
        """Options that are worth trying. Of a role that runs once a round and has nothing to move,
        a mesh is beaten by one of the same slice that is faster by more than its data may come
        later, and takes no more memory.
        """
        call, count = self.calls[index], len(self.seconds[index])
        undominated = np.ones(count, bool)
        if call.kind != "infer" or sum(other.role == call.role for other in self.calls) > 1:
            return undominated
        layout = self.layout_of[index]
        before = [table for (_, target), table in self.transfers.items() if target == index]
        behind = [table.T for (source, _), table in self.transfers.items() if source == index]
        for number in range(count):
            for other in range(count):
                if (
                    not undominated[other]
                    or other == number
                    or self.slices[index][number] != self.slices[index][other]
                ):
                    continue
                later = sum(
                    _most_later(side, layout[number], layout[other]) for side in (before, behind)
                )
                cheaper = (
                    self.working[index][other] <= self.working[index][number]
                    and self.resident[index][other] <= self.resident[index][number]
                )
                if cheaper and self.seconds[index][other] + later <= self.seconds[index][number]:
                    undominated[number] = False
                    break
        return undominated

    def fresh(self, placed: Sequence[tuple[int, int]], index: int) -> np.ndarray:
        """Options of a next call that are worth trying, one of those that exchanges of devices make
        the same.

        Args:
          placed: calls that are placed, each with its option's number, always in the same order.
        """
        if not self.symmetric:
            return self.worth_trying[index]
        taken = tuple(self.slices[earlier][number] for earlier, number in placed)
        candidates = tuple(dict.fromkeys(self.slices[index]))
        fresh = dict(zip(candidates, self.exchanges.fresh(taken, candidates), strict=True))
        return self.worth_trying[index] & np.array(
            [fresh[device_slice] for device_slice in self.slices[index]], bool
        )


def _most_later(tables: Sequence[np.ndarray], layout: int, other_layout: int) -> float:
    """The most seconds by which data arrive later at `other_layout`, over all sources or targets."""
    return max(
        (float((table[:, other_layout] - table[:, layout]).max(initial=0.0)) for table in tables),
        default=0.0,
    )


def _layouts(candidates: Sequence[Option]) -> tuple[list[Option], list[int]]:
    """One option per layout (slice and mesh shape), and the index of its layout for every option."""
    first: dict[tuple[tuple[int, ...], tuple[int, int, int]], int] = {}
    of_each, place_of = [], []
    for option in candidates:
        key = option.placement.devices, option.placement.mesh_shape
        if key not in first:
            first[key] = len(first)
            of_each.append(option)
        place_of.append(first[key])
    return of_each, place_of


def _incidence(candidates: Sequence[Option], num_devices: int) -> np.ndarray:
    """1 where an option has a device, [option, device]."""
    on = np.zeros((len(candidates), num_devices))
    for number, option in enumerate(candidates):
        on[number, list(option.placement.devices)] = 1
    return on


def _slice(option: Option) -> Slice:
    return option.placement.devices[0], len(option.placement.devices)
