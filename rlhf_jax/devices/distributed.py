"""Several processes, each with its own devices, as one run: how they find each other, and what
they send to each other.

    environment      says more than one process by          which they are is said by
    explicit         JAX_NUM_PROCESSES > 1                  JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID
    Slurm (srun)     SLURM_STEP_NUM_TASKS > 1               jax.distributed
    Open MPI         OMPI_COMM_WORLD_SIZE > 1               jax.distributed; without OMPI_MCA_orte_hnp_uri (version 5)
                                                            JAX_COORDINATOR_ADDRESS and OMPI_COMM_WORLD_RANK
    other MPI        PMI_SIZE > 1                           JAX_COORDINATOR_ADDRESS and PMI_RANK
    Cloud TPU, GKE   a comma in TPU_WORKER_HOSTNAMES or     jax.distributed
                     TPU_PROCESS_ADDRESSES
    whatever else    JAX_NUM_PROCESSES=auto                 jax.distributed (metadata of TPU VMs, a Kubernetes Job)

Every process runs the same program, and calls what is called collective here in the same order. The
first process writes; the run's directory is one that all see. With one process nothing here does
anything.
"""

import contextlib
import json
import os
import sys
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from rlhf_jax.devices.dispatch import Compiled as Compiled
from rlhf_jax.devices.dispatch import compiled as compiled
from rlhf_jax.devices.dispatch import compiled_here as compiled_here
from rlhf_jax.devices.dispatch import must_await as must_await
from rlhf_jax.devices.dispatch import settled as settled
from rlhf_jax.devices.dispatch import several as several
from rlhf_jax.devices.processes import coordinator, ending, liveness
from rlhf_jax.devices.processes.messages import place
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Device

HEARTBEAT_SECONDS = 45
"""A process that jax has not heard of for so long is taken for dead, and jax ends all, with a stack
trace. `processes.liveness` notices it before.
"""
GOODBYE_SECONDS = 600
"""How long a process that has ended well waits for the others: the first writes the report.

Dead ones are noticed sooner.
"""
MESSAGE_BYTES = 512
T = TypeVar("T")
LIST_OF_HOSTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")

_writes = True
_own_file: ContextVar[bool] = ContextVar("own_file", default=False)
_stand_ins: list[np.ndarray] = []


def writes() -> bool:
    """Returns whether this process writes a run's files and prints: of several processes, only the
    first does.

    `initialize` decides it. Reading the flag initialises no device backend, which `is_first` does.
    """
    return _writes or _own_file.get()


@contextlib.contextmanager
def own_file() -> Iterator[None]:
    """Lets this thread write in the block, on every process: a file that no other process writes."""
    token = _own_file.set(True)
    try:
        yield
    finally:
        _own_file.reset(token)


def _only_read() -> None:
    global _writes
    _writes = False


