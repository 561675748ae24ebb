"""Reads the collectives of a compiled program: their kind, number, and bytes on the links of a
device.

With n devices in a group and W bytes of the whole array, each device sends by a ring (Thakur et al.
2005, int. j. of high performance computing applications 19, §4; the formulas of
`planner/costs/collectives.py`):

    all-gather           (n − 1)/n · W      W: the result
    reduce-scatter       (n − 1)/n · W      W: the operand
    all-reduce           2 (n − 1)/n · W    W: the operand
    all-to-all           (n − 1)/n · W      W: the operand of one device
    collective-permute   W                  W: the operand of one device
    collective-broadcast W                  W: the operand

An asynchronous collective is counted at its start. TPUs fuse an all-reduce with the slice that a
device keeps of it: that is a reduce-scatter, and is counted as one. They also carry one collective
through the fusions of other products and through their loops: it is counted once, by its channel,
where it begins. What a loop's body holds is counted
as often as the body runs, loops in loops too; of a conditional the branch that sends most.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from rlhf_jax.planner.compiled.groups import crosses, groups
from rlhf_jax.planner.compiled.hlo import Computation, Instruction, Module, arrays, parse
from rlhf_jax.planner.costs.collectives import Ring

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
PARAMETERS = {"call": "to_apply", "fusion": "calls", "async-start": "calls"}
"""Opcode -> the attribute that names the computation which it runs once."""


Bound = Literal["exact", "most", "least"]


@dataclass(frozen=True)
class Collective:
    """A collective instruction, with every run of it.

    Attributes:
      kind: one of `KINDS`; a fused all-reduce and slice is a "reduce-scatter".
      group_size: devices that take part together.
      operand_bytes: of a device, in one run.
      times: runs of it in one call of the program.
      depth: loops that it lies in.
      bound: "exact"; "most" where a loop may end before or a branch may not be taken; "least" where
        a loop's number of runs is not known and taken as 1.
      shape: of its result or its operand, whichever is whole, as HLO writes it, without layout.
      operation: the operation of the traced program that it came from, or "".
      groups: devices of each group that takes part together.
    """

    kind: str
    group_size: int
    operand_bytes: int
    times: int
    depth: int
    bound: Bound
    shape: str
    operation: str
    groups: tuple[tuple[int, ...], ...] = ()

    @property
    def link_bytes(self) -> float:
        """Bytes that a device sends in one run."""
        ring = Ring(self.group_size, bandwidth=1.0, latency=0.0)  # its seconds are bytes
        if self.kind == "all-reduce":
            return ring.all_reduce(self.operand_bytes)
        if self.kind == "all-gather":
            return ring.all_gather(self.operand_bytes * self.group_size)
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.operand_bytes)
        return ring.all_gather(self.operand_bytes)

    @property
    def total_bytes(self) -> float:
        """Bytes that a device sends in one call of the program."""
        return self.times * self.link_bytes


@dataclass(frozen=True)
class Sum:
    """Collectives of one kind, inside of loops or outside."""

    kind: str
    in_loop: bool
    instructions: int
    times: int
    link_bytes: float
    bound: Bound


@dataclass(frozen=True)
class _Found:
    """A collective, and the channel of one that lies in a fusion."""

    collective: Collective
    channel: int | None


def collectives(text: str, num_devices: int) -> list[Collective]:
    """The collectives of an optimized module, in the order of the program.

    Args:
      text: as `jax.stages.Compiled.as_text` gives it.
      num_devices: that the program runs on: a collective that names no group is of all of them.
    """
    module = parse(text)
    found = _of(module, module.computations[module.entry], num_devices)
    return [each.collective for each in found]


def sums(found: Sequence[Collective]) -> list[Sum]:
    """Adds up collectives by kind and place, those that send most first."""
    keys = {(each.kind, each.depth > 0) for each in found}
    added = []
    for kind, in_loop in keys:
        same = [each for each in found if (each.kind, each.depth > 0) == (kind, in_loop)]
        added.append(
            Sum(
                kind,
                in_loop,
                len(same),
                sum(each.times for each in same),
                sum(each.total_bytes for each in same),
                _weakest(each.bound for each in same),
            )
        )
    return sorted(added, key=lambda each: (-each.link_bytes, each.kind, each.in_loop))


def _weakest(bounds: Iterable[Bound]) -> Bound:
    """The bound of a sum: where one number is only known to be at least so much, so is the sum."""
    return max(bounds, key=("exact", "most", "least").index)


def _of(module: Module, computation: Computation, num_devices: int) -> list[_Found]:
    """Collectives of a computation and of those that it calls, for one run of it.

    One that several fusions carry on is kept where it lies in the fewest loops: where it begins.
    """
    found = [
        each
        for instruction in computation
        for each in _instruction(module, computation, instruction, num_devices)
    ]
    depths: dict[int, int] = {}
    for each in found:
        if each.channel is not None:
            depth = depths.get(each.channel, each.collective.depth)
            depths[each.channel] = min(depth, each.collective.depth)
    kept = []
    for each in found:
        if each.channel is None or depths.get(each.channel) == each.collective.depth:
            kept.append(each)
            if each.channel is not None:
                depths[each.channel] = -1
    return kept


def _instruction(
    module: Module, computation: Computation, instruction: Instruction, num_devices: int
) -> Iterator[_Found]:
    """Collectives of an instruction, for one run of it."""
    opcode = instruction.opcode
    kind = opcode.removesuffix("-start")
    if kind in KINDS:
        channel = instruction.channel if computation.name in module.fused else None
        collective = _collective(module, computation, instruction, kind, num_devices)
        yield _Found(collective, channel)
    elif opcode == "while":
        yield from _loop(module, computation, instruction, num_devices)
    elif opcode == "conditional":
        branches = [
            _of(module, module.computations[name], num_devices)
            for name in _branches(instruction.attributes)
        ]
        most = max(branches, key=lambda found: sum(each.collective.total_bytes for each in found))
        for each in most:
            bound = _weakest(["most", each.collective.bound])
            yield _Found(replace(each.collective, bound=bound), each.channel)
    elif opcode in PARAMETERS and (called := instruction.called(PARAMETERS[opcode])):
        inside = module.computations[called]
        for each in inside:
            yield from _instruction(module, inside, each, num_devices)


def _branches(attributes: str) -> list[str]:
    """Names of the computations of a conditional."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", attributes)
    named = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", attributes)
    return [name.strip().lstrip("%") for name in listed[1].split(",")] if listed else named


