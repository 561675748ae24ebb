"""Arrays over several hosts (global), and each host's local arrays: its own rows, and whole params.

A host's devices are a box of the mesh: some indices along each axis. They need not be consecutive,
because a mesh whose rings follow the wires visits hosts in any order. Rows are sharded over `data`
and `fsdp`, so a host has those of its box. Params are sharded over `fsdp`: where hosts lie along it,
each host has a share of them, and `on_each_host` gathers them. Arrays that are resharded from one
placement to another stay inside each host where it has the same share before and after (Podracer's
Sebulba, Hessel et al. 2021, arXiv 2104.06272, has actors and learner share a host so).
With one process the local array is the global one.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax.devices import distributed
from rlhf_jax.devices.distributed import mesh_of
from rlhf_jax.devices.transfer.copies import as_bits, from_bits
from rlhf_jax.devices.transfer.reallocate import move
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array, Device

T = TypeVar("T")


def box_of(process_of: np.ndarray, process: int) -> tuple[np.ndarray, ...] | None:
    """Indices along each axis of one process's devices in a mesh; None where the devices are not
    all combinations of them.

    Args:
      process_of: the process of each device of the mesh.
      process: the process.
    """
    places = np.argwhere(process_of == process)
    axes = tuple(np.unique(indices) for indices in places.T)
    return axes if len(places) == np.prod([len(axis) for axis in axes]) else None


def _boxes(mesh: Mesh) -> dict[int, tuple[np.ndarray, ...]]:
    """The box of each process. Raises Refusal unless they are boxes of one shape that have the
    whole of `tensor`.
    """
    process_of = distributed.hosts_of(mesh.devices)
    boxes = {int(process): box_of(process_of, process) for process in np.unique(process_of)}
    shapes = {box and tuple(map(len, box)) for box in boxes.values()}
    tensor = mesh.shape.get("tensor", 1)
    if (
        None in shapes
        or len(shapes) > 1
        or any(
            box is not None and "tensor" in mesh.shape and len(box[-1]) != tensor
            for box in boxes.values()
        )
    ):
        raise Refusal(
            f"{mesh} has the hosts' devices in {process_of.tolist()} (processes by axis); accepted: "
            "for each host the same number of indices along each axis, all of `tensor`"
        )
    return {process: box for process, box in boxes.items() if box is not None}


def local_mesh(mesh: Mesh) -> Mesh:
    """The mesh of this host's devices in a mesh over all hosts.

    Raises Refusal unless each host has a box of the mesh, all boxes of one shape.
    """
    return _local_mesh(mesh, distributed.stood_in_for())


@lru_cache(maxsize=256)
def _local_mesh(mesh: Mesh, stand_ins: tuple[tuple[Device, ...], ...]) -> Mesh:
    """The local mesh, by the devices that stand in: `distributed.hosts_of` depends on them."""
    process, num_hosts = distributed.host_index(), distributed.num_hosts()
    # Devices of another machine's topology, which is compiled for, are of several processes.
    if num_hosts == 1 or (distributed.hosts_of(mesh.devices) == process).all():
        return mesh
    boxes = _boxes(mesh)
    if len(boxes) < num_hosts:
        raise Refusal(f"{mesh} has devices of {len(boxes)} of {num_hosts} hosts")
    return Mesh(mesh.devices[np.ix_(*boxes[process])], mesh.axis_names)


def hosts_of_axis(mesh: Mesh) -> dict[str, int]:
    """The number of hosts along each axis of a mesh."""
    inside = local_mesh(mesh).shape
    return {axis: size // inside[axis] for axis, size in mesh.shape.items()}


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
        return _with_shards(array, tuple(shape), local_sharding(sharding))

    return jax.tree.map(convert, tree)


def _with_shards(array: jax.Array, shape: tuple[int, ...], target: NamedSharding) -> jax.Array:
    """An array of this host's shards of another one, each on its device."""
    shard_on = {shard.device: shard.data for shard in array.addressable_shards}
    shards = [shard_on[device] for device in target.addressable_devices]
    return jax.make_array_from_single_device_arrays(shape, target, shards)


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
        return _with_shards(array, tuple(shape), sharding)

    return jax.tree.map(convert, _reshard_locally(tree, shardings), shardings)


