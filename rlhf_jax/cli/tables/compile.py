"""Compiles calls one by one, and prints what the compiler says of each beside what the planner
expects.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from rlhf_jax.building.from_shapes import Shaped
from rlhf_jax.devices import distributed
from rlhf_jax.devices.transfer import per_host
from rlhf_jax.planner.compiled.collectives import Sum, network_bytes
from rlhf_jax.planner.compiled.reading import Reading, read
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime.program import PUBLISH
from rlhf_jax.runtime.sampler import GENERATE
from rlhf_jax.types import Placement, Plan

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
LABELS = (
    "call",
    "arguments",
    "temporary",
    "peak",
    "planner",
    "FLOPs",
    "accessed",
    "links",
    "compile",
)
WIDTHS = 13, 10, 10, 10, 10, 9, 10, 10, 8
LEGEND = (
    "of one device: bytes of arguments, temporary ones, both with new results (peak), and those "
    "that the planner expects beside the arguments; FLOPs and bytes accessed as XLA counts them, "
    "the body of a loop once; bytes sent to other devices, each loop as often as it runs"
)


@dataclass(frozen=True)
class Row:
    """A call: its reading, or the compiler's reason for not compiling it; what the planner expects.

    Attributes:
      call: its name.
      reading: None where it does not fit.
      reason: of the compiler, "" where it compiled.
      expected_bytes: beside arguments, by the planner's formulas; None of a call that it has not.
      expected_seconds: of the call in a round, likewise.
      expected_link_bytes: that a device sends in one call, likewise.
      network_bytes: of the links', those of collectives between hosts.
      cpu_seconds: of this process, to trace, lower and compile the call.
    """

    call: str
    reading: Reading | None
    reason: str
    expected_bytes: float | None
    expected_seconds: float | None
    expected_link_bytes: float | None = None
    network_bytes: float = 0.0
    cpu_seconds: float = 0.0


def size(amount: float) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(amount) >= unit:
            return f"{amount / unit:.3g} {name}"
    return f"{amount:.0f} B"


def heading(name: str, shaped: Shaped) -> str:
    """The devices, the round and what was assumed."""
    problem, work = shaped.problem, shaped.problem.work
    hosts = f" on {problem.num_hosts} hosts" if problem.num_hosts > 1 else ""
    lines = [
        f"{name}: {problem.num_devices} x {problem.hardware.name} of "
        f"{size(problem.hardware.memory_bytes)}{hosts}; {work.prompts_text} x "
        f"{work.samples_per_prompt} a round, {work.prompt_tokens} + {work.completion_tokens} tokens",
        *shaped.notices,
        LEGEND,
        "",
        _columns(LABELS),
    ]
    return "\n".join(lines)


def _columns(cells: Sequence[str]) -> str:
    first, *others = (
        f"{cell:{'<' if index == 0 else '>'}{width}}"
        for index, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True))
    )
    return " ".join([first, *others])


def compiled(shaped: Shaped, call: str, folder: Path | None) -> Row:
    """Compiles a call and reads it.

    Args:
      shaped: the program and the planner's problem.
      call: its name.
      folder: for the program's text; None: it is not kept.

    Raises whatever the compiler raises but for a lack of memory, which the row tells.
    """
    program, problem = shaped.program, shaped.problem
    placed = placements(shaped)
    row, costs = Row(call, None, "", None, None), problem.placed_costs()
    mesh = program.trainer_mesh
    for planned in problem.calls:
        if planned.name == call:
            with shaped.standing_in():
                mesh = program.spec.resolved_plan.mesh(call)
            row = replace(
                row,
                expected_bytes=costs.working_bytes(planned, placed[call]),
                expected_seconds=costs.seconds(planned, placed[call]),
                expected_link_bytes=costs.link_bytes(planned, placed[call]),
            )
    with shaped.standing_in():
        if call in (GENERATE, PUBLISH):  # on the devices of one host
            mesh = per_host.local_mesh(mesh)
        host_of = distributed.hosts_of(mesh.devices).reshape(-1)
        began = time.process_time()
        lowered, arguments = program.lowered(call), program.arguments(call)
    try:
        found = read(call, lowered, arguments, mesh.size, folder and folder / f"{call}.hlo")
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        return replace(row, reason=_reason(str(error)))
    return replace(
        row,
        reading=found,
        network_bytes=network_bytes(found.collectives, host_of.tolist()),
        cpu_seconds=time.process_time() - began,
    )


def _reason(message: str) -> str:
    """The sentence of the compiler's error that has the numbers."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    numbers = [line for line in lines if "Used" in line or "Exceeded" in line]
    return " ".join((numbers or lines)[:1])


