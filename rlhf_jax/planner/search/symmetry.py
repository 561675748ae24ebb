"""Equivalence of plans under device permutations: two halves of a host may be exchanged, and halves
of halves.

Costs need not be blind to places, so that is found out by comparing every number under every
exchange, before it is used.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

Slice = tuple[int, int]  # where it begins, its size
Exchange = tuple[int, int]  # where a part begins that has two halves, and its size


class Exchanges:
    """The halves that may be exchanged; none where hosts have no power of two devices, two hosts as
    two halves.
    """

    def __init__(self, num_devices: int, devices_per_host: int):
        host = min(devices_per_host, num_devices)
        self.num_devices, self.host = num_devices, host
        self.two_hosts = num_devices == 2 * host
        self.usable = host & (host - 1) == 0
        self.all = self._parts() if self.usable else []

    def _parts(self) -> list[Exchange]:
        exchanges, size = [], self.host
        while size > 1:
            exchanges += [(begin, size) for begin in range(0, self.num_devices, size)]
            size //= 2
        return exchanges + ([(0, self.num_devices)] if self.two_hosts else [])

    def keep(
        self,
        places: Sequence[Sequence[tuple[Slice, object]]],
        tables: Sequence[tuple[int, int, np.ndarray]],
    ) -> bool:
        """True where no exchange changes a cost.

        Args:
          places: of each call, where and how it may be, with all that is asked of it there.
          tables: of pairs of calls, the seconds between each of their places.
        """
        return self.usable and all(self._keeps(exchange, places, tables) for exchange in self.all)

    def _keeps(
        self,
        exchange: Exchange,
        places: Sequence[Sequence[tuple[Slice, object]]],
        tables: Sequence[tuple[int, int, np.ndarray]],
    ) -> bool:
        orders = []
        for placements in places:
            number_of: Mapping[tuple[Slice, object], int] = {
                key: number for number, key in enumerate(placements)
            }
            numbers = [number_of.get((exchanged(key[0], exchange), key[1])) for key in placements]
            if None in numbers:
                return False
            orders.append(np.array(numbers))
        return all(
            np.allclose(table[np.ix_(orders[source], orders[target])], table, rtol=1e-12, atol=0)
            for source, target, table in tables
        )

    @cache  # noqa: B019  # as short-lived as a search
    def fresh(self, placed: tuple[Slice, ...], candidates: tuple[Slice, ...]) -> tuple[bool, ...]:
        """Keeps one slice per equivalence class under device permutations that fix the slices
        already placed.
        """
        seen, is_first = set(), []
        for candidate in candidates:
            key = self._signature((*placed, candidate))
            is_first.append(key not in seen)
            seen.add(key)
        return tuple(is_first)

    def _signature(self, placed: tuple[Slice, ...]) -> object:
        hosts = [
            self._part(begin, self.host, placed) for begin in range(0, self.num_devices, self.host)
        ]
        larger = tuple((call, taken) for call, taken in enumerate(placed) if taken[1] > self.host)
        return larger, tuple(sorted(hosts, key=repr) if self.two_hosts else hosts)

    def _part(self, begin: int, size: int, placed: tuple[Slice, ...]) -> object:
        """The calls on this slice, and recursively those of its halves, in an order that exchanges
        do not change.
        """
        here = tuple(call for call, taken in enumerate(placed) if taken == (begin, size))
        if not any(begin <= taken[0] < begin + size and taken[1] < size for taken in placed):
            return here
        halves = [self._part(half, size // 2, placed) for half in (begin, begin + size // 2)]
        return here, tuple(sorted(halves, key=repr))


def exchanged(device_slice: Slice, exchange: Exchange) -> Slice:
    """The slice after two halves were exchanged; one that reaches beyond a half stays."""
    (begin, size), (first, whole) = device_slice, exchange
    half = whole // 2
    if size > half or not first <= begin < first + whole:
        return device_slice
    return (begin + half, size) if begin < first + half else (begin - half, size)
