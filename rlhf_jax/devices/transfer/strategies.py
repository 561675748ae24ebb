"""Reshard strategies: the one that moves an array from one sharding to another, its reason, and its
program.

`reallocate.py` names the recipes and says which arrays each moves.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding

from rlhf_jax.devices.distributed import mesh_of
from rlhf_jax.devices.transfer.copies import Leaf, as_bits, extra_bytes, from_bits, make_exchange
from rlhf_jax.devices.transfer.intersections import boxes, devices_of, moved_bytes
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array, Device

Recipe = Literal["copy", "jit", "put", "two-phase", "pieces"]
Program = Callable[[Sequence[Array], Sequence[Any]], Sequence[Any]]
"""(arrays, results of the chunk before) -> arrays in their target shardings; for chunks but the last,
buffers.
"""


@lru_cache(maxsize=4096)
def choose(leaf: Leaf) -> tuple[Recipe, str]:
    """The recipe that moves a leaf, and the reason for it."""
    source, target = devices_of(leaf.source), devices_of(leaf.target)
    held, wanted = boxes(leaf.source, leaf.shape), boxes(leaf.target, leaf.shape)
    if source == target:
        if held == wanted:
            return "copy", f"each of {len(source)} devices keeps its part"
        return "jit", f"another layout on the same {len(source)} devices"
    if set(wanted.values()) <= set(held.values()):
        return (
            "put",
            f"each shard of {len(target)} target devices is a whole shard of one of {len(source)} "
            "source devices",
        )
    if (
        len(source) != len(target)
        or set(source) == set(target)
        or not isinstance(leaf.target, NamedSharding)
    ):
        return "pieces", f"another layout, from {len(source)} devices to {len(target)}"
    least, phases = (
        sum(bytes_by_pair(leaf, recipe).values()) for recipe in ("pieces", "two-phase")
    )
    if phases <= least:
        return (
            "two-phase",
            f"another layout is made on the source's devices and goes to {len(target)} others as "
            "it is",
        )
    return "pieces", f"another layout: in pieces {least} bytes move, in two phases {phases} would"


def bytes_by_pair(leaf: Leaf, recipe: Recipe) -> Counter[tuple[Device, Device]]:
    """Bytes by (from device, to device) that a recipe moves; see `reallocate.Explained`.

    Args:
      leaf: the array.
      recipe: how it is moved.
    """
    size = leaf.carried.itemsize
    if recipe != "two-phase":
        return moved_bytes(leaf.shape, size, leaf.source, leaf.target)
    between = _on_source(leaf)
    num_bytes = moved_bytes(leaf.shape, size, leaf.source, between)
    shard = int(np.prod(between.shard_shape(leaf.shape))) * size
    for sender, receiver in zip(devices_of(between), devices_of(leaf.target), strict=True):
        if sender != receiver:
            num_bytes[sender, receiver] += shard
    return num_bytes


def beside_bytes(leaf: Leaf, recipe: Recipe) -> int:
    """Bytes that a device holds beside source and result while a leaf is moved.

    Collectives are taken to hold as many as the result has on a device.

    Args:
      leaf: the array.
      recipe: how it is moved.
    """
    if recipe in ("put", "pieces"):
        return extra_bytes(leaf)
    return int(np.prod(leaf.target.shard_shape(leaf.shape))) * leaf.result.itemsize


def keeps_order(leaf: Leaf) -> bool:
    """True where the n-th target device takes the n-th source device's shard, and the sets of
    devices differ: one call puts such arrays.
    """
    held, wanted = (boxes(sharding, leaf.shape) for sharding in (leaf.source, leaf.target))
    return list(held.values()) == list(wanted.values()) and set(held) != set(wanted)


@lru_cache(maxsize=1024)
def make_program(leaves: tuple[Leaf, ...], recipe: Recipe, donate: bool) -> Program:
    """A program that moves leaves with the same source devices and the same target devices.

    Args:
      leaves: of the arrays.
      recipe: of all leaves; "pieces" executes a "put" as well.
      donate: whether a copy may reuse the buffers of its arrays.

    Raises Refusal where a copy would be from or to a device of another process.
    """
    if recipe in ("copy", "jit"):
        donate = donate and recipe == "copy" and all(leaf.dtype == leaf.result for leaf in leaves)
        reshard = _resharded(
            leaves, [leaf.target for leaf in leaves], [leaf.result for leaf in leaves], donate
        )
        return lambda arrays, before: reshard(arrays)
    check_addressable(leaves)
    if recipe == "two-phase":
        return _put(
            leaves,
            _resharded(
                leaves, [_on_source(leaf) for leaf in leaves], [x.carried for x in leaves], False
            ),
        )
    if all(keeps_order(leaf) for leaf in leaves):
        narrowed = any(leaf.dtype != leaf.carried for leaf in leaves)
        shardings, dtypes = [leaf.source for leaf in leaves], [leaf.carried for leaf in leaves]
        return _put(leaves, _resharded(leaves, shardings, dtypes, False) if narrowed else None)
    exchange = make_exchange(leaves)
    return lambda arrays, before: _assembled(leaves, exchange(arrays, None))


@lru_cache(maxsize=1024)
def make_chunk(leaf: Leaf, chunk_index: int, num_chunks: int) -> Program:
    """A program that moves one chunk of a leaf.

    It returns buffers of the target's shards, and for the last chunk the array.

    Args:
      leaf: the array.
      chunk_index, num_chunks: the chunk (see `intersections.chunk`).
    """
    check_addressable([leaf])
    exchange = make_exchange([leaf], chunk_index, num_chunks)

    def run(arrays: Sequence[Array], before: Sequence[Any]) -> Sequence[Any]:
        shards = exchange(arrays, before if chunk_index else None)
        return _assembled([leaf], shards) if chunk_index == num_chunks - 1 else shards

    return run


def check_addressable(leaves: Sequence[Leaf]) -> None:
    """Raises Refusal where a leaf's source or target has devices of another process."""
    for leaf in leaves:
        for sharding in (leaf.source, leaf.target):
            if not sharding.is_fully_addressable:
                raise Refusal(
                    f"an array of shape {leaf.shape} goes from {len(leaf.source.device_set)} "
                    "devices to "
                    f"{len(leaf.target.device_set)}, of which some are another process's "
                    f"({sharding}); accepted between "
                    "processes: another layout on the same devices in the same order"
                )