def placements(shaped: Shaped) -> dict[str, Placement]:
    """The placement of every call, on the devices of one host."""
    with shaped.standing_in():
        plan = shaped.program.spec.resolved_plan
        return {call.name: plan.placement(call.name) for call in shaped.problem.calls}


def row(shaped: Shaped, found: Row) -> str:
    """A line of the table, and one for each kind of collective."""
    expected = "" if found.expected_bytes is None else size(found.expected_bytes)
    reading = found.reading
    if reading is None:
        return f"{found.call:{WIDTHS[0]}} does not fit: {found.reason} (planner: {expected})"
    cells = (
        found.call,
        size(reading.argument_bytes),
        size(reading.temporary_bytes),
        size(reading.peak_bytes),
        expected,
        f"{reading.flops:.3g}",
        size(reading.accessed_bytes),
        size(reading.link_bytes),
        f"{reading.seconds:.0f} s",
    )
    lines = [_columns(cells), *map(collective, reading.sums)]
    if reading.donated_bytes:
        lines.append(
            f"  donated {size(reading.donated_bytes)}, of which "
            f"{size(min(reading.alias_bytes, reading.donated_bytes))} hold results"
        )
    if found.expected_link_bytes is not None:
        between = f", {size(found.network_bytes)} of them between hosts" if _several(shaped) else ""
        lines.append(
            f"  links {size(reading.link_bytes)}{between}; the planner expects "
            f"{size(found.expected_link_bytes)}"
        )
    if found.expected_seconds is not None:
        links = reading.link_bytes / _link_bandwidth(shaped)
        lines.append(
            f"  seconds on links {links:.3g}; the planner expects {found.expected_seconds:.3g} of "
            "the whole call in a round"
        )
    return "\n".join(lines)


def _several(shaped: Shaped) -> bool:
    return shaped.problem.num_hosts > 1


def _link_bandwidth(shaped: Shaped) -> float:
    hardware = shaped.problem.hardware
    return hardware.link_efficiency * hardware.link_bandwidth


def collective(found: Sum) -> str:
    """A line about collectives of one kind."""
    where = "in loops" if found.in_loop else "outside loops"
    most = "" if found.bound == "exact" else f"at {found.bound} "
    return (
        f"  {found.kind:19s} {where:13s} {found.instructions:4d} of them, {most}{found.times} runs, "
        f"{most}{size(found.link_bytes)}"
    )


def verdict(shaped: Shaped, rows: Sequence[Row]) -> Iterator[str]:
    """A sentence for every call that does not fit beside what stays on a device, and what would.

    What stays (states, frozen params, published versions, a gold model) is the planner's figure.
    """
    problem = shaped.problem
    placed = placements(shaped)
    costs = problem.formulas()
    stays = problem.resident_bytes(Plan(placed)) + costs.held_bytes
    room = costs.device_bytes + costs.held_bytes
    gold = f" (with {size(costs.held_bytes)} of the gold model)" if costs.held_bytes else ""
    too_large = False
    for found in rows:
        reading = found.reading
        if reading is None:
            too_large = True
            continue
        over = stays + reading.working_bytes - room
        if over > 0:
            too_large = True
            yield (
                f"{found.call} does not fit by {size(over)}: it needs "
                f"{size(reading.working_bytes)} beside {size(stays)} that stay{gold}, of "
                f"{size(room)}"
            )
    try:
        problem.expected(Plan(placed))
    except Refusal as error:
        yield f"the planner: {error}"
    else:
        if too_large:
            yield "the planner expects that it fits"


def figures(shaped: Shaped, rows: Sequence[Row]) -> dict[str, Any]:
    """All figures, in types that JSON has."""
    return {
        "hardware": shaped.problem.hardware.name,
        "device_bytes": shaped.problem.hardware.memory_bytes,
        "num_devices": shaped.problem.num_devices,
        "num_hosts": shaped.problem.num_hosts,
        "notices": list(shaped.notices),
        "calls": [
            {
                "call": found.call,
                "reason": found.reason,
                "expected_bytes": found.expected_bytes,
                "expected_seconds": found.expected_seconds,
                "expected_link_bytes": found.expected_link_bytes,
                "network_bytes": found.network_bytes,
                "cpu_seconds": round(found.cpu_seconds, 1),
                "compiled": found.reading and found.reading.as_json(),
            }
            for found in rows
        ],
    }