def _reshard_locally(tree: T, shardings: object) -> T:
    """Moves per-host arrays to the local devices of `shardings`, unless they are there already."""
    targets = jax.tree.map(lambda s: s if s.is_fully_addressable else local_sharding(s), shardings)
    matches = jax.tree.map(
        lambda array, s: array.sharding.is_equivalent_to(s, array.ndim), tree, targets
    )
    return tree if all(jax.tree.leaves(matches)) else move(tree, targets)


def reshard(tree: T, shardings: object) -> T:
    """Reshards global arrays. Data moves only inside each host where it has the same share of an
    array before and after; an array of which it has another share is gathered on each host first,
    which is collective.

    Args:
      tree: of global arrays.
      shardings: a tree of NamedShardings like it.
    """
    arrays, structure = jax.tree.flatten(tree)
    targets: list[NamedSharding] = jax.tree.leaves(shardings)
    local = to_local(arrays)
    apart = [
        index
        for index, (array, target) in enumerate(zip(arrays, targets, strict=True))
        if _share(array.sharding, array.shape) != _share(target, array.shape)
    ]
    if apart:
        gathered = on_each_host([arrays[index] for index in apart])
        for index, whole in zip(apart, gathered, strict=True):
            local[index] = _cut(whole, _share(targets[index], whole.shape))
    return jax.tree.unflatten(structure, to_global(local, targets))


def on_each_host(tree: T, dtype: jax.typing.DTypeLike | None = None) -> T:
    """Local arrays that have the whole of global ones on each host, sharded over its devices as the
    global ones are; collective where an array is sharded over hosts.

    Arrays that every host has whole already keep their buffers.

    Args:
      tree: of global arrays.
      dtype: that arrays of floats travel in, and are returned in; None: theirs.
    """
    arrays, structure = jax.tree.flatten(tree)
    found = to_local(arrays)
    for gather, indices in _gathers(arrays, dtype):
        gathered = gather([arrays[index] for index in indices])
        for index, array in zip(indices, gathered, strict=True):
            assert isinstance(array.sharding, NamedSharding)
            target = local_sharding(array.sharding)
            found[index] = _with_shards(array, arrays[index].shape, target)
    return jax.tree.unflatten(structure, found)


def _gathers(
    arrays: Sequence[jax.Array], dtype: jax.typing.DTypeLike | None
) -> list[tuple[distributed.Compiled[list[jax.Array]], list[int]]]:
    """The programs of `on_each_host`, each with the indices of the arrays that it gathers: those that
    are sharded over hosts, by mesh.
    """
    spread: dict[Mesh, dict[int, tuple[tuple[str, ...], ...]]] = {}
    for index, array in enumerate(arrays):
        sharding = getattr(array, "sharding", None)  # host arrays have none
        if isinstance(sharding, NamedSharding) and _splits_over_hosts(sharding):
            spec = _whole_spec(sharding.spec, array.ndim)
            spread.setdefault(mesh_of(sharding), {})[index] = spec
    name = "" if dtype is None else np.dtype(dtype).name
    found = []
    for mesh in sorted(spread, key=lambda mesh: [device.id for device in mesh.devices.flat]):
        gather = _gather(mesh, tuple(spread[mesh].values()), name, distributed.stood_in_for())
        found.append((gather, list(spread[mesh])))
    return found


