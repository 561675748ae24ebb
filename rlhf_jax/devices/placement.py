"""An execution plan as text, and where each call of a plan runs.

    plan      entries separated by ";" or a line's end      "generate: 0-3 data=4; others: 4-7 fsdp=4 micro_batches=2"
    entry     call: devices [data=n] [fsdp=n] [tensor=n] [micro_batches=n] [remat | no-remat]
    devices   indices in the list of devices                0-3, or 0,2,4-5; on several hosts, of every host's own
    call      one of `dataflow.roles` (generate, reference, ...), or others: all that have no entry

Axes that are not named are 1; where no axis is named, all devices are along `data`. A call without
an entry runs on the run's mesh.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, Sharding

from rlhf_jax import dataflow
from rlhf_jax.devices import distributed
from rlhf_jax.devices.mesh import AXES, over_hosts
from rlhf_jax.devices.transfer import per_host
from rlhf_jax.devices.transfer.reallocate import move
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Device, Placement, Plan

T = TypeVar("T")
OTHERS = "others"
SIZES = (*AXES, "micro_batches")


def parse(text: str) -> Plan:
    """Reads a plan from its text; "" is the plan that names no call.

    Raises Refusal naming the entry, and what would be accepted.
    """
    placements: dict[str, Placement] = {}
    accepted = (*dataflow.roles(), OTHERS)
    for entry in filter(None, (line.strip() for line in re.split(r"[;\n]", text))):
        name, colon, rest = (word.strip() for word in entry.partition(":"))
        if not colon or name not in accepted:
            raise Refusal(
                f"plan entry {entry!r} names no call; accepted: {', '.join(accepted)}, then a colon"
            )
        if name in placements:
            raise Refusal(f"the plan places {name} twice")
        placements[name] = _placement(name, rest.split())
    return Plan(placements)


def _placement(name: str, words: Sequence[str]) -> Placement:
    devices = _devices(name, words[0] if words else "")
    sizes, remat = {}, None
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if word in ("remat", "no-remat"):
            remat = word == "remat"
        elif key in SIZES and equals and value.isdigit() and int(value) > 0:
            sizes[key] = int(value)
        else:
            accepted = ", ".join(f"{key}=n" for key in SIZES)
            raise Refusal(
                f"plan entry {name!r} has {word!r}; accepted: {accepted}, remat, no-remat"
            )
    num_micro_batches = sizes.pop("micro_batches", 1)
    shape = tuple(sizes.get(axis, 1) for axis in AXES) if sizes else (len(devices), 1, 1)
    if int(np.prod(shape)) != len(devices):
        raise Refusal(
            f"plan entry {name!r} has {len(devices)} devices, but data={shape[0]} fsdp={shape[1]} "
            f"tensor={shape[2]} needs "
            f"{int(np.prod(shape))}"
        )
    return Placement(devices, shape, num_micro_batches, remat)  # type: ignore[arg-type]


def _devices(name: str, text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise Refusal(
            f"plan entry {name!r} has devices {text!r}; accepted: places such as 0-3 or 0,2,4-5"
        )
    indices: list[int] = []
    for interval in text.split(","):
        first, _, last = interval.partition("-")
        indices += range(int(first), int(last or first) + 1)
    if not indices or len(set(indices)) < len(indices):
        raise Refusal(
            f"plan entry {name!r} has devices {text!r}, of which some come twice or none is"
        )
    return tuple(indices)


def text_of(plan: Plan) -> str:
    """The text of a plan; `parse` reads it as the same plan."""
    return "; ".join(
        f"{name}: {describe(placement)}" for name, placement in plan.placements.items()
    )


def describe(placement: Placement) -> str:
    """The text of a placement, as an entry of a plan has it."""
    sizes = [
        f"{axis}={size}" for axis, size in zip(AXES, placement.mesh_shape, strict=True) if size > 1
    ]
    micro_batches = (
        [f"micro_batches={placement.num_micro_batches}"] if placement.num_micro_batches > 1 else []
    )
    remat = [] if placement.remat is None else ["remat" if placement.remat else "no-remat"]
    return " ".join([ranges(placement.devices), *sizes, *micro_batches, *remat])


def ranges(devices: Sequence[int], between: str = ",") -> str:
    """The text of device indices in their order, with consecutive ones as a range: 0-3,6.

    Args:
      devices: indices in the list of devices.
      between: separates the ranges.
    """
    runs: list[list[int]] = []
    for device in devices:
        if runs and device == runs[-1][-1] + 1:
            runs[-1].append(device)
        else:
            runs.append([device])
    return between.join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


@dataclass(frozen=True)
class ResolvedPlan:
    """The placement of every call: the plan's, or the run's mesh.

    `devices` are all devices, or `[hosts, devices of a host]`: a placement is the same slice of
    devices on every host.

    Raises Refusal for a plan that names a device which does not exist.
    """

    default: Mesh
    devices: Sequence[Device] | np.ndarray
    plan: Plan = field(default_factory=Plan)
    num_micro_batches: int = 1  # of training calls that have no entry

    def __post_init__(self) -> None:
        for name, placement in self.plan.placements.items():
            num_devices = self._grid.shape[1]
            if max(placement.devices) >= num_devices:
                raise Refusal(
                    f"the plan places {name} on devices {ranges(placement.devices)}, but there are "
                    f"{num_devices} "
                    f"here: 0-{num_devices - 1}"
                )

    @property
    def _grid(self) -> np.ndarray:
        return np.atleast_2d(np.asarray(self.devices))

    def placement(self, call: str) -> Placement:
        """Placement of a call; a call that the plan does not name is placed on the run's mesh."""
        placements = self.plan.placements
        if call in placements:
            return placements[call]
        return placements[OTHERS] if OTHERS in placements else self._default_placement(call)

    def _default_placement(self, call: str) -> Placement:
        index_of = {device: index for index, device in enumerate(self._grid[0])}
        used = self.default.devices.flat
        if len(self._grid) > 1:
            used = [device for device in used if device in index_of]
        hosts = per_host.hosts_of_axis(self.default)
        shape = tuple(self.default.shape[axis] // hosts[axis] for axis in AXES)
        num_micro_batches = self.num_micro_batches if call in dataflow.TRAIN_CALLS else 1
        return Placement(tuple(index_of[device] for device in used), shape, num_micro_batches)  # type: ignore[arg-type]

    def mesh(self, call: str) -> Mesh:
        """Mesh of a call. Calls on the same devices in the same shape share one mesh."""
        if call not in self.plan.placements and OTHERS not in self.plan.placements:
            return self.default
        placement, hosts = self.placement(call), per_host.hosts_of_axis(self.default)
        devices = self._grid[:, list(placement.devices)]
        return over_hosts(devices, placement.mesh_shape, hosts["fsdp"])

    def micro_batches(self, call: str) -> int:
        """Number of micro-batches of a call."""
        return self.placement(call).num_micro_batches

    def changes(self, call: str) -> Mapping[str, bool]:
        """Settings of a call's model that differ from the run's model."""
        remat = self.placement(call).remat
        return {} if remat is None else {"remat": remat}


def put(tree: T, shardings: object) -> T:
    """Returns a tree of arrays in the given shardings.

    The tree itself is returned where it has these shardings already, and copies elsewhere; of
    shapes, shapes with the shardings.

    Args:
      tree: of device arrays, of host arrays that every process has whole, or of shapes.
      shardings: a tree of shardings like it.
    """
    leaves, wanted = jax.tree.leaves(tree), jax.tree.leaves(shardings)
    if leaves and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            tree,
            shardings,
        )
    on_devices = all(isinstance(leaf, jax.Array) and leaf.committed for leaf in leaves)
    if not on_devices:  # host arrays, and device arrays without a committed device
        return _feed(tree, shardings) if distributed.several() else jax.device_put(tree, shardings)
    if all(
        leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        for leaf, sharding in zip(leaves, wanted, strict=True)
    ):
        return tree
    return move(tree, shardings) if not distributed.several() else per_host.reshard(tree, shardings)


def _feed(tree: T, shardings: object) -> T:
    """Multi-host case of `put`: reshards device arrays, and feeds host arrays."""

    def put_leaf(leaf: T, sharding: Sharding) -> T:
        on_device = isinstance(leaf, jax.Array) and leaf.committed
        return put([leaf], [sharding])[0] if on_device else distributed.feed(leaf, sharding)

    return jax.tree.map(put_leaf, tree, shardings)
