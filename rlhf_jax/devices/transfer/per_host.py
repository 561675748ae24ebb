"""Arrays over several hosts (global), and each host's local arrays: its own rows, and whole params.

Meshes have the hosts along `data`, outermost, and only rows are sharded along it. So a host's rows
are a contiguous block, and each host has all params. A placement is the same slice of devices on
every host. Arrays that are resharded from one placement to another therefore stay inside each host
(Podracer's Sebulba, Hessel et al. 2021, arXiv 2104.06272, has actors and learner share a host so).
With one process the local array is the global one.
"""

from functools import lru_cache
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rlhf_jax.devices.distributed import mesh_of
from rlhf_jax.devices.transfer.reallocate import move
from rlhf_jax.refusal import Refusal

T = TypeVar("T")


@lru_cache(maxsize=256)
def local_mesh(mesh: Mesh) -> Mesh:
    """The mesh of this host's devices in a mesh over all hosts.

    Raises Refusal unless the hosts are blocks of one size along `data`, in the order of their
    processes.
    """
    process = jax.process_index()
    # Devices of another machine's topology, which is compiled for, are of several processes.
    if jax.process_count() == 1 or all(
        device.process_index == process for device in mesh.devices.flat
    ):
        return mesh
    size = len(mesh.devices) // jax.process_count()
    block = mesh.devices[process * size : (process + 1) * size]
    if size * jax.process_count() != len(mesh.devices) or any(
        device.process_index != process for device in block.flat
    ):
        raise Refusal(
            f"{mesh} does not have the hosts' devices in blocks along {mesh.axis_names[0]}, in "
            "their order"
        )
    return Mesh(block, mesh.axis_names)


def local_sharding(sharding: NamedSharding) -> NamedSharding:
    """The sharding of this host's local array, given that of the global one."""
    return NamedSharding(local_mesh(mesh_of(sharding)), sharding.spec)


def to_local(tree: T) -> T:
    """This host's local arrays of a tree of global ones: the same buffers."""

    def convert(array: object) -> object:
        if not isinstance(array, jax.Array) or array.is_fully_addressable:
            return array
        sharding = array.sharding
        assert isinstance(sharding, NamedSharding)
        shape = list(array.shape)
        for dim, num_hosts in _splits_over_hosts(sharding):
            shape[dim] //= num_hosts
        shards = [shard.data for shard in array.addressable_shards]
        target = local_sharding(sharding)
        return jax.make_array_from_single_device_arrays(tuple(shape), target, shards)

    return jax.tree.map(convert, tree)


def to_global(tree: T, shardings: object) -> T:
    """The global arrays of every host's local ones; no collective.

    Args:
      tree: of local arrays.
      shardings: a tree like it, of the global arrays. A local array in another sharding is resharded
        inside its host first.
    """
    if jax.process_count() == 1:
        return tree

    def convert(array: jax.Array, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return array
        shape = list(array.shape)
        for dim, num_hosts in _splits_over_hosts(sharding):
            shape[dim] *= num_hosts
        shards = [shard.data for shard in array.addressable_shards]
        return jax.make_array_from_single_device_arrays(tuple(shape), sharding, shards)

    return jax.tree.map(convert, _reshard_locally(tree, shardings), shardings)


def _reshard_locally(tree: T, shardings: object) -> T:
    """Moves per-host arrays to the local devices of `shardings`, unless they are there already."""
    targets = jax.tree.map(lambda s: s if s.is_fully_addressable else local_sharding(s), shardings)
    matches = jax.tree.map(
        lambda array, s: array.sharding.is_equivalent_to(s, array.ndim), tree, targets
    )
    return tree if all(jax.tree.leaves(matches)) else move(tree, targets)


def reshard(tree: T, shardings: object) -> T:
    """Reshards global arrays; data moves only inside each host.

    Args:
      tree: of global arrays.
      shardings: a tree of NamedShardings like it.

    Raises Refusal for an array whose dimension over the hosts would change.
    """

    def check(array: jax.Array, sharding: NamedSharding) -> None:
        source = array.sharding
        assert isinstance(source, NamedSharding)
        if _splits_over_hosts(source) != _splits_over_hosts(sharding):
            raise Refusal(
                f"an array of shape {array.shape} goes from {source.spec} to "
                f"{sharding.spec}; accepted on several "
                "hosts: the same dimension over `data`, and so over the hosts, before and after"
            )

    jax.tree.map(check, tree, shardings)
    return to_global(to_local(tree), shardings)


def local_rows(tree: T) -> T:
    """This host's contiguous share of the rows of host arrays that every process has whole."""
    count, index = jax.process_count(), jax.process_index()

    def convert(array: np.ndarray) -> np.ndarray:
        size = array.shape[0] // count
        return array[index * size : (index + 1) * size]

    return jax.tree.map(convert, tree) if count > 1 else tree


def _splits_over_hosts(sharding: NamedSharding) -> list[tuple[int, int]]:
    """(dim, number of hosts) of the dimensions that are sharded over the hosts."""
    mesh = mesh_of(sharding)
    count = len(mesh.devices) // len(local_mesh(mesh).devices)
    axis = mesh.axis_names[0]
    return [
        (dim, count)
        for dim, names in enumerate(sharding.spec)
        if names == axis or (isinstance(names, tuple) and axis in names)
    ]
