"""Devices to compile for that need not be here: a slice of TPUs, virtual CPU devices, or those at
hand.

libtpu compiles for every TPU on a machine without one. It reads environment variables when it is
loaded, so `Topology.environment` is applied before jax is imported. This module imports jax late for
that reason.
"""

import contextlib
import os
import re
from dataclasses import dataclass
from math import prod

import numpy as np

from rlhf_jax import extras
from rlhf_jax.refusal import Refusal

HERE = "here"
ACCEPTED = "v5e:2x4, v5p:2x2x1, v6e:4x4 and the like, cpu:8, cpu:2x4 (hosts x devices), or here"
ACCELERATORS = {"v5e": ("v5litepod-{}", 1), "v5p": ("v5p-{}", 2), "v6e": ("v6e-{}", 1)}
"""Kind of TPU -> the accelerator's name with its number, and what the number counts of a chip: cores
of a v5p, chips of the others.
"""

CHIPS_OF_HOST = (2, 2, 1)
"""Chips of a host along the sides of a slice of several hosts, as libtpu divides slices by itself."""

CHIPS_OF_ONE_HOST = {"v5e": 8, "v5p": 4, "v6e": 8}
"""The most chips of a slice that one machine has. libtpu reports two hosts of a v5e:2x4 all the same."""


@dataclass(frozen=True)
class Topology:
    """A kind of device and how many there are.

    Attributes:
      name: as it was given.
      kind: of `ACCELERATORS`, or "cpu" or "here".
      num_devices: 0 of those at hand, which are counted once jax is there.
    """

    name: str
    kind: str
    num_devices: int

    @property
    def is_tpu(self) -> bool:
        """True where libtpu compiles for devices that are not here."""
        return self.kind in ACCELERATORS

    @property
    def num_hosts(self) -> int:
        """Hosts that a name of CPU devices gives: 2 of cpu:2x4."""
        hosts, times, _ = self.name.partition(":")[2].partition("x")
        return int(hosts) if times else 1

    @property
    def environment(self) -> dict[str, str]:
        """Variables that must be set before jax is imported: JAX itself runs on the CPU, and libtpu
        asks no metadata server which machine it is on.
        """
        if self.kind == HERE:
            return {}
        if not self.is_tpu:
            return {"JAX_PLATFORMS": "cpu"}
        name, count = ACCELERATORS[self.kind]
        return {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": name.format(count * self.num_devices),
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }


def parse(name: str) -> Topology:
    """Reads a topology from its name. Raises Refusal, with examples, for any other text."""
    if name == HERE:
        return Topology(name, HERE, 0)
    kind, _, sizes = name.partition(":")
    pattern = r"[1-9]\d*(x[1-9]\d*)?" if kind == "cpu" else r"[1-9]\d*(x[1-9]\d*){1,2}"
    if kind not in (*ACCELERATORS, "cpu") or not re.fullmatch(pattern, sizes):
        raise Refusal(f"--topology is {name!r}; accepted: {ACCEPTED}")
    return Topology(name, kind, prod(map(int, sizes.split("x"))))


def devices_by_host(topology: Topology) -> np.ndarray:
    """The devices of a topology, `[hosts, devices of a host]`; see `devices`.

    A slice that one machine has counts as one host, whatever libtpu says of it.
    """
    from rlhf_jax.devices import distributed  # it imports jax

    found = np.asarray(devices(topology))
    if topology.kind == "cpu":
        return found.reshape(topology.num_hosts, -1)
    if not topology.is_tpu or topology.num_devices <= CHIPS_OF_ONE_HOST[topology.kind]:
        return found[None]
    return distributed.by_host(found)


def devices(topology: Topology) -> list:
    """The devices of a topology, in JAX's order.

    Raises Refusal where libtpu is missing or does not know the slice, and for more CPU devices than
    this process has.
    """
    import jax

    if topology.is_tpu:
        return _of_libtpu(topology)
    if topology.kind == HERE:
        return jax.devices()
    configured = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
    counted = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not counted and configured < topology.num_devices:
        # Where devices are in use already, their number is what it is.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", topology.num_devices)
    found = jax.devices()
    if len(found) < topology.num_devices:
        raise Refusal(
            f"--topology is {topology.name}, but this process has {len(found)} CPU device(s)"
        )
    return found[: topology.num_devices]


def _of_libtpu(topology: Topology) -> list:
    import jax
    from jax.experimental import topologies

    with extras.needed("tpu-compile", f"--topology={topology.name}"):
        import libtpu  # type: ignore[import-not-found] # noqa: F401 (jax loads it by itself)
    sizes = [int(size) for size in topology.name.partition(":")[2].split("x")]
    # libtpu takes a host to have 2 x 2 chips, which a smaller slice does not have.
    bounds = [min(size, most) for size, most in zip([*sizes, 1][:3], CHIPS_OF_HOST, strict=True)]
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, chips_per_host_bounds=bounds
        )
    except (jax.errors.JaxRuntimeError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise Refusal(f"libtpu has no topology {topology.name!r} ({first})") from error
    return list(found.devices)
