"""Reshard strategies: the one that moves an array from one sharding to another, its reason, and its
program.

The recipes are named and told apart in `reallocate.py`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding

from rlhf_jax.devices.transfer.copies import Leaf, as_bits, extra_bytes, from_bits, make_exchange
from rlhf_jax.devices.transfer.intersections import boxes, devices_of, moved_bytes
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array

Recipe = Literal["copy", "jit", "put", "two-phase", "pieces"]
Program = Callable[[Sequence[Array], Sequence[Any]], Sequence[Any]]
"""(arrays, what the band before made of them) -> arrays where they shall lie; of bands but the
last, buffers.
"""


@lru_cache(maxsize=4096)
def choose(leaf: Leaf) -> tuple[Recipe, str]:
    """The recipe that moves a leaf, and why it does."""
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
    least, phases = (sum(moved(leaf, recipe).values()) for recipe in ("pieces", "two-phase"))
    if phases <= least:
        return (
            "two-phase",
            f"another layout is made on the source's devices and goes to {len(target)} others as "
            "it is",
        )
    return "pieces", f"another layout: in pieces {least} bytes move, in two phases {phases} would"


def moved(leaf: Leaf, recipe: Recipe) -> Counter[tuple[Any, Any]]:
    """Bytes by (from device, to device) under a recipe; see `reallocate.Explained`."""
    size = leaf.carried.itemsize
    if recipe != "two-phase":
        return moved_bytes(leaf.shape, size, leaf.source, leaf.target)
    between = _on_source(leaf)
    found = moved_bytes(leaf.shape, size, leaf.source, between)
    shard = int(np.prod(between.shard_shape(leaf.shape))) * size
    for one, other in zip(devices_of(between), devices_of(leaf.target), strict=True):
        if one != other:
            found[one, other] += shard
    return found


def beside_bytes(leaf: Leaf, recipe: Recipe) -> int:
    """Bytes that a device holds beside source and result while a leaf is moved: of collectives,
    taken to be the result's.
    """
    if recipe in ("put", "pieces"):
        return extra_bytes(leaf)
    return int(np.prod(leaf.target.shard_shape(leaf.shape))) * leaf.result.itemsize


def keeps_order(leaf: Leaf) -> bool:
    """True where the n-th target device, of another set, takes the n-th source device's shard: one
    call puts such arrays.
    """
    held, wanted = (boxes(sharding, leaf.shape) for sharding in (leaf.source, leaf.target))
    return list(held.values()) == list(wanted.values()) and set(held) != set(wanted)


@lru_cache(maxsize=1024)
def make_program(leaves: tuple[Leaf, ...], recipe: Recipe, donate: bool) -> Program:
    """A program that moves leaves with the same source devices and the same target devices.

    Args:
      recipe: of all leaves; "pieces" carries out a "put" as well.
      donate: whether the arrays may be taken over as they are, where the recipe is a copy.

    Raises Refusal where devices of another process would have to be copied from or to.
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
def make_band(leaf: Leaf, place: int, num_bands: int) -> Program:
    """A program that moves the `place`-th of `num_bands` bands of a leaf: shards of the target, and
    at last the array.
    """
    check_addressable([leaf])
    exchange = make_exchange([leaf], place, num_bands)

    def run(arrays: Sequence[Array], before: Sequence[Any]) -> Sequence[Any]:
        shards = exchange(arrays, before if place else None)
        return _assembled([leaf], shards) if place == num_bands - 1 else shards

    return run


def check_addressable(leaves: Sequence[Leaf]) -> None:
    """Raises Refusal where a leaf lies, or shall lie, on another process's devices."""
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
    mesh = leaf.target.mesh  # type: ignore[attr-defined]
    devices = np.asarray(devices_of(leaf.source)).reshape(mesh.devices.shape)
    return NamedSharding(Mesh(devices, mesh.axis_names), leaf.target.spec)  # type: ignore[attr-defined]


def _resharded(
    leaves: Sequence[Leaf], shardings: Sequence[Sharding], dtypes: Sequence[np.dtype], donate: bool
) -> Callable[[Sequence[Array]], list[Array]]:
    """A compiled identity to shardings on the source's devices, whose collectives carry the
    narrower dtype, as bits.
    """

    def one(array: Array, leaf: Leaf, sharding: Sharding, dtype: np.dtype) -> Array:
        bits = as_bits(array.astype(leaf.carried))
        if len(devices_of(sharding)) > 1:
            bits = jax.lax.with_sharding_constraint(bits, leaf.source)
            bits = jax.lax.with_sharding_constraint(bits, sharding)
        return jnp.copy(
            from_bits(bits, leaf.carried).astype(dtype)
        )  # XLA copies by itself what is not donated; nothing promises it

    def identity(arrays: list[Array]) -> list[Array]:
        return [one(*each) for each in zip(arrays, leaves, shardings, dtypes, strict=True)]

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
        make(leaf.shape, leaf.target, found) for leaf, found in zip(leaves, shards, strict=True)
    ]
