"""Says in words why a plan is worse than another, and why no plan fits and what would."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

from rlhf_jax.dataflow import Call
from rlhf_jax.devices.placement import describe
from rlhf_jax.planner.api import CostModel
from rlhf_jax.planner.options import mesh_shapes, resident_bytes
from rlhf_jax.planner.search.space import Space
from rlhf_jax.planner.simulation.plan_memory import gigabytes
from rlhf_jax.planner.simulation.simulate import Row, Simulation
from rlhf_jax.types import Placement

MAX_GROWTH = 64
"""How many times more devices are tried where nothing fits."""
SHOWN = 0.005
"""Share of a round from which a difference is worth a word."""


def why_worse(worse: Simulation, best: Simulation) -> str:
    """The calls that take longer in a plan than in the best one, by how many seconds, and what else
    adds to a round.
    """
    more = worse.seconds_per_round - best.seconds_per_round
    if more <= 1e-9 * best.seconds_per_round:
        return f"as fast as the best plan ({best.seconds_per_round:.3g} s)"
    least = SHOWN * best.seconds_per_round
    pairs = list(zip(worse.rows, best.rows, strict=True))
    longer = [(row.seconds - best_row.seconds, row, best_row) for row, best_row in pairs]
    slower = sorted((entry for entry in longer if entry[0] > least), key=lambda entry: entry[0])
    parts = [_slower(seconds, row, best_row) for seconds, row, best_row in slower[::-1][:3]]
    parts += [
        f"{call} and {other_call} share devices, so that one waits"
        for call, other_call in _newly_shared(pairs)
    ]
    reallocation = sum(
        row.reallocate_seconds - best_row.reallocate_seconds for row, best_row in pairs
    )
    if reallocation > least:
        parts.append(f"reallocation takes {reallocation:.3g} s more")
    idle = _mean(worse.idle_share) - _mean(best.idle_share)
    if idle > SHOWN:
        parts.append(
            f"devices are idle for {100 * _mean(worse.idle_share):.0f} % of it, not "
            f"{100 * _mean(best.idle_share):.0f} %"
        )
    if not parts:
        differing = [row.call for row, best_row in pairs if row.placement != best_row.placement]
        parts.append(f"a little each from {', '.join(differing)}")
    return (
        f"{more:.3g} s longer a round ({100 * more / best.seconds_per_round:.1f} %): "
        + "; ".join(parts)
    )


def _slower(seconds: float, row: Row, best_row: Row) -> str:
    return f"{row.call} takes {seconds:.3g} s longer on {describe(row.placement)} than on {describe(best_row.placement)}"


def _newly_shared(pairs: Sequence[tuple[Row, Row]]) -> list[tuple[str, str]]:
    """Pairs of calls that share devices in the worse plan and not in the best one."""
    joined = []
    for (row, best_row), (other_row, best_other_row) in combinations(pairs, 2):
        disjoint = not {*best_row.placement.devices} & {*best_other_row.placement.devices}
        if (
            row.kind == other_row.kind
            and disjoint
            and {*row.placement.devices} & {*other_row.placement.devices}
        ):
            joined.append((row.call, other_row.call))
    return joined


def _mean(shares: tuple[float, ...]) -> float:
    return sum(shares) / len(shares)


def why_none_fits(space: Space, costs_of: Callable[[int], CostModel] | None) -> str:
    """The call that does not fit: its least memory, or the reason that it is refused everywhere,
    and the number of devices that would do.
    """
    least = [(_least_bytes(space, call), call) for call in space.calls]
    unplaced = [call for (need, call) in least if need is None]
    devices = "1 device" if space.num_devices == 1 else f"{space.num_devices} devices"
    if unplaced:
        call = unplaced[0]
        whole = Placement(tuple(range(space.num_devices)), (space.num_devices, 1, 1))
        reason = space.costs.refusal(call, whole) or space.costs.refusal(
            call, Placement((0,), (1, 1, 1))
        )
        return f"{call.name} can be placed nowhere on {devices}: {reason}"
    (needed, placement), call = max(
        ((need, call) for need, call in least if need is not None), key=lambda entry: entry[0][0]
    )
    memory = space.costs.device_bytes
    alone = "alone " if needed > memory else ""
    return (
        f"no plan fits on {devices} of {gigabytes(max(0.0, memory))}: {call.name} "
        f"{alone}needs {gigabytes(needed)} of "
        f"each device, at the least on {describe(placement)}" + _enough(space, costs_of)
    )


def _least_bytes(space: Space, call: Call) -> tuple[float, Placement] | None:
    """The least bytes a device that a call needs on all devices; None where it is refused on every
    mesh.
    """
    needs = [
        (
            space.costs.working_bytes(call, placement)
            + resident_bytes(call, space.costs, placement),
            placement,
        )
        for placement in _frugal(call, space.num_devices, space.devices_per_host)
        if not space.costs.refusal(call, placement)
    ]
    return min(needs, key=lambda entry: entry[0]) if needs else None


def _frugal(call: Call, num_devices: int, devices_per_host: int) -> Iterator[Placement]:
    """Placements on all devices, among them the one that needs least memory."""
    remat = True if call.kind == "train" else None
    for shape in mesh_shapes(num_devices, devices_per_host):
        for count in (1, 2, 4, 8):
            yield Placement(tuple(range(num_devices)), shape, count, remat)


def _enough(space: Space, costs_of: Callable[[int], CostModel] | None) -> str:
    """The number of devices that hold everything with every call on all of them, in the mesh that
    needs least.
    """
    if costs_of is None:
        return "; more devices, smaller rounds or models would fit"
    growth = 2
    while growth <= MAX_GROWTH:
        number = growth * space.num_devices
        if _frugal_fits(space, costs_of(number), number):
            return f"; {number} such devices would do"
        growth *= 2
    return f"; {MAX_GROWTH * space.num_devices} such devices would not do either"


def _frugal_fits(space: Space, costs: CostModel, num_devices: int) -> bool:
    host = (
        min(space.devices_per_host, num_devices)
        if num_devices <= space.devices_per_host
        else space.devices_per_host
    )
    for shape in mesh_shapes(num_devices, host):
        resident, working = 0.0, 0.0
        for call in space.calls:
            tried = [
                p
                for p in _frugal(call, num_devices, host)
                if p.mesh_shape == shape and not costs.refusal(call, p)
            ]
            if not tried:
                break
            shared = call.kind == "infer" and call.role in space.flow.trains
            copies = space.versions.in_training if call.kind == "generate" else 1
            stays = resident_bytes(call, costs, tried[0])
            resident += 0.0 if shared else copies * stays
            least = min(costs.working_bytes(call, placement) for placement in tried)
            working = max(working, space.versions.working_bytes(call, least, stays))
        else:
            if resident + working <= costs.device_bytes:
                return True
    return False