def _loop(
    module: Module, computation: Computation, loop: Instruction, num_devices: int
) -> Iterator[_Found]:
    trips = module.trips(computation, loop)
    bound: Bound = "least" if trips is None else "exact" if trips.exact else "most"
    for key in ("body", "condition"):
        inside = module.computations[loop.called(key) or ""]
        for each in _of(module, inside, num_devices):
            collective = replace(
                each.collective,
                times=each.collective.times * (trips.count if trips else 1),
                depth=each.collective.depth + 1,
                bound=_weakest([each.collective.bound, bound]),
            )
            yield _Found(collective, each.channel)


def _collective(
    module: Module, computation: Computation, instruction: Instruction, kind: str, num_devices: int
) -> Collective:
    operands = [computation.instructions[name] for name in instruction.operands]
    num_bytes = sum(operand.num_bytes for operand in operands)
    together = groups(instruction.attributes, num_devices)
    size = num_devices if kind == "collective-permute" else len(together[0])
    if kind == "all-reduce" and _is_scattered(module, computation, instruction, size):
        kind = "reduce-scatter"
    operation = re.search(r'op_name="([^"]*)"', instruction.attributes)
    whole = instruction.shape if kind == "all-gather" else operands[0].shape
    kinds = arrays(whole)
    shape = ", ".join(f"{name}[{','.join(map(str, sizes))}]" for name, sizes in kinds[-1:])
    return Collective(
        kind,
        size,
        num_bytes,
        1,
        0,
        "exact",
        shape,
        operation[1] if operation else "",
        tuple(map(tuple, together)),
    )


def network_bytes(found: Sequence[Collective], host_of: Sequence[int]) -> float:
    """Bytes that a device sends in one call of the program, in collectives between hosts.

    Args:
      found: of a program.
      host_of: the host of each device, by its place in the program's order.
    """
    return sum(each.total_bytes for each in found if crosses(each.groups, host_of))


def _is_scattered(
    module: Module, computation: Computation, instruction: Instruction, size: int
) -> bool:
    """True for an all-reduce in a fusion that keeps a device's slice of the sum and nothing else."""
    if computation.name not in module.fused:
        return False
    users = computation.users(instruction.name)
    slices = [user for user in users if user.opcode == "dynamic-slice"]
    kept = sum(prod(sizes) for user in slices for _, sizes in arrays(user.shape))
    whole = sum(prod(sizes) for _, sizes in arrays(instruction.shape))
    return bool(slices) and len(slices) == len(users) and kept < whole <= kept * size