def _on_source(leaf: Leaf) -> NamedSharding:
    """The target's layout on the source's devices."""
    assert isinstance(leaf.target, NamedSharding)
    mesh = mesh_of(leaf.target)
    devices = np.asarray(devices_of(leaf.source)).reshape(mesh.devices.shape)
    return NamedSharding(Mesh(devices, mesh.axis_names), leaf.target.spec)


def _resharded(
    leaves: Sequence[Leaf], shardings: Sequence[Sharding], dtypes: Sequence[np.dtype], donate: bool
) -> Callable[[Sequence[Array]], list[Array]]:
    """A compiled identity to shardings on the source's devices, whose collectives carry the
    narrower dtype, as bits.
    """

    def reshard_leaf(array: Array, leaf: Leaf, sharding: Sharding, dtype: np.dtype) -> Array:
        bits = as_bits(array.astype(leaf.carried))
        if len(devices_of(sharding)) > 1:
            bits = jax.lax.with_sharding_constraint(bits, leaf.source)
            bits = jax.lax.with_sharding_constraint(bits, sharding)
        # XLA copies what is not donated, but nothing promises it.
        return jnp.copy(from_bits(bits, leaf.carried).astype(dtype))

    def identity(arrays: list[Array]) -> list[Array]:
        return [reshard_leaf(*each) for each in zip(arrays, leaves, shardings, dtypes, strict=True)]

    program = jax.jit(identity, out_shardings=list(shardings), donate_argnums=0 if donate else ())
    return lambda arrays: program(list(arrays))


def _put(
    leaves: Sequence[Leaf], before: Callable[[Sequence[Array]], list[Array]] | None
) -> Program:
    """Shard by shard to other devices, cast to a wider dtype there."""
    targets = [leaf.target for leaf in leaves]
    widened = any(leaf.carried != leaf.result for leaf in leaves)
    widen = jax.jit(
        lambda arrays: [x.astype(leaf.result) for x, leaf in zip(arrays, leaves, strict=True)]
    )

    def run(arrays: Sequence[Array], _: Sequence[Any]) -> Sequence[Any]:
        put = jax.device_put(before(arrays) if before else list(arrays), targets, may_alias=False)
        return widen(put) if widened else put

    return run


def _assembled(leaves: Sequence[Leaf], shards: Sequence[list[Array]]) -> list[Array]:
    make = jax.make_array_from_single_device_arrays
    return [
        make(leaf.shape, leaf.target, leaf_shards)
        for leaf, leaf_shards in zip(leaves, shards, strict=True)
    ]
