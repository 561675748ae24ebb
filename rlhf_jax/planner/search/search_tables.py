"""The numbers of a branch and bound as arrays: costs of every option, and seconds between every two
places.
"""

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
        self.places, places_of = zip(*(_places(found) for found in space.options), strict=True)
        self.place_of = [np.array(of_call, int) for of_call in places_of]
        self.moves = {
            index: self._pairs(self.trains[self.calls[index].role], index, index, flow.move_seconds)
            for index in flow.moved
        }
        self.transfers = {
            pair: self._pairs(*pair, pair[0], flow.transfer_seconds) for pair in flow.data
        }
        self.seconds = [np.array([of.seconds for of in found]) for found in space.options]
        self.working = [np.array([of.working_bytes for of in found]) for found in space.options]
        self.resident = [np.array([of.resident_bytes for of in found]) for found in space.options]
        self.where = [np.array([flow.known(of)[0] for of in found], int) for found in space.options]
        self.on = [_incidence(found, space.num_devices) for found in space.options]
        self.slices = [[_slice(of) for of in found] for found in space.options]
        self.kept = [self._undominated(index) for index in range(len(self.calls))]
        self.least = [float(found.min(initial=np.inf)) for found in self.seconds]
        self.least_area = [
            float((found * on.sum(1)).min(initial=np.inf))
            for found, on in zip(self.seconds, self.on, strict=True)
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
        """Seconds between every two places of two calls."""
        return np.array(
            [[seconds(index, a, b) for b in self.places[target]] for a in self.places[source]]
        )

    def _for_symmetry(
        self,
    ) -> tuple[list[list[tuple[Slice, object]]], list[tuple[int, int, np.ndarray]]]:
        keys, tables = [], []
        for index, places in enumerate(self.places):
            of_place: dict[int, list[object]] = {}
            for number, place in enumerate(self.place_of[index]):
                of = self.space.options[index][number]
                numbers = (
                    float(f"{of.seconds:.12g}"),
                    float(f"{of.working_bytes:.12g}"),
                    of.resident_bytes,
                )
                of_place.setdefault(int(place), []).append(
                    (of.placement.num_micro_batches, of.placement.remat, *numbers)
                )
            keys.append([
                (_slice(of), (of.placement.mesh_shape, tuple(of_place[place]))) for place, of in enumerate(places)
            ])  # fmt: skip
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
        kept = np.ones(count, bool)
        if call.kind != "infer" or sum(other.role == call.role for other in self.calls) > 1:
            return kept
        place = self.place_of[index]
        before = [table for (_, target), table in self.transfers.items() if target == index]
        behind = [table.T for (source, _), table in self.transfers.items() if source == index]
        for number in range(count):
            for other in range(count):
                if (
                    not kept[other]
                    or other == number
                    or self.slices[index][number] != self.slices[index][other]
                ):
                    continue
                later = sum(
                    _most_later(side, place[number], place[other]) for side in (before, behind)
                )
                cheaper = (
                    self.working[index][other] <= self.working[index][number]
                    and self.resident[index][other] <= self.resident[index][number]
                )
                if cheaper and self.seconds[index][other] + later <= self.seconds[index][number]:
                    kept[number] = False
                    break
        return kept

    def fresh(self, placed: Sequence[tuple[int, int]], index: int) -> np.ndarray:
        """Options of a next call that are worth trying, one of those that exchanges of devices make
        the same.

        Args:
          placed: calls that are placed, each with its option's number, always in the same order.
        """
        if not self.symmetric:
            return self.kept[index]
        taken = tuple(self.slices[earlier][number] for earlier, number in placed)
        candidates = tuple(dict.fromkeys(self.slices[index]))
        fresh = dict(zip(candidates, self.exchanges.fresh(taken, candidates), strict=True))
        return self.kept[index] & np.array([fresh[place] for place in self.slices[index]], bool)


def _most_later(tables: Sequence[np.ndarray], here: int, there: int) -> float:
    """The most seconds by which data arrive later at another placement, over all sources and
    targets.
    """
    return max(
        (float((table[:, there] - table[:, here]).max(initial=0.0)) for table in tables),
        default=0.0,
    )


def _places(found: Sequence[Option]) -> tuple[list[Option], list[int]]:
    """An option of each slice and mesh shape, and for every option which of them is its."""
    first: dict[tuple[tuple[int, ...], tuple[int, int, int]], int] = {}
    of_each, place_of = [], []
    for of in found:
        key = of.placement.devices, of.placement.mesh_shape
        if key not in first:
            first[key] = len(first)
            of_each.append(of)
        place_of.append(first[key])
    return of_each, place_of


def _incidence(found: Sequence[Option], num_devices: int) -> np.ndarray:
    """1 where an option has a device, [option, device]."""
    on = np.zeros((len(found), num_devices))
    for number, of in enumerate(found):
        on[number, list(of.placement.devices)] = 1
    return on


def _slice(of: Option) -> Slice:
    return of.placement.devices[0], len(of.placement.devices)
