"""Seconds of collectives over the axes of a mesh: rings of the links that join an axis' devices.

With n devices, b bytes of the whole array and bandwidth w a device (Thakur et al. 2005, int. j. of
high performance computing
applications 19, §4):  all-reduce 2 (n − 1)/n · b/w,  all-gather and reduce-scatter (n − 1)/n · b/w,  each and a latency.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from rlhf_jax.planner.costs.hardware import Hardware


@dataclass(frozen=True)
class Ring:
    """The devices of an axis: their number, and the bandwidth of each to the next in bytes/s."""

    size: int
    bandwidth: float
    latency: float

    def all_gather(self, whole_bytes: float) -> float:
        """Seconds until every device has the whole; a reduce-scatter takes as long."""
        if self.size == 1 or not whole_bytes:
            return 0.0
        return (self.size - 1) / self.size * whole_bytes / self.bandwidth + self.latency

    def all_reduce(self, whole_bytes: float) -> float:
        """Seconds until every device has the sum."""
        if self.size == 1 or not whole_bytes:
            return 0.0
        return 2 * (self.size - 1) / self.size * whole_bytes / self.bandwidth + self.latency


@dataclass(frozen=True)
class Rings:
    """Rings of every axis of a mesh; `rows` is data and fsdp together."""

    data: Ring
    fsdp: Ring
    tensor: Ring
    rows: Ring


@cache
def rings(hardware: Hardware, devices: tuple[int, ...], mesh_shape: tuple[int, int, int]) -> Rings:
    """The rings of a placement; `hardware` is the device as it is in that call."""
    hosts = np.asarray(devices).reshape(mesh_shape) // hardware.devices_per_host
    data, fsdp, tensor = mesh_shape
    return Rings(
        data=_ring(hardware, np.moveaxis(hosts, 0, -1).reshape(-1, data)),
        fsdp=_ring(hardware, np.moveaxis(hosts, 1, -1).reshape(-1, fsdp)),
        tensor=_ring(hardware, hosts.reshape(-1, tensor)),
        rows=_ring(hardware, np.moveaxis(hosts, 2, 0).reshape(tensor, -1)),
    )


def _ring(hardware: Hardware, host_of_groups: np.ndarray) -> Ring:
    """Ring of the slowest group of an axis, `[groups, devices]`.

    Between hosts a group has the network of all of its devices of a host, since every one of them
    carries a part.
    """
    bandwidth = hardware.link_bandwidth
    for group in host_of_groups:
        if (group != group[0]).any():
            fewest = int(np.unique(group, return_counts=True)[1].min())
            bandwidth = min(bandwidth, hardware.network_bandwidth * fewest)
    return Ring(
        host_of_groups.shape[1], hardware.link_efficiency * bandwidth, hardware.collective_latency
    )


def copies_apart(
    found: Rings, hardware: Hardware, devices: tuple[int, ...], mesh_shape: tuple[int, int, int]
) -> tuple[Rings, Ring | None]:
    """The rings of the devices that share one copy of the params, and the ring over the copies; where
    no two copies are on different hosts, the rings as they are, and None.

    Args:
      found: of the mesh.
      hardware: whose hosts have consecutive devices.
      devices: of the mesh.
      mesh_shape: data, fsdp, tensor.
    """
    hosts = np.asarray(devices).reshape(mesh_shape) // hardware.devices_per_host
    if not (hosts != hosts[:1]).any():
        return found, None
    return replace(found, data=replace(found.data, size=1), rows=found.fsdp), found.data


def tensor_crosses_hosts(
    hardware: Hardware, devices: tuple[int, ...], mesh_shape: tuple[int, int, int]
) -> bool:
    """True where some group of the tensor axis has devices of several hosts."""
    hosts = np.asarray(devices).reshape(-1, mesh_shape[2]) // hardware.devices_per_host
    return bool((hosts != hosts[:, :1]).any())
