"""Device meshes over the axes data, fsdp and tensor, and the checks that a mesh fits devices and
batch.

On several hosts a mesh is the same slice of each host's devices. The hosts multiply `data`, so that
each host has all params, or `fsdp_hosts` of them multiply `fsdp`, so that these share one copy of the
params; the others then multiply `data`. `tensor` is inside a host.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh

from rlhf_jax.config import LARGEST, Bounds
from rlhf_jax.devices import distributed
from rlhf_jax.devices.transfer.per_host import box_of, local_mesh
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Device

AXES = ("data", "fsdp", "tensor")
Size = Annotated[int, Bounds(least=1, most=LARGEST, also=(-1,))]


@dataclass(frozen=True)
class Config:
    """Sizes of the mesh axes on each host; -1 (once) takes the devices that are left there."""

    data: Size = 1  # shards rows; params are replicated
    fsdp: Size = 1  # shards rows and params
    tensor: Size = 1  # shards the width of layers
    fsdp_hosts: Size = 1  # hosts that share one copy of the params; the others multiply data


def mesh_shape(config: Config, num_devices: int) -> tuple[int, int, int]:
    """The sizes with -1 filled in.

    Raises Refusal when the sizes do not multiply to at most `num_devices`, naming what would.
    """
    sizes = [config.data, config.fsdp, config.tensor]
    given = f"mesh is data={config.data}, fsdp={config.fsdp}, tensor={config.tensor}"
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise Refusal(
            f"{given}; accepted: positive sizes, and -1 at most once for the devices that are left"
        )
    known = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes:
        if num_devices % known:
            raise Refusal(
                f"{given}, but the {num_devices} devices here are not a multiple of {known}"
            )
        sizes[sizes.index(-1)] = num_devices // known
    if int(np.prod(sizes)) > num_devices:
        needed = int(np.prod(sizes))
        raise Refusal(
            f"{given} needs {needed} devices, but there are {num_devices} here; for virtual ones "
            "on a CPU set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={needed}"
        )
    return sizes[0], sizes[1], sizes[2]


def make_mesh(config: Config, devices: Sequence[Device] | None = None) -> Mesh:
    """A mesh over the first of some devices; its axes are of type Auto (`jax.make_mesh` gives
    Explicit ones).

    Args:
      config: sizes of the axes on each host.
      devices: of one host; None: those of every host.

    Raises Refusal where there are too few devices.
    """
    devices_by_host = (
        distributed.devices_by_host() if devices is None else np.asarray(devices)[None]
    )
    _check_tensor(config, *devices_by_host.shape)
    shape = mesh_shape(config, devices_by_host.shape[1])
    fsdp_hosts = hosts_of_a_copy(config, len(devices_by_host))
    if fsdp_hosts > 1 and shape[0] > 1:
        raise Refusal(
            f"mesh.data is {config.data} on each host beside mesh.fsdp_hosts={config.fsdp_hosts}, "
            "which would copy params inside a host and shard them between hosts; accepted: "
            f"mesh.data=1 and mesh.fsdp={shape[0] * shape[1]}"
        )
    return over_hosts(devices_by_host[:, : int(np.prod(shape))], shape, fsdp_hosts)


def _check_tensor(config: Config, num_hosts: int, devices_of_host: int) -> None:
    """Raises Refusal where tensor would be over several hosts."""
    if num_hosts > 1 and config.tensor > devices_of_host:
        raise Refusal(
            f"mesh.tensor is {config.tensor}, and each of the {num_hosts} hosts has "
            f"{devices_of_host} device(s): tensor is inside a host, because it sums activations in "
            f"every layer; accepted: mesh.tensor={devices_of_host} or fewer; "
            f"mesh.fsdp_hosts={num_hosts} shares one copy of the params over the hosts"
        )


def hosts_of_a_copy(config: Config, num_hosts: int) -> int:
    """The hosts that share one copy of the params, with -1 filled in: all.

    Raises Refusal where they do not divide the hosts that there are.
    """
    count = num_hosts if config.fsdp_hosts == -1 else config.fsdp_hosts
    if count < 1 or num_hosts % count:
        divisors = [size for size in range(1, num_hosts + 1) if num_hosts % size == 0]
        raise Refusal(
            f"mesh.fsdp_hosts is {config.fsdp_hosts}, and this run has {num_hosts} host(s), one a "
            f"process; accepted: -1 (all), {', '.join(map(str, divisors))}"
        )
    return count


def over_hosts(
    devices_by_host: np.ndarray, shape: tuple[int, int, int], fsdp_hosts: int = 1
) -> Mesh:
    """A mesh over devices of all hosts.

    Each host has a contiguous block of its row shards, in the order of the hosts, unless the wires
    between TPUs suggest another order.

    Args:
      devices_by_host: `[hosts, devices of a host]`.
      shape: sizes of data, fsdp and tensor on each host.
      fsdp_hosts: hosts that multiply fsdp; the others multiply data. With more than one of `data`
        on each host, all hosts multiply data: such a placement has all params on each host.
    """
    data, fsdp, tensor = shape
    inner = fsdp_hosts if data == 1 else 1
    outer = len(devices_by_host) // inner
    blocks = devices_by_host.reshape(outer, inner, data, fsdp, tensor).swapaxes(1, 2)
    blocks = blocks.reshape(outer * data, inner * fsdp, tensor)
    return Mesh(along_wires(blocks, shape if len(devices_by_host) > 1 else None), AXES)


def along_wires(devices: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    """The same TPUs in the order of `mesh_utils.create_device_mesh`, so that neighbours along an
    axis share a wire; as they are where it has no such order, and on other devices.

    Args:
      devices: of the whole mesh, by axis.
      shape: sizes of the axes on each host. An order that gives a host another share of the mesh is
        not taken, because the host would need other rows and params. None: one host has all.
    """
    if devices.flat[0].platform != "tpu" or devices.size == 1:
        return devices
    try:
        ordered = mesh_utils.create_device_mesh(devices.shape, list(devices.flat))
    except (NotImplementedError, ValueError, AssertionError):  # for sizes that the wires lack
        return devices
    if shape is None:
        return ordered
    process_of = distributed.hosts_of(ordered)
    boxes = [box_of(process_of, int(process)) for process in np.unique(process_of)]
    whole = all(box is not None and tuple(map(len, box)) == shape for box in boxes)
    return ordered if whole else devices


def sampler_slices(trainer: Mesh, num_slices: int, devices_per_slice: int) -> tuple[Mesh, ...]:
    """Meshes of this host's devices after the trainer's, `devices_per_slice` of them along `data`
    each; none for 0 slices.

    Raises Refusal where there are too few devices, naming how many there are.
    """
    if num_slices < 0 or devices_per_slice < 1:
        raise Refusal(
            f"rlhf.sampler_slices is {num_slices} of {devices_per_slice} devices; accepted: 0 (the "
            "trainer's own devices) or "
            "more, of 1 device or more"
        )
    taken = {device.id for device in local_mesh(trainer).devices.flat}
    remaining = [device for device in distributed.local_devices() if device.id not in taken]
    if num_slices * devices_per_slice > len(remaining):
        raise Refusal(
            f"rlhf.sampler_slices={num_slices} of rlhf.sampler_slice_devices={devices_per_slice} "
            "need "
            f"{num_slices * devices_per_slice} devices beside the trainer's {len(taken)}, but "
            f"{len(remaining)} are left of "
            f"{len(distributed.local_devices())}"
        )
    size = devices_per_slice
    return tuple(
        make_mesh(Config(data=size), remaining[index * size : (index + 1) * size])
        for index in range(num_slices)
    )


def check_rows(name: str, num_units: int, mesh: Mesh, num_micro_batches: int = 1) -> None:
    """Raises Refusal unless units of rows, at least one, divide evenly over micro-batches and the
    mesh's row shards.

    Args:
      name: of the key that has the number, for the message.
      num_units: rows, or groups of rows that are never separated, of one batch.
      mesh: of the run.
      num_micro_batches: parts that the batch is divided into first.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if num_micro_batches < 1:
        raise Refusal(
            f"num_micro_batches is {num_micro_batches} beside {name}; accepted: 1 or more"
        )
    if num_units < 1 or num_units % (shards * num_micro_batches):
        raise Refusal(
            f"{name} is {num_units}, which does not divide into {num_micro_batches} "
            "micro-batch(es) over data*fsdp = "
            f"{shards} shards; accepted: multiples of {shards * num_micro_batches}"
        )
