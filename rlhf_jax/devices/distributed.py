"""Several processes, each with devices of its own, as one run: how they find each other, and what
they say to each other.

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

import json
import os
import re
import sys
import threading
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax.refusal import Refusal

HEARTBEAT_SECONDS = 30
"""A process that has not been heard of for so long is taken for dead, and all end."""
GOODBYE_SECONDS = 600
"""How long a process that has ended well waits for the others: the first writes the report.

Dead ones are noticed sooner.
"""
MESSAGE_BYTES = 512
XLA_STATUS = (
    "(UNKNOWN|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|FAILED_PRECONDITION): "
)
LIST_OF_HOSTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")

_writes = True


def writes() -> bool:
    """Returns whether this process writes a run's files and prints: of several processes, only the
    first does.

    `initialize` decides it. Reading the flag initialises no device backend, which `is_first` does.
    """
    return _writes


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
    told = arguments(environment)
    if told is None:
        return False
    seconds = _number(environment, "JAX_INITIALIZATION_SECONDS", "300")
    # jax itself would abort with a stack trace; its deadline is later than ours, so that this is
    # what is said.
    watch = threading.Timer(seconds, _did_not_meet, (told, seconds))
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            **told,
            initialization_timeout=2 * seconds + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=GOODBYE_SECONDS,
        )
        if not is_first():
            _only_read()
        grid()
    except RuntimeError as error:  # XLA's errors are RuntimeErrors, too
        first = str(error).strip().splitlines()[0]
        raise Refusal(
            f"the {told.get('num_processes', '')} processes did not meet ({first})"
        ) from error
    finally:
        watch.cancel()
    return True


def _did_not_meet(told: Mapping[str, Any], seconds: int) -> None:
    """Ends the process with a message where not all processes came; the call that waits for them
    cannot be interrupted.
    """
    who = f"process {told['process_id']} of {told['num_processes']}" if told else "a process"
    where = f" at {told['coordinator_address']}" if told else ""
    print(
        f"error: {who} did not meet the others{where} within {seconds} s; accepted: as many "
        "processes as are said, each with a "
        "number of its own, which all reach the address of process 0 (JAX_INITIALIZATION_SECONDS "
        "waits longer)",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def leave(error: BaseException, status: int) -> NoReturn:
    """Ends this process of several at once, saying why: the others wait for it in a collective, it
    must not for them.

    Its exit status is `status`, or 1 where a call over all processes failed.
    """
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, KeyboardInterrupt):
        said = "interrupted"
    elif is_from_a_call(error):
        said, status = (
            f"a call over all processes failed, as it does when another of them has ended ({said})",
            1,
        )
    text = " ".join(said.split())
    print(f"\nprocess {jax.process_index()} of {jax.process_count()}: {text}", file=sys.stderr)
    print(
        "the run stops; the same command goes on from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    os._exit(status)


def is_from_a_call(error: BaseException) -> bool:
    """True where XLA raised the error: jax makes of a failed collective one of its own errors or a
    plain ValueError.
    """
    return (
        isinstance(error, jax.errors.JaxRuntimeError)
        or re.match(XLA_STATUS, str(error)) is not None
    )


def several() -> bool:
    """True where the run has more than one process."""
    return jax.process_count() > 1


def is_first() -> bool:
    """True for the process that writes metrics, samples and reports."""
    return jax.process_index() == 0


def grid() -> np.ndarray:
    """Devices `[hosts, devices of a host]`, hosts in the order of their processes.

    Raises Refusal where the hosts have not equally many.
    """
    of_process: dict[int, list[Any]] = {}
    for device in jax.devices():
        of_process.setdefault(device.process_index, []).append(device)
    counts = [len(of_process[process]) for process in sorted(of_process)]
    if len(set(counts)) > 1:
        raise Refusal(
            f"the processes have {counts} devices; accepted: the same number on every host"
        )
    return np.asarray([of_process[process] for process in sorted(of_process)])


def must_await() -> bool:
    """True where a program over several hosts has to end before the next one is dispatched.

    On CPUs with several devices a process, two programs under way mix up their collectives and hang
    (jax 0.10, gloo).
    """
    return several() and jax.default_backend() == "cpu"


def settled(tree: Any) -> Any:
    """The tree, awaited where `must_await`."""
    return jax.block_until_ready(tree) if must_await() else tree


class Awaited:
    """A compiled function whose results are awaited."""

    def __init__(self, compiled: Any):
        self.compiled, self.lower = compiled, compiled.lower

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return jax.block_until_ready(self.compiled(*args, **kwargs))


def compiled(function: Any, **options: Any) -> Any:
    """`jax.jit` of what runs over all hosts: see `must_await`."""
    made = jax.jit(function, **options)
    return Awaited(made) if must_await() else made


def fetch(tree: Any) -> Any:
    """Host arrays of a tree, whole on every process; collective where a leaf is spread over hosts."""
    leaves, structure = jax.tree.flatten(tree)
    spread = [place for place, leaf in enumerate(leaves) if _is_spread(leaf)]
    if spread:
        whole = _gather([leaves[place] for place in spread])
        for place, leaf in zip(spread, whole, strict=True):
            leaves[place] = leaf
    return jax.tree.unflatten(structure, jax.device_get(leaves))


def _is_spread(leaf: Any) -> bool:
    return (
        isinstance(leaf, jax.Array)
        and not leaf.is_fully_addressable
        and not leaf.is_fully_replicated
    )


def _gather(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    meshes = {array.sharding.mesh for array in arrays}  # type: ignore[attr-defined]
    made: list[Any] = [None] * len(arrays)
    for mesh in sorted(meshes, key=lambda one: [device.id for device in one.devices.flat]):
        places = [place for place, array in enumerate(arrays) if array.sharding.mesh == mesh]  # type: ignore[attr-defined]
        for place, whole in zip(
            places, _replicate(mesh)([arrays[place] for place in places]), strict=True
        ):
            made[place] = whole
    return made


@lru_cache(maxsize=64)
def _replicate(mesh: Mesh) -> Any:
    return compiled(lambda arrays: arrays, out_shardings=NamedSharding(mesh, PartitionSpec()))


def feed(tree: Any, shardings: Any) -> Any:
    """Arrays laid out as `shardings` say, of host arrays that every process has whole: each host
    feeds its own devices.
    """
    if not several():
        return jax.device_put(tree, shardings)

    def one(array: Any, sharding: Any) -> jax.Array:
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree, shardings)


def everyone(value: Any, mesh: Mesh | None = None) -> list[Any]:
    """Every process's value, in the order of their indices; collective.

    Args:
      value: what JSON can say, in at most `MESSAGE_BYTES` bytes.
      mesh: of whose devices one a host carries it: the devices of a call that other threads do not
        use.

    Raises Refusal for a longer one.
    """
    if not several():
        return [value]
    data = json.dumps(value).encode()
    if len(data) > MESSAGE_BYTES:
        raise Refusal(f"a message of {len(data)} bytes; accepted: {MESSAGE_BYTES} or fewer")
    carriers = _one_each(grid() if mesh is None else mesh.devices)
    said = np.frombuffer(data.ljust(MESSAGE_BYTES), np.uint8)[None]
    sharding = NamedSharding(carriers, PartitionSpec("hosts"))
    shape = (jax.process_count(), MESSAGE_BYTES)
    rows = fetch(jax.make_array_from_process_local_data(sharding, said, shape))
    return [json.loads(row.tobytes()) for row in rows]


def _one_each(devices: np.ndarray) -> Mesh:
    first: dict[int, Any] = {}
    for device in devices.flat:
        first.setdefault(device.process_index, device)
    return Mesh(np.asarray([first[process] for process in sorted(first)]), ("hosts",))


def agree(value: Any, mesh: Mesh | None = None) -> Any:
    """The first process's value, on every process; collective.

    It decides what the run's clock does not determine.
    """
    return everyone(value, mesh)[0]


def from_first(array: np.ndarray, beside: Any) -> np.ndarray:
    """The array of the first process, bitwise, on all of them; collective.

    Args:
      array: of one shape and dtype on every process; only that of the first is read.
      beside: an array that is spread over all processes: one of its devices a host carries the
        message, as no other thread uses them now.
    """
    if not several():
        return array
    carriers = _one_each(beside.sharding.mesh.devices)
    data = np.frombuffer(array.tobytes(), np.uint8)[None]  # as bytes: devices have no float64
    sharding = NamedSharding(carriers, PartitionSpec("hosts"))
    shape = (jax.process_count(), data.shape[1])
    rows = fetch(jax.make_array_from_process_local_data(sharding, data, shape))
    return np.frombuffer(rows[0].tobytes(), array.dtype).reshape(array.shape)


def check_same(name: str, text: str) -> None:
    """Raises Refusal on all processes unless each has the same text; collective."""
    said = everyone(zlib.crc32(text.encode()))
    if len(set(said)) > 1:
        other = next(place for place, code in enumerate(said) if code != said[0])
        raise Refusal(
            f"process {other} has another {name} than process 0; accepted: the same command on all "
            "of them"
        )


def barrier() -> None:
    """Returns when every process has come here: what the first has written, the others may then
    read.
    """
    everyone(None)
