"""The memory that a plan keeps on every device; a check that a plan fits, with a suggestion where
it does not.

Of a device: the states of the roles that train there, a copy of params for every other layout that
a role's calls have there (the sampler's is its own even where it has the trainer's layout, and the
asynchronous loop keeps `lag` versions of it), and the most that one of its calls needs while it
runs, since a device runs one at a time. Sampling needs one version more: see `api.Versions`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod

from rlhf_jax.dataflow import Call
from rlhf_jax.devices.placement import describe
from rlhf_jax.planner.api import CostModel, Versions, Workload
from rlhf_jax.planner.options import MICRO_BATCHES, Option, mesh_shapes, option, slices
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Placement, Plan

GIGABYTE = 1e9


def resident_by_call(
    calls: Sequence[Call], chosen: Sequence[Option], versions: Versions
) -> list[float]:
    """Bytes that stay resident for each call on each of its devices; 0 where another call of its
    role has the same layout and is counted already.

    Args:
      calls: of a round.
      chosen: the option of each call.
      versions: published ones that are held at once.
    """
    trains = {
        call.role: candidate.placement
        for call, candidate in zip(calls, chosen, strict=True)
        if call.kind == "train"
    }
    seen: set[tuple[str, tuple[int, ...], tuple[int, int, int]]] = set()
    resident = []
    for call, candidate in zip(calls, chosen, strict=True):
        placement, state = candidate.placement, trains.get(call.role)
        key = call.role, placement.devices, placement.mesh_shape
        if call.kind != "infer":
            copies = versions.in_training if call.kind == "generate" else 1
            resident.append(candidate.resident_bytes * copies)
        elif key in seen or (state and state.layout == placement.layout):
            resident.append(0.0)
        else:
            seen.add(key)
            resident.append(candidate.resident_bytes)
    return resident


def working_bytes(call: Call, chosen: Option, versions: Versions) -> float:
    """Bytes of a device that a call needs while it runs, beside those that stay.

    Args:
      call: of a round.
      chosen: its option.
      versions: published ones that are held at once.
    """
    return versions.working_bytes(call, chosen.working_bytes, chosen.resident_bytes)


def by_device(
    calls: Sequence[Call], chosen: Sequence[Option], versions: Versions, num_devices: int
) -> list[float]:
    """Bytes of each device: resident ones, and the most that one of its calls needs.

    Args:
      calls: of a round.
      chosen: the option of each call.
      versions: published ones that are held at once.
      num_devices: of the plan.
    """
    resident, working = [0.0] * num_devices, [0.0] * num_devices
    stays_of = resident_by_call(calls, chosen, versions)
    for call, candidate, stays in zip(calls, chosen, stays_of, strict=True):
        needed = working_bytes(call, candidate, versions)
        for device in candidate.placement.devices:
            resident[device] += stays
            working[device] = max(working[device], needed)
    return [stays + runs for stays, runs in zip(resident, working, strict=True)]


def check(
    plan: Plan,
    calls: Sequence[Call],
    costs: CostModel,
    work: Workload,
    num_devices: int,
    devices_per_host: int,
    default: Placement | None = None,
) -> Plan:
    """The plan with a placement for every call, if it can run; nothing is built or compiled to know
    it.

    Args:
      default: of the calls that the plan does not name.

    Raises Refusal that names the call, what is wrong by how much, and what would fit.
    """
    known = {call.name for call in calls}
    if unknown := sorted(set(plan.placements) - known):
        raise Refusal(
            f"the plan places {', '.join(unknown)}; the calls are {', '.join(sorted(known))}"
        )
    placements = {}
    for call in calls:
        placement = plan.placements.get(call.name, default)
        if placement is None:
            raise Refusal(
                f"the plan does not place {call.name}, and there is no mesh for calls that are not "
                "named"
            )
        _check_placement(call, placement, costs, num_devices)
        placements[call.name] = placement
    _check_memory(placements, calls, costs, work, num_devices, devices_per_host)
    return Plan(placements)


def _check_placement(call: Call, placement: Placement, costs: CostModel, num_devices: int) -> None:
    devices, shape = placement.devices, placement.mesh_shape
    if (
        not devices
        or len(set(devices)) < len(devices)
        or min(devices) < 0
        or max(devices) >= num_devices
    ):
        raise Refusal(
            f"{call.name} is on devices {devices}; accepted: different ones of 0 ... "
            f"{num_devices - 1}"
        )
    if prod(shape) != len(devices) or min(shape) < 1:
        raise Refusal(
            f"{call.name} has the mesh (data, fsdp, tensor) = {shape} of {prod(shape)} devices on "
            f"{len(devices)} devices"
        )
    if placement.num_micro_batches < 1:
        raise Refusal(
            f"{call.name} has {placement.num_micro_batches} micro-batches; accepted: 1 or more"
        )
    if reason := costs.refusal(call, placement):
        raise Refusal(f"{call.name} cannot be placed on {describe(placement)}: {reason}")


def _check_memory(
    placements: Mapping[str, Placement],
    calls: Sequence[Call],
    costs: CostModel,
    work: Workload,
    num_devices: int,
    devices_per_host: int,
) -> None:
    def excess(tried: Mapping[str, Placement]) -> tuple[float, int]:
        """Bytes too many on the fullest device, and that device."""
        chosen = [option(call, costs, tried[call.name]) for call in calls]
        used = by_device(calls, chosen, work.versions, num_devices)
        return max(used) - costs.device_bytes, used.index(max(used))

    over, device = excess(placements)
    if over <= 0:
        return
    chosen = [option(call, costs, placements[call.name]) for call in calls]
    share = [
        (stays, working_bytes(call, candidate, work.versions), call.name)
        for call, candidate, stays in zip(
            calls, chosen, resident_by_call(calls, chosen, work.versions), strict=True
        )
        if device in candidate.placement.devices
    ]
    _, working, worst = max(share, key=lambda entry: (entry[1], entry[2]))
    held = ", ".join(f"{name} {gigabytes(stays)}" for stays, _, name in share if stays)
    raise Refusal(
        f"{worst} does not fit on device {device} by {gigabytes(over)}: it needs "
        f"{gigabytes(working)} while it runs beside "
        f"{gigabytes(sum(stays for stays, _, _ in share))} that stay there ({held}), of "
        f"{gigabytes(costs.device_bytes)}; "
        + _what_fits(
            placements,
            calls,
            costs,
            num_devices,
            devices_per_host,
            lambda tried: excess(tried)[0] <= 0,
        )
    )


def _what_fits(
    placements: Mapping[str, Placement],
    calls: Sequence[Call],
    costs: CostModel,
    num_devices: int,
    devices_per_host: int,
    fits: Callable[[Mapping[str, Placement]], bool],
) -> str:
    """The least change that was found to fit: micro-batches of a call, its remat, micro-batches of
    all, more devices.
    """
    changes: list[tuple[Call, Placement]] = []
    for variant in (_more_micro_batches, _remat):
        changes += [
            (call, tried) for call in calls for tried in variant(call, placements[call.name])
        ]
    changes.sort(key=lambda change: (bool(change[1].remat), change[1].num_micro_batches))

    def works(changed: Mapping[str, Placement]) -> bool:
        tried = {**placements, **changed}
        return not any(costs.refusal(call, tried[call.name]) for call in calls) and fits(tried)

    for call, tried in changes:
        if works({call.name: tried}):
            return f"it would fit with {call.name}: {describe(tried)}"
    for factor in MICRO_BATCHES[1:]:
        if works(
            {
                name: replace(placement, num_micro_batches=factor * placement.num_micro_batches)
                for name, placement in placements.items()
            }
        ):
            return f"it would fit with {factor} times as many micro-batches for every call"
    for call in calls:
        for tried in _wider(call, placements[call.name], num_devices, devices_per_host):
            if works({call.name: tried}):
                return f"it would fit with {call.name}: {describe(tried)}"
    return "no one call's micro-batches, remat or devices make it fit: move calls apart, or take more devices"


def _more_micro_batches(call: Call, placement: Placement) -> Iterator[Placement]:
    for count in (*MICRO_BATCHES, 16, 32, 64):
        if count > placement.num_micro_batches:
            yield replace(placement, num_micro_batches=count)


def _remat(call: Call, placement: Placement) -> Iterator[Placement]:
    if call.kind == "train" and not placement.remat:
        yield replace(placement, remat=True)
        yield from (replace(tried, remat=True) for tried in _more_micro_batches(call, placement))


def _wider(
    call: Call, placement: Placement, num_devices: int, devices_per_host: int
) -> Iterator[Placement]:
    """Meshes of as many devices or more, with as many micro-batches or fewer, whose rows more
    shards then divide.
    """
    for devices in slices(num_devices, devices_per_host):
        if len(devices) < len(placement.devices):
            continue
        for shape in sorted(mesh_shapes(len(devices), devices_per_host)):
            for remat in (False, True) if call.kind == "train" else (None,):
                count = placement.num_micro_batches
                while count:
                    yield Placement(devices, shape, count, remat)
                    count //= 2


def gigabytes(amount: float) -> str:
    """Bytes in GB of 10⁹, to three figures."""
    return f"{amount / GIGABYTE:.3g} GB"
