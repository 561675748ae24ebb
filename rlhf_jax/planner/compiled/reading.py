"""Reads a compiled call: its memory on a device, FLOPs, collectives, and what it does with donated
arguments.
"""

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax.planner.compiled.collectives import Collective, Sum, collectives, sums


@dataclass(frozen=True)
class Reading:
    """A compiled call, in figures of one device.

    Attributes:
      call: its name.
      argument_bytes: of its arguments.
      output_bytes: of its results; `alias_bytes` of them lie in donated arguments.
      temporary_bytes: that it needs beside both.
      donated_bytes: of the arguments that it may overwrite.
      flops: as XLA counts them, the body of a loop once.
      accessed_bytes: of memory, as XLA counts them, the body of a loop once.
      collectives: in the order of the program.
      seconds: that compiling took.
      fingerprint: of the lowered program: another one compiles to other figures.
    """

    call: str
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    alias_bytes: int
    donated_bytes: int
    flops: float
    accessed_bytes: float
    collectives: tuple[Collective, ...]
    seconds: float
    fingerprint: str

    @property
    def working_bytes(self) -> int:
        """Bytes that the call needs beside its arguments."""
        return self.temporary_bytes + self.output_bytes - self.alias_bytes

    @property
    def peak_bytes(self) -> int:
        """Bytes of the device that the call takes, arguments included."""
        return self.argument_bytes + self.working_bytes

    @property
    def link_bytes(self) -> float:
        """Bytes that the device sends to others in one call."""
        return sum(each.total_bytes for each in self.collectives)

    @property
    def sums(self) -> list[Sum]:
        """Collectives by kind, inside of loops and outside, those that send most first."""
        return sums(self.collectives)

    def as_json(self) -> dict[str, Any]:
        """The figures, and each collective, in types that JSON has."""
        fields = dataclasses.asdict(self)
        for found, each in zip(fields["collectives"], self.collectives, strict=True):
            found["link_bytes"], found["total_bytes"] = each.link_bytes, each.total_bytes
            del found["groups"]
        return fields | {"link_bytes": self.link_bytes, "peak_bytes": self.peak_bytes}


def read(
    call: str,
    lowered: jax.stages.Lowered,
    arguments: object,
    num_devices: int,
    path: Path | None = None,
) -> Reading:
    """Compiles a lowered call and reads it.

    Args:
      call: its name.
      lowered: from shapes; says which arguments are donated.
      arguments: that it was lowered for, shapes with shardings.
      num_devices: of its mesh.
      path: of a file for the compiled program's text; None: it is not kept.
    """
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    text = compiled.as_text() or ""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    memory: Any = compiled.memory_analysis()
    costs = compiled.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, Sequence) else costs
    return Reading(
        call=call,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        donated_bytes=donated_bytes(lowered, arguments),
        flops=costs.get("flops", 0.0),
        accessed_bytes=costs.get("bytes accessed", 0.0),
        collectives=tuple(collectives(text, num_devices)),
        seconds=seconds,
        fingerprint=fingerprint(lowered),
    )


def fingerprint(lowered: jax.stages.Lowered) -> str:
    """Returns 16 hexadecimal digits of a lowered program's text: programs with equal ones are one."""
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16]


def donated_bytes(lowered: jax.stages.Lowered, arguments: object) -> int:
    """Bytes of a device's part of the arguments that a call may overwrite.

    Args:
      lowered: says which they are.
      arguments: shapes with shardings.
    """
    infos = jax.tree.leaves(lowered.args_info[0])
    leaves: list[Any] = jax.tree.leaves(arguments)
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * np.dtype(leaf.dtype).itemsize
        for leaf, info in zip(leaves, infos, strict=True)
        if info.donated
    )