def arguments(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize` in this environment; {}: it finds them itself;
    None: one process.

    Raises Refusal naming the variable that is missing or is no number.
    """
    count = environment.get("JAX_NUM_PROCESSES", "")
    if count == "auto":
        return {}
    if count:
        return _explicit(environment, "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    if _number(environment, "SLURM_STEP_NUM_TASKS", "1") > 1:
        return {}
    if _number(environment, "OMPI_COMM_WORLD_SIZE", "1") > 1:
        if "OMPI_MCA_orte_hnp_uri" in environment:
            return {}
        return _explicit(environment, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
    if _number(environment, "PMI_SIZE", "1") > 1:
        return _explicit(environment, "PMI_SIZE", "PMI_RANK")
    return {} if any("," in environment.get(name, "") for name in LIST_OF_HOSTS) else None


def _explicit(environment: Mapping[str, str], size: str, rank: str) -> dict[str, Any] | None:
    count, address = _number(environment, size), environment.get("JAX_COORDINATOR_ADDRESS", "")
    if count == 1:
        return None
    if not address.rpartition(":")[2].isdecimal():
        raise Refusal(
            f"{size} is {count}, and JAX_COORDINATOR_ADDRESS is {address!r}; accepted: HOST:PORT "
            "of the process 0"
        )
    process = _number(environment, rank)
    if not 0 <= process < count:
        raise Refusal(f"{rank} is {process} beside {size}={count}; accepted: 0 to {count - 1}")
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": process,
        "cluster_detection_method": "deactivate",
    }


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    text = environment.get(name, default)
    if not text.isdecimal() or (name.endswith(("SIZE", "PROCESSES")) and not int(text)):
        raise Refusal(f"{name} is {text!r}; accepted: a number")
    return int(text)


def initialize(environment: Mapping[str, str] = os.environ) -> bool:
    """Joins the run's other processes, before any device is touched; False where the environment
    names none.

    Where they do not all meet within JAX_INITIALIZATION_SECONDS (300), says so and ends the process
    with status 2. Raises Refusal, naming the variable, for an environment that contradicts itself,
    and where they have not equally many devices.
    """
    settings = arguments(environment)
    if settings is None:
        return False
    seconds = _number(environment, "JAX_INITIALIZATION_SECONDS", "300")
    # jax itself would abort with a stack trace; its deadline is later than ours, so that this is
    # what is said.
    watch = threading.Timer(seconds, _did_not_meet, (settings, seconds))
    watch.daemon = True
    watch.start()
    try:
        with coordinator.outside():
            jax.distributed.initialize(
                **settings,
                initialization_timeout=2 * seconds + 60,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=GOODBYE_SECONDS,
            )
        liveness.begin(*place(), ending.of_another)
        if not is_first():
            _only_read()
        devices_by_host()
    except RuntimeError as error:  # XLA's errors are RuntimeErrors, too
        first = str(error).strip().splitlines()[0]
        raise Refusal(
            f"the {settings.get('num_processes', '')} processes did not meet ({first})"
        ) from error
    finally:
        watch.cancel()
    return True


def _did_not_meet(settings: Mapping[str, Any], seconds: int) -> None:
    """Ends the process with a message where not all processes came; the call that waits for them
    cannot be interrupted.
    """
    who = (
        f"process {settings['process_id']} of {settings['num_processes']}"
        if settings
        else "a process"
    )
    where = f" at {settings['coordinator_address']}" if settings else ""
    print(
        f"error: {who} did not meet the others{where} within {seconds} s; accepted: as many "
        "processes as are said, each with a "
        "number of its own, which all reach the address of process 0 (JAX_INITIALIZATION_SECONDS "
        "waits longer)",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def mesh_of(sharding: Sharding) -> Mesh:
    """The mesh of a NamedSharding over devices."""
    assert isinstance(sharding, NamedSharding)
    assert isinstance(sharding.mesh, Mesh)
    return sharding.mesh


def is_first() -> bool:
    """True for the process that writes metrics, samples and reports."""
    return jax.process_index() == 0


def devices_by_host() -> np.ndarray:
    """Devices `[hosts, devices of a host]`, hosts in the order of their processes.

    Devices that stand in for others (`standing_in`) have the hosts that were given.

    Raises Refusal where the hosts have not equally many.
    """
    return _stand_ins[-1] if _stand_ins else by_host(jax.devices())


def by_host(devices: Iterable[Device]) -> np.ndarray:
    """Devices `[hosts, devices of a host]` by their processes, whose order the hosts have.

    Args:
      devices: of all hosts.

    Raises Refusal where the hosts have not equally many.
    """
    devices_by_process: dict[int, list[Device]] = {}
    for device in devices:
        devices_by_process.setdefault(device.process_index, []).append(device)
    counts = [len(devices_by_process[process]) for process in sorted(devices_by_process)]
    if len(set(counts)) > 1:
        raise Refusal(
            f"the processes have {counts} devices; accepted: the same number on every host"
        )
    return np.asarray([devices_by_process[process] for process in sorted(devices_by_process)])


def local_devices() -> Sequence[Device]:
    """Devices of this host, or those that stand in for them."""
    return list(_stand_ins[-1][0]) if _stand_ins else jax.local_devices()


def num_hosts() -> int:
    """The number of processes, or of the hosts whose devices stand in for theirs."""
    return len(_stand_ins[-1]) if _stand_ins else jax.process_count()


def host_index() -> int:
    """The index of this process, or the first of the hosts whose devices stand in."""
    return 0 if _stand_ins else jax.process_index()


def hosts_of(devices: np.ndarray) -> np.ndarray:
    """The host of each device.

    Args:
      devices: of a mesh, of any shape.
    """
    of_stand_in = {}
    if _stand_ins:
        of_stand_in = {each: host for host, row in enumerate(_stand_ins[-1]) for each in row}
    hosts = [of_stand_in.get(each, each.process_index) for each in devices.flat]
    return np.asarray(hosts, int).reshape(devices.shape)


def stood_in_for() -> tuple[tuple[Device, ...], ...]:
    """The devices that stand in, by host; empty where none do. What is cached by mesh depends on it."""
    return tuple(map(tuple, _stand_ins[-1])) if _stand_ins else ()


@contextlib.contextmanager
def standing_in(devices: Sequence[Device] | np.ndarray) -> Iterator[None]:
    """Has meshes and placements made in the block take these devices for all there are.

    Programs for them can be compiled, and not run: they may be of a machine that is not here. The
    first host counts as this one.

    Args:
      devices: of one host, or `[hosts, devices of a host]`.
    """
    _stand_ins.append(np.atleast_2d(np.asarray(devices)))
    try:
        yield
    finally:
        _stand_ins.pop()


def fetch(tree: object) -> Any:
    """Returns a tree like the given one with numpy arrays in place of jax's, whole on every process.

    Collective where a leaf is sharded over hosts.
    """
    leaves, structure = jax.tree.flatten(tree)
    spread = [index for index, leaf in enumerate(leaves) if _is_spread(leaf)]
    if spread:
        whole = _gather([leaves[index] for index in spread])
        for index, leaf in zip(spread, whole, strict=True):
            leaves[index] = leaf
    return jax.tree.unflatten(structure, jax.device_get(leaves))


def _is_spread(leaf: object) -> bool:
    return (
        isinstance(leaf, jax.Array)
        and not leaf.is_fully_addressable
        and not leaf.is_fully_replicated
    )


def _gather(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    mesh_by_index = [mesh_of(array.sharding) for array in arrays]
    whole_arrays = list(arrays)
    # Every process dispatches the collectives in one order.
    for mesh in sorted(
        set(mesh_by_index), key=lambda mesh: [device.id for device in mesh.devices.flat]
    ):
        indices = [index for index, other_mesh in enumerate(mesh_by_index) if other_mesh == mesh]
        for index, whole in zip(
            indices, _replicate(mesh)([arrays[index] for index in indices]), strict=True
        ):
            whole_arrays[index] = whole
    return whole_arrays


@lru_cache(maxsize=64)
def _replicate(mesh: Mesh) -> Compiled[list[jax.Array]]:
    def whole(arrays: list[jax.Array]) -> list[jax.Array]:
        return arrays

    return compiled(whole, out_shardings=NamedSharding(mesh, PartitionSpec()))


def feed(tree: T, shardings: object) -> T:
    """Puts host arrays, which every process has whole, on devices; each host feeds its own.

    Args:
      tree: of host arrays.
      shardings: a tree of shardings like it, or one for all leaves.
    """
    if not several():
        return jax.device_put(tree, shardings)

    def feed_leaf(array: np.ndarray, sharding: Sharding) -> jax.Array:
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(feed_leaf, tree, shardings)


def all_gather(value: T, mesh: Mesh | None = None) -> list[T]:
    """Every process's value, in the order of their indices; collective.

    Args:
      value: in JSON at most `MESSAGE_BYTES` bytes.
      mesh: carries the message, with one device of each host. No other thread may use its devices
        meanwhile. None: all devices.

    Raises Refusal for a longer one.
    """
    if not several():
        return [value]
    data = json.dumps(value).encode()
    if len(data) > MESSAGE_BYTES:
        raise Refusal(f"a message of {len(data)} bytes; accepted: {MESSAGE_BYTES} or fewer")
    carriers = _one_each(devices_by_host() if mesh is None else mesh.devices)
    message = np.frombuffer(data.ljust(MESSAGE_BYTES), np.uint8)[None]
    sharding = NamedSharding(carriers, PartitionSpec("hosts"))
    shape = (jax.process_count(), MESSAGE_BYTES)
    rows = fetch(jax.make_array_from_process_local_data(sharding, message, shape))
    return [json.loads(row.tobytes()) for row in rows]


def _one_each(devices: np.ndarray) -> Mesh:
    first: dict[int, Device] = {}
    for device in devices.flat:
        first.setdefault(device.process_index, device)
    return Mesh(np.asarray([first[process] for process in sorted(first)]), ("hosts",))


def agree(value: T, mesh: Mesh | None = None) -> T:
    """The first process's value, on every process; collective.

    It decides what the run's clock does not determine.

    Args:
      value: as `all_gather` takes it.
      mesh: as `all_gather` takes it.
    """
    return all_gather(value, mesh)[0]


def from_first(array: np.ndarray, beside: jax.Array) -> np.ndarray:
    """The array of the first process, bitwise, on all of them; collective.

    Args:
      array: of one shape and dtype on every process; only that of the first is read.
      beside: sharded over all processes. One of its devices on each host carries the message, because
        no other thread uses them meanwhile.
    """
    if not several():
        return array
    carriers = _one_each(mesh_of(beside.sharding).devices)
    data = np.frombuffer(array.tobytes(), np.uint8)[None]  # as bytes: devices have no float64
    sharding = NamedSharding(carriers, PartitionSpec("hosts"))
    shape = (jax.process_count(), data.shape[1])
    rows = fetch(jax.make_array_from_process_local_data(sharding, data, shape))
    return np.frombuffer(rows[0].tobytes(), array.dtype).reshape(array.shape)


def check_same(name: str, text: str) -> None:
    """Raises Refusal on all processes unless each has the same text; collective."""
    codes = all_gather(zlib.crc32(text.encode()))
    if len(set(codes)) > 1:
        other = next(index for index, code in enumerate(codes) if code != codes[0])
        raise Refusal(
            f"process {other} has another {name} than process 0; accepted: the same command on all "
            "of them"
        )


def barrier() -> None:
    """Returns when every process has called it. The others may then read what the first has
    written.
    """
    all_gather(None)