def gather_call(
    tree: object, dtype: jax.typing.DTypeLike | None
) -> tuple[distributed.Compiled[list[jax.Array]], tuple[object, ...]] | None:
    """The program of `on_each_host` with its arguments, for compiling ahead of time; None where every
    host has all arrays whole.

    Args:
      tree: of shapes with NamedShardings of one mesh.
      dtype: as `on_each_host` takes it.
    """
    shapes: list = jax.tree.leaves(tree)
    gathers = _gathers(shapes, dtype)
    if not gathers:
        return None
    ((gather, indices),) = gathers
    return gather, ([shapes[index] for index in indices],)


def shapes_on_each_host(tree: T, dtype: jax.typing.DTypeLike | None) -> T:
    """Shapes of what `on_each_host` returns on one host.

    Args:
      tree: of shapes with NamedShardings.
      dtype: as `on_each_host` takes it.
    """

    def convert(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = shape.sharding
        assert isinstance(sharding, NamedSharding)
        travels = dtype is not None and jnp.issubdtype(shape.dtype, jnp.floating)
        kept = dtype if travels and _splits_over_hosts(sharding) else shape.dtype
        return jax.ShapeDtypeStruct(shape.shape, kept, sharding=local_sharding(sharding))

    return jax.tree.map(convert, tree)


def _whole_spec(spec: P, num_dims: int) -> tuple[tuple[str, ...], ...]:
    """The names of mesh axes of every dimension."""
    names = [(name,) if isinstance(name, str) else tuple(name or ()) for name in spec]
    return (*names, *[()] * (num_dims - len(names)))


@lru_cache(maxsize=64)
def _gather(
    mesh: Mesh,
    specs: tuple[tuple[tuple[str, ...], ...], ...],
    dtype: str,
    stand_ins: tuple[tuple[Device, ...], ...],
) -> distributed.Compiled[list[jax.Array]]:
    """A program that gives the devices of each host the whole of arrays, in the order of its box.

    The result is as if the hosts' arrays were joined: a dimension that is sharded over n hosts is n
    times as long, and each host has its shards of one whole array.

    No device holds more than its shards of the result. With W bytes of the whole array, k shards and
    n hosts, a device sends W/k to where its shard belongs, and then (n − 1)/k · W.
    """
    hosts = hosts_of_axis(mesh)

    def whole_dim(bits: Array, dim: int, names: tuple[str, ...]) -> Array:
        sent, together = _meeting(mesh, names)
        if any(source != target for source, target in sent):
            bits = jax.lax.ppermute(bits, mesh.axis_names, sent)
        return jax.lax.all_gather(
            bits, mesh.axis_names, axis=dim, tiled=True, axis_index_groups=together
        )

    def gather(*shards: Array) -> tuple[Array, ...]:
        found = []
        for shard, names_of_dims in zip(shards, specs, strict=True):
            if dtype and jnp.issubdtype(shard.dtype, jnp.floating):
                shard = shard.astype(dtype)
            # As bits: a cast must not move behind the collective, which would carry more bytes.
            bits = as_bits(shard)
            for dim, names in enumerate(names_of_dims):
                if any(hosts[name] > 1 for name in names):
                    bits = whole_dim(bits, dim, names)
            found.append(from_bits(bits, shard.dtype))
        return tuple(found)

    shardings = tuple(P(*(names or None for names in spec)) for spec in specs)

    def gather_on_each_host(arrays: Sequence[Array]) -> list[Array]:
        mapped = jax.shard_map(
            gather, mesh=mesh, in_specs=shardings, out_specs=shardings, check_vma=False
        )
        return list(mapped(*arrays))

    return distributed.compiled(
        gather_on_each_host, out_shardings=[NamedSharding(mesh, spec) for spec in shardings]
    )


def _meeting(mesh: Mesh, names: tuple[str, ...]) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """The devices that need the same part of a dimension that is sharded over hosts, and how its
    shards get to them.

    The i-th device of each host needs the i-th part of the whole dimension. Of n hosts, n devices need
    one part, which consists of n shards: each of them takes one, and then they gather.

    Args:
      mesh: of all hosts.
      names: mesh axes of the dimension.

    Returns:
      Pairs (device that has a shard, device that takes it), and groups of devices that gather their
      shards in that order; devices by their places in the mesh.
    """
    boxes, process_of = _boxes(mesh), distributed.hosts_of(mesh.devices)
    index_of = np.arange(mesh.size).reshape(mesh.devices.shape)
    shard_of, part_of = np.zeros_like(index_of), np.zeros_like(index_of)
    others: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for place in np.ndindex(mesh.devices.shape):
        for name in names:
            axis = mesh.axis_names.index(name)
            own = boxes[int(process_of[place])][axis]
            shard_of[place] = shard_of[place] * mesh.devices.shape[axis] + place[axis]
            part_of[place] = part_of[place] * len(own) + np.searchsorted(own, place[axis])
        key = tuple(
            index for index, name in zip(place, mesh.axis_names, strict=True) if name not in names
        )
        others.setdefault(key, []).append(place)
    sent, together = [], []
    for places in others.values():
        num_parts = 1 + max(int(part_of[place]) for place in places)
        takers = [
            [int(index_of[place]) for place in places if part_of[place] == part]
            for part in range(num_parts)
        ]
        num_hosts = len(places) // num_parts
        sent += [
            (
                int(index_of[place]),
                takers[shard_of[place] // num_hosts][shard_of[place] % num_hosts],
            )
            for place in places
        ]
        together += takers
    return sent, together


@lru_cache(maxsize=4096)
def _share(sharding: NamedSharding, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Starts and stops, along each dimension, of the blocks of an array that this host has."""
    blocks: list[set[tuple[int, int]]] = [set() for _ in shape]
    for slices in sharding.addressable_devices_indices_map(shape).values():
        assert slices is not None
        for dim, each in enumerate(slices):
            start, stop, _ = each.indices(shape[dim])
            blocks[dim].add((start, stop))
    return tuple(_joined(sorted(each)) for each in blocks)


def _joined(blocks: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Starts and stops with adjacent blocks as one."""
    ends: list[int] = []
    for start, stop in blocks:
        if ends and ends[-1] == start:
            ends[-1] = stop
        else:
            ends += [start, stop]
    return tuple(ends)


def _cut(whole: jax.Array, share: tuple[tuple[int, ...], ...]) -> jax.Array:
    """This host's share of a local array that is whole."""
    indices = [
        np.concatenate([np.arange(*ends) for ends in zip(dim[::2], dim[1::2], strict=True)])
        for dim in share
    ]
    if all(len(index) == size for index, size in zip(indices, whole.shape, strict=True)):
        return whole
    return whole[np.ix_(*indices)]


def local_rows(tree: T, mesh: Mesh) -> T:
    """This host's rows, of host arrays that every process has whole, in the order of its box.

    Args:
      tree: of host arrays.
      mesh: whose data and fsdp axes shard rows.
    """
    if jax.process_count() == 1:
        return tree
    shards = np.arange(mesh.shape["data"] * mesh.shape["fsdp"])
    shards = shards.reshape(mesh.shape["data"], mesh.shape["fsdp"])
    own = shards[np.ix_(*_boxes(mesh)[jax.process_index()][:2])].reshape(-1)

    def convert(array: np.ndarray) -> np.ndarray:
        blocks = array.reshape(shards.size, -1, *array.shape[1:])[own]
        return blocks.reshape(-1, *array.shape[1:])

    return jax.tree.map(convert, tree)


def _splits_over_hosts(sharding: NamedSharding) -> list[tuple[int, int]]:
    """(dim, number of hosts) of the dimensions that are sharded over the hosts."""
    hosts = hosts_of_axis(mesh_of(sharding))
    splits = []
    for dim, names in enumerate(_whole_spec(sharding.spec, len(sharding.spec))):
        count = int(np.prod([hosts[name] for name in names], dtype=int))
        if count > 1:
            splits.append((dim, count))
    return splits
