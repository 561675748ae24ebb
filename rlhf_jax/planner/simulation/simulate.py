"""Simulation of a plan: the schedule of its calls, seconds of a round, memory and idle share of
every device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlhf_jax.dataflow import Call, Kind
from rlhf_jax.planner.api import CostModel, Versions, Workload
from rlhf_jax.planner.options import Option, option
from rlhf_jax.planner.simulation import plan_memory, schedule, steady_state
from rlhf_jax.planner.simulation.graph import Dataflow, Round
from rlhf_jax.types import Placement, Plan

SHOWN_ROUNDS = 5


@dataclass(frozen=True)
class Node:
    """Something that happens once a round, from `start` to `end`, in seconds. A transfer occupies
    no device: its devices are those that it reaches.
    """

    name: str
    kind: Literal["generate", "infer", "train", "reallocate", "transfer"]
    round_index: int
    devices: tuple[int, ...]
    start: float
    end: float


@dataclass(frozen=True)
class Row:
    """A call of a simulation. `memory_bytes` of a device: what it keeps there, and what it needs
    while it runs; `idle_share` of its devices, in the steady state.
    """

    call: str
    kind: Kind
    placement: Placement
    seconds: float
    reallocate_seconds: float
    memory_bytes: float
    idle_share: float


@dataclass(frozen=True)
class Simulation:
    """The simulated figures of a plan. `seconds_per_round` is of the steady state; `memory_bytes`
    and `idle_share` by device.
    """

    nodes: tuple[Node, ...]
    rows: tuple[Row, ...]
    seconds_per_round: float
    memory_bytes: tuple[float, ...]
    idle_share: tuple[float, ...]


def simulate(
    calls: Sequence[Call],
    plan: Plan,
    costs: CostModel,
    work: Workload,
    num_devices: int,
    num_rounds: int | None = None,
) -> Simulation:
    """Plays `num_rounds` rounds (by default 4 + lag + sync_every) of a plan that places every call and fits; see
    `plan_memory.check`.

    Raises KeyError for a call that the plan does not place.
    """
    chosen = [option(call, costs, plan.placements[call.name]) for call in calls]
    flow = Dataflow(calls, costs, work)
    plan_round = flow.round(chosen)
    ahead = work.lag + work.sync_every
    rounds = SHOWN_ROUNDS + ahead - 1 if num_rounds is None else num_rounds
    nodes = _nodes(flow, plan_round, chosen, rounds)
    versions = work.versions
    idle = _idle(nodes, num_devices, rounds)
    return Simulation(
        nodes=nodes,
        rows=_rows(flow, plan_round, chosen, versions, idle),
        seconds_per_round=steady_state.seconds_per_round(flow, plan_round),
        memory_bytes=tuple(plan_memory.by_device(calls, chosen, versions, num_devices)),
        idle_share=idle,
    )


def _nodes(
    flow: Dataflow, plan_round: Round, chosen: Sequence[Option], num_rounds: int
) -> tuple[Node, ...]:
    ops = schedule.play(flow, plan_round, num_rounds)
    by_name = {
        call.name: candidate.placement.devices
        for call, candidate in zip(flow.calls, chosen, strict=True)
    }
    nodes = []
    for op in ops:
        if op.mask or op.kind != "reallocate":
            devices = tuple(
                device for device in range(op.mask.bit_length()) if op.mask >> device & 1
            )
            nodes.append(Node(op.name, op.kind, op.round_index, devices, op.start, op.end))
        for source, latency in op.waits:
            if latency:
                name = f"{source.name} to {op.name}"
                begin = max(source.end, op.dispatched)
                nodes.append(
                    Node(name, "transfer", op.round_index, by_name[op.name], begin, begin + latency)
                )
    return tuple(sorted(nodes, key=lambda node: (node.start, node.end)))


def _rows(
    flow: Dataflow,
    plan_round: Round,
    chosen: Sequence[Option],
    versions: Versions,
    idle: Sequence[float],
) -> tuple[Row, ...]:
    moves = {
        index: plan_round.seconds[task]
        for task, (what, index) in enumerate(flow.order)
        if what == "move"
    }
    stays = plan_memory.resident_by_call(flow.calls, chosen, versions)
    rows = []
    for index, (call, candidate) in enumerate(zip(flow.calls, chosen, strict=True)):
        devices = candidate.placement.devices
        memory = stays[index] + plan_memory.working_bytes(call, candidate, versions)
        share = sum(idle[device] for device in devices) / len(devices)
        rows.append(
            Row(
                call.name,
                call.kind,
                candidate.placement,
                candidate.seconds,
                moves.get(index, 0.0),
                memory,
                share,
            )
        )
    return tuple(rows)


def _idle(nodes: Sequence[Node], num_devices: int, num_rounds: int) -> tuple[float, ...]:
    """The share of time in which nothing occupies a device, from the end of a round in the middle
    to that of the last.
    """
    ends = [
        max(node.end for node in nodes if node.kind == "train" and node.round_index == r)
        for r in range(num_rounds)
    ]
    begin, end = (ends[num_rounds // 2 - 1] if num_rounds > 1 else 0.0), ends[-1]
    busy = [0.0] * num_devices
    for node in nodes:
        if node.kind != "transfer":
            for device in node.devices:
                busy[device] += max(0.0, min(node.end, end) - max(node.start, begin))
    return tuple(1 - taken / (end - begin) for taken in busy)
