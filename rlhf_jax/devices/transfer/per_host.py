"""Arrays over several hosts, and each host's view of them: its own rows, and params that it has
whole.

Meshes have the hosts along `data`, outermost, and nothing but rows is cut along it. So a host's
part of rows is a contiguous block, its part of params is all of them, and what goes from one
placement to another, the same slice of devices on every host, stays inside each host (Podracer's
Sebulba, Hessel et al. 2021, arXiv 2104.06272, has actors and learner share a host so). With one
process a view is the array itself.
"""

from functools import lru_cache
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from rlhf_jax.devices.transfer.reallocate import move
from rlhf_jax.refusal import Refusal


@lru_cache(maxsize=256)
def own_mesh(mesh: Mesh) -> Mesh:
    """The part of a mesh that lies on this host.

    Raises Refusal where the hosts' parts are not blocks of one size along `data`, in the order of
    their processes.
    """
    process = jax.process_index()
    if all(device.process_index == process for device in mesh.devices.flat):
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


def own_sharding(sharding: NamedSharding) -> NamedSharding:
    """The sharding of a host's local part of an array, on the host's own devices."""
    return NamedSharding(own_mesh(sharding.mesh), sharding.spec)  # type: ignore[arg-type]


def own(tree: Any) -> Any:
    """This host's view of every array: the same buffers."""

    def one(array: Any) -> Any:
        if not isinstance(array, jax.Array) or array.is_fully_addressable:
            return array
        shape = list(array.shape)
        for dim, parts in _parts(array.sharding):
            shape[dim] //= parts
        shards = [shard.data for shard in array.addressable_shards]
        own = own_sharding(array.sharding)  # type: ignore[arg-type]
        return jax.make_array_from_single_device_arrays(tuple(shape), own, shards)

    return jax.tree.map(one, tree)


def joined(tree: Any, shardings: Any) -> Any:
    """The arrays over all hosts whose views these are, which lie on this host; no collective.

    Args:
      shardings: of the arrays over all hosts; a view that lies otherwise is moved inside its host.
    """

    if jax.process_count() == 1:
        return tree

    def one(array: jax.Array, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return array
        shape = list(array.shape)
        for dim, parts in _parts(sharding):
            shape[dim] *= parts
        shards = [shard.data for shard in array.addressable_shards]
        return jax.make_array_from_single_device_arrays(tuple(shape), sharding, shards)

    return jax.tree.map(one, _inside(tree, shardings), shardings)


def _inside(tree: Any, shardings: Any) -> Any:
    """Views where the views of arrays of these shardings lie."""
    wanted = jax.tree.map(lambda s: s if s.is_fully_addressable else own_sharding(s), shardings)
    there = jax.tree.map(
        lambda array, s: array.sharding.is_equivalent_to(s, array.ndim), tree, wanted
    )
    return tree if all(jax.tree.leaves(there)) else move(tree, wanted)


def moved(tree: Any, shardings: Any) -> Any:
    """Arrays over all hosts in other shardings, moved inside each host.

    Raises Refusal for an array that would have to be cut along the hosts as it was not before.
    """

    def check(array: Any, sharding: NamedSharding) -> None:
        before, after = list(_parts(array.sharding)), list(_parts(sharding))
        if before != after:
            raise Refusal(
                f"an array of shape {array.shape} goes from {array.sharding.spec} to "
                f"{sharding.spec}; accepted on several "
                "hosts: the same dimension over `data`, and so over the hosts, before and after"
            )

    jax.tree.map(check, tree, shardings)
    return joined(own(tree), shardings)


def share(tree: Any) -> Any:
    """This host's contiguous share of the rows of host arrays that every process has whole."""
    count, place = jax.process_count(), jax.process_index()

    def one(array: Any) -> Any:
        size = array.shape[0] // count
        return array[place * size : (place + 1) * size]

    return jax.tree.map(one, tree) if count > 1 else tree


def _parts(sharding: Any) -> list[tuple[int, int]]:
    """(dim, number of hosts) of the dimensions that are cut over the hosts."""
    count = len(sharding.mesh.devices) // len(own_mesh(sharding.mesh).devices)
    axis = sharding.mesh.axis_names[0]
    return [
        (dim, count)
        for dim, names in enumerate(sharding.spec)
        if names == axis or (isinstance(names, tuple) and axis in names)
    ]
