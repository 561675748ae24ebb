"""Parts of the environment that may change a run's numbers: pinned, refused, or recorded at each
start and compared at the next.

pinned     the generator of random numbers (`randomness.py`), threefry_partitionable
refused    64 bits
recorded   versions, devices, cores, XLA's flags, switches of JAX such as the precision of products
"""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from rlhf_jax.devices import processor
from rlhf_jax.devices.transfer.per_host import hosts_of_axis
from rlhf_jax.refusal import Refusal

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
SWITCHES = (
    "jax_default_matmul_precision",
    "jax_disable_jit",
    "jax_disable_most_optimizations",
    "jax_optimization_level",
    "jax_exec_time_optimization_effort",
    "jax_memory_fitting_level",
    "jax_memory_fitting_effort",
    "jax_numpy_dtype_promotion",
    "jax_softmax_custom_jvp",
    "jax_allow_f16_reductions",
    "jax_compiler_enable_remat_pass",
    "jax_use_shardy_partitioner",
    "jax_use_direct_linearize",
    "jax_threefry_gpu_kernel_lowering",
    "eager_constant_folding",
)
VARIABLES = (
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "NVIDIA_TF32_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
    "TF_CUDNN_DETERMINISTIC",
)
COUNTS = ("the number of devices", "the number of processes")
"""Beginnings of differences that change numbers by rounding only, as another mesh does."""
HARMLESS_FLAGS = ("--xla_force_host_platform_device_count", "--xla_dump_")
"""The number of devices is recorded as such, and what is dumped changes nothing."""


def pin() -> None:
    """Sets what would change the run's random numbers to JAX's defaults, for the process.

    Raises Refusal where JAX is to compute with 64 bits: the programs are of 32, and other numbers
    would come out.
    """
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise Refusal(
            "jax_enable_x64 is on (the variable JAX_ENABLE_X64, or jax.config); accepted: off, a "
            "run computes with 32 bits"
        )
    if not jax.config.jax_threefry_partitionable:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_threefry_partitionable", True)


def snapshot() -> dict[str, Any]:
    """The environment of a start, for JSON."""
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "num_devices": len(devices),
        "num_processes": jax.process_count(),
        "processor": processor.kind(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "switches": {
            name: str(getattr(jax.config, name)) for name in SWITCHES if hasattr(jax.config, name)
        },
        "variables": {name: os.environ[name] for name in VARIABLES if os.environ.get(name)},
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differences of two snapshots that may change numbers, each as "NAME was X and is Y". A name
    that one of them lacks is not compared.
    """
    flat_before, flat_now = _comparable(before), _comparable(now)
    return [
        f"{name} was {flat_before[name] or 'not set'} and is {flat_now[name] or 'not set'}"
        for name in sorted(flat_before.keys() & flat_now.keys())
        if flat_before[name] != flat_now[name]
    ]


def _comparable(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a snapshot that may change numbers, by the names that messages have."""
    names = {
        "platform": "the platform",
        "device": "the kind of device",
        "num_devices": "the number of devices",
    }
    names |= {
        "num_processes": "the number of processes",
        "processor": "the processor",
        "cores": "the number of cores",
    }
    comparable = {title: entries[name] for name, title in names.items() if name in entries}
    comparable |= {
        f"the version of {name}": version for name, version in entries.get("versions", {}).items()
    }
    comparable |= entries.get("switches", {})
    if "variables" in entries:
        comparable |= {name: _flags(entries["variables"].get(name, "")) for name in VARIABLES}
    return comparable


def _flags(text: str) -> str:
    """Flags in one order, without those that change nothing."""
    return " ".join(sorted(flag for flag in text.split() if not flag.startswith(HARMLESS_FLAGS)))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(name), "__version__", "unknown"))


def mesh_on_each_host(mesh: Mesh) -> dict[str, int]:
    """The sizes of the mesh that is used, on each host, as `mesh.Config` gives them: nothing is
    left to -1.
    """
    hosts = hosts_of_axis(mesh)
    sizes = {axis: size // hosts[axis] for axis, size in mesh.shape.items()}
    return sizes | {"fsdp_hosts": hosts["fsdp"]}
