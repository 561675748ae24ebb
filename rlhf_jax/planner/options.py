"""Candidate placements of a call: device slices, mesh shapes, micro-batches, remat; refused and
dominated ones left out.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from rlhf_jax.dataflow import Call
from rlhf_jax.planner.api import CostModel
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Placement

MICRO_BATCHES = (1, 2, 4, 8, 16, 32)
ALL_HOST_RUNS = 16
"""Devices up to which every run of consecutive hosts is a slice; above, aligned runs of 1, 2, 4,
... hosts, so that the number of slices grows with the number of devices and not with its square.
"""


@dataclass(frozen=True)
class Option:
    """A placement of a call, and what it costs: seconds of a round, bytes of a device.

    `resident_bytes` stay whether the call runs or not: its role's state where it trains, else a
    copy of the params.
    """

    placement: Placement
    seconds: float
    working_bytes: float
    resident_bytes: float


def num_hosts(num_devices: int, devices_per_host: int) -> int:
    """Hosts that so many devices fill; 1 for fewer than a host has.

    Raises Refusal if the devices are not whole hosts.
    """
    if (
        num_devices < 1
        or devices_per_host < 1
        or (num_devices > devices_per_host and num_devices % devices_per_host)
    ):
        raise Refusal(
            f"{num_devices} devices do not make whole hosts of {devices_per_host}; accepted: fewer "
            "than a host has, or a "
            "multiple"
        )
    return max(1, num_devices // devices_per_host)


def slices(num_devices: int, devices_per_host: int) -> list[tuple[int, ...]]:
    """Slices of devices, the smaller first.

    Inside a host they are aligned runs of 1, 2, 4, ... devices. Across hosts they are runs of whole
    hosts. With up to `ALL_HOST_RUNS` devices in all, a run of hosts may begin anywhere and have any
    length. With more, its length is a power of two and its first host a multiple of it; the run of
    all hosts is added.

    Args:
      num_devices: of the cluster.
      devices_per_host: of each host.

    Raises Refusal if the devices are not whole hosts.
    """
    hosts = num_hosts(num_devices, devices_per_host)
    host = min(devices_per_host, num_devices)
    runs = set(_host_runs(hosts, host, aligned=num_devices > ALL_HOST_RUNS))
    size = 1
    while size < host:
        runs |= {
            (begin + offset, size)
            for begin in range(0, num_devices, host)
            for offset in _aligned(host, size)
        }
        size *= 2
    return [
        tuple(range(begin, begin + size))
        for begin, size in sorted(runs, key=lambda run: (run[1], run[0]))
    ]


def _aligned(host: int, size: int) -> range:
    """Places of whole slices in a host; devices that are left over at its end are in larger slices
    only.
    """
    return range(0, host - size + 1, size)


def _host_runs(num_hosts: int, host: int, aligned: bool) -> Iterator[tuple[int, int]]:
    lengths = [
        n for n in range(1, num_hosts + 1) if not aligned or n & (n - 1) == 0 or n == num_hosts
    ]
    for length in lengths:
        for begin in range(0, num_hosts - length + 1, length if aligned else 1):
            yield begin * host, length * host


@cache
def mesh_shapes(num_devices: int, devices_per_host: int) -> tuple[tuple[int, int, int], ...]:
    """Every (data, fsdp, tensor) whose product is the number of devices.

    A tensor group stays inside a host: it is the innermost axis, and its size divides the host's.

    Args:
      num_devices: of the slice.
      devices_per_host: of each host.
    """
    shapes = []
    for tensor in _divisors(num_devices):
        if tensor > devices_per_host or (
            num_devices > devices_per_host and devices_per_host % tensor
        ):
            continue
        rest = num_devices // tensor
        shapes += [(rest // fsdp, fsdp, tensor) for fsdp in _divisors(rest)]
    return tuple(shapes)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def options(
    call: Call,
    costs: CostModel,
    num_devices: int,
    devices_per_host: int,
    micro_batches: Sequence[int] = MICRO_BATCHES,
    accepted: Callable[[Call, Placement], bool] | None = None,
) -> list[Option]:
    """The candidates of a search for a call, by slice and mesh shape.

    Three kinds are left out: those that `costs` refuses; those that do not fit on a device even
    alone; and those that take at least as long and as much memory as another one of the same slice
    and mesh shape, from which nothing else in a plan can tell them apart.

    Args:
      call: of the round.
      costs: for refusal, seconds and bytes.
      num_devices: of the cluster.
      devices_per_host: of each host.
      micro_batches: numbers of micro-batches that are tried.
      accepted: False for devices and a mesh shape that are left out; None: none are.
    """
    candidates = []
    for devices in slices(num_devices, devices_per_host):
        for shape in mesh_shapes(len(devices), devices_per_host):
            place = Placement(devices, shape)
            if accepted is None or accepted(call, place):
                candidates += pareto(variants(call, costs, place, micro_batches))
    return candidates


def variants(
    call: Call, costs: CostModel, place: Placement, micro_batches: Iterable[int] = MICRO_BATCHES
) -> Iterator[Option]:
    """The options of one slice and mesh shape that are not refused and fit alone (a state holds its
    params: no plan can keep less of the role there).
    """
    resident = None
    for remat in (False, True) if call.kind == "train" else (None,):
        for count in micro_batches:
            placement = replace(place, num_micro_batches=count, remat=remat)
            if costs.refusal(call, placement):
                continue
            resident = resident_bytes(call, costs, place) if resident is None else resident
            working = costs.working_bytes(call, placement)
            if working + resident <= costs.device_bytes:
                yield Option(placement, costs.seconds(call, placement), working, resident)


def option(call: Call, costs: CostModel, placement: Placement) -> Option:
    """The option of a given placement; refusals and memory are not checked.

    Args:
      call: that is placed.
      costs: give its seconds and its bytes per device.
      placement: devices, mesh and micro-batches.
    """
    resident = resident_bytes(call, costs, placement)
    return Option(
        placement, costs.seconds(call, placement), costs.working_bytes(call, placement), resident
    )


def resident_bytes(call: Call, costs: CostModel, placement: Placement) -> float:
    """Bytes of a device that the call keeps there: a trained role's state, or a copy of params.

    Args:
      call: that is placed.
      costs: give the bytes.
      placement: of the call.
    """
    cost = costs.state_bytes if call.kind == "train" else costs.params_bytes
    return cost(call.role, placement)


def pareto(candidates: Iterable[Option]) -> list[Option]:
    """Those that no other one beats in both seconds and working bytes, the fastest first; of equals
    the first.
    """
    undominated: list[Option] = []
    for candidate in sorted(candidates, key=lambda option: (option.seconds, option.working_bytes)):
        if not undominated or candidate.working_bytes < undominated[-1].working_bytes:
            undominated.append(candidate)
    return undominated
