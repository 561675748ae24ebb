"""Moves params and whole train states from any placement to any other, without passing through host
memory.

`jax.device_put` between two layouts gathers the whole array on the host unless every target shard
is exactly a source shard, and `jax.jit` takes no arrays of two device sets. So a leaf is moved by
one of these recipes; `explain` says which, and why:

    copy       the same devices in the same order, the same part on each: a compiled copy
    jit        the same devices in the same order: a compiled identity, whose collectives move what is needed
    put        every target shard is a source shard: copied as it is
    two-phase  as many other devices: resharded on the source's, then put, where that moves no more bytes than
    pieces     any other: intersections of source and target shards are cut, copied and concatenated (`copies.py`)

Results own their buffers, so deleting or donating the source later does not affect them. Work is
only dispatched; it is awaited where more than `max_bytes` would be in flight. Parameter reallocation
is from ReaLHF (Mei et al. 2024, arXiv 2406.14088).
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from rlhf_jax.devices.transfer import strategies
from rlhf_jax.devices.transfer.copies import Leaf, extra_bytes
from rlhf_jax.devices.transfer.intersections import devices_of
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array, Device

T = TypeVar("T")
MAX_BYTES = 1 << 28
SMALL_BYTES = 1 << 20
"""Leaves of fewer bytes are moved together, because dispatching them one by one would take longer than
moving them.
"""


@dataclass(frozen=True)
class Explained:
    """The strategy that moves a leaf, and the reason for it.

    `bytes_by_pair` has the bytes by (from device, to device). For "jit" they are the least that its
    collectives must move. For the others they are exactly what is copied ("two-phase": the least of
    its collectives, and the copies).
    """

    path: str
    recipe: strategies.Recipe
    why: str
    bytes_by_pair: Mapping[tuple[Device, Device], int]

    @property
    def moved_bytes(self) -> int:
        """Bytes between devices, in all."""
        return sum(self.bytes_by_pair.values())


def explain(
    shapes: object,
    sources: object,
    targets: object,
    *,
    dtype: jax.typing.DTypeLike | None = None,
) -> list[Explained]:
    """The strategy of `move` for every leaf, in the tree's order. Touches no device.

    Args:
      shapes: a tree of arrays or of shapes with dtypes.
      sources, targets: trees of shardings like it, or one for all leaves.
      dtype: as in `move`.

    Raises Refusal where a mesh axis does not divide the dimension that it cuts.
    """
    leaves = _leaves(jax.tree.leaves(shapes), _like(sources, shapes), _like(targets, shapes), dtype)
    explained = []
    for (path, _), leaf in zip(jax.tree.leaves_with_path(shapes), leaves, strict=True):
        recipe, why = strategies.choose(leaf)
        explained.append(
            Explained(
                jax.tree_util.keystr(path), recipe, why, strategies.bytes_by_pair(leaf, recipe)
            )
        )
    return explained


def move(
    tree: T,
    shardings: object,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    max_bytes: int = MAX_BYTES,
    donate: bool = False,
) -> T:
    """Copies the tree's arrays to other shardings.

    Args:
      tree: of jax arrays in device memory.
      shardings: a tree of NamedShardings like it, or one for all leaves.
      dtype: of floating-point leaves in the result. They are cast before they travel to a narrower
        dtype, and after it to a wider one. None: unchanged.
      max_bytes: most bytes of pieces that a device holds at a time, beside sources and results. The
        next leaves are dispatched when earlier ones have arrived. A leaf with more bytes of pieces
        is moved in chunks (by "pieces" alone: the collectives of "jit" are not limited).
      donate: whether the source's leaves are deleted one after the other as they are moved, so that
        source and result are never both in memory as a whole.

    Raises Refusal where a leaf is no array, is in host memory, or is in the tree twice with
    `donate`; where its source or target has devices of another process and the devices or their
    order change; and where a mesh axis does not divide the dimension that it shards.
    """
    arrays, structure = jax.tree.flatten(tree)
    _check(tree, arrays, donate)
    leaves = _leaves(arrays, [array.sharding for array in arrays], _like(shardings, tree), dtype)
    moved: list[Any] = [None] * len(arrays)
    in_flight: deque[tuple[int, Any]] = deque()
    for step in _steps(tuple(leaves), max_bytes, donate):
        while in_flight and sum(size for size, _ in in_flight) + step.beside_bytes > max_bytes:
            jax.block_until_ready(in_flight.popleft()[1])
        results = step.run(
            [arrays[index] for index in step.indices], [moved[index] for index in step.indices]
        )
        in_flight.append((step.beside_bytes, results))
        for index, result in zip(step.indices, results, strict=True):
            moved[index] = result
            if donate and step.is_last:
                arrays[index].delete()
    return jax.tree.unflatten(structure, moved)


def to_host(tree: T, *, donate: bool = False) -> T:
    """Moves the tree's arrays to pinned host memory, with their shardings: for a role that no call
    needs for a while.

    Args:
      tree: of arrays in device memory.
      donate: whether the source is deleted.

    Raises Refusal where the devices offer no such memory, naming what they offer.
    """
    return _in_memory(tree, lambda device: "pinned_host", donate)


def to_device(tree: T, *, donate: bool = False) -> T:
    """Moves the tree's arrays to their devices' memory, with their shardings: inverts `to_host`, bit
    for bit.

    Args:
      tree: of arrays in host memory.
      donate: whether the source is deleted.
    """
    return _in_memory(tree, lambda device: device.default_memory().kind, donate)


def _in_memory(tree: T, kind_of: Callable[[Device], str], donate: bool) -> T:
    arrays, structure = jax.tree.flatten(tree)
    shardings = []
    for array in arrays:
        device = devices_of(array.sharding)[0]
        kind, offered = kind_of(device), [memory.kind for memory in device.addressable_memories()]
        if kind not in offered:
            raise Refusal(f"{device} has no memory of kind {kind}; it offers {', '.join(offered)}")
        shardings.append(array.sharding.with_memory_kind(kind))
    moved = jax.device_put(arrays, shardings, may_alias=False)
    for array in arrays if donate else ():
        array.delete()
    return jax.tree.unflatten(structure, moved)


def _like(shardings: object, tree: object) -> list[Sharding]:
    """A sharding for every leaf of the tree."""
    if isinstance(shardings, Sharding):
        return [shardings] * len(jax.tree.leaves(tree))
    return jax.tree.leaves(jax.tree.map(lambda _, sharding: sharding, tree, shardings))


def _leaves(
    arrays: Sequence[Array],
    sources: Sequence[Sharding],
    targets: Sequence[Sharding],
    dtype: jax.typing.DTypeLike | None,
) -> list[Leaf]:
    leaves = []
    for array, source, target in zip(arrays, sources, targets, strict=True):
        before = np.dtype(array.dtype)
        after = (
            np.dtype(dtype)
            if dtype is not None and jnp.issubdtype(before, jnp.floating)
            else before
        )
        leaves.append(Leaf(tuple(array.shape), before, after, source, target))
    return leaves


def _check(tree: object, arrays: Sequence[object], donate: bool) -> None:
    """Raises Refusal for what `move` does not take."""

    def name(index: int) -> str:
        return jax.tree_util.keystr(jax.tree.leaves_with_path(tree)[index][0])

    seen: dict[int, int] = {}
    for index, array in enumerate(arrays):
        if not isinstance(array, jax.Array):
            raise Refusal(
                f"{name(index)} is a {type(array).__name__}; accepted: arrays of jax, which lie on "
                "devices"
            )
        kind = array.sharding.memory_kind
        if kind is not None and kind != devices_of(array.sharding)[0].default_memory().kind:
            raise Refusal(
                f"{name(index)} rests in memory of kind {kind}; `to_device` brings it back first"
            )
        if donate and id(array) in seen:
            raise Refusal(
                f"{name(index)} and {name(seen[id(array)])} are the same array, which cannot be "
                "donated twice"
            )
        seen[id(array)] = index


@dataclass(frozen=True)
class _Step:
    """Leaves that are moved together, by their indices in the tree, or a chunk of one leaf."""

    indices: tuple[int, ...]
    beside_bytes: int
    run: strategies.Program
    is_last: bool = True


@lru_cache(maxsize=64)
def _steps(leaves: tuple[Leaf, ...], max_bytes: int, donate: bool) -> tuple[_Step, ...]:
    return tuple(_make_steps(leaves, max_bytes, donate))


def _make_steps(leaves: tuple[Leaf, ...], max_bytes: int, donate: bool) -> Iterator[_Step]:
    """Groups small leaves of one recipe between the same devices, up to `max_bytes`; the others are
    moved one by one.
    """
    together: dict[object, list[int]] = {}
    beside = [strategies.beside_bytes(leaf, strategies.choose(leaf)[0]) for leaf in leaves]

    def step(indices: Sequence[int]) -> _Step:
        chosen = tuple(leaves[index] for index in indices)
        kinds = {strategies.choose(leaf)[0] for leaf in chosen}
        recipe = kinds.pop() if len(kinds) == 1 else "pieces"
        total = sum(beside[index] for index in indices)
        return _Step(tuple(indices), total, strategies.make_program(chosen, recipe, donate))

    for index, leaf in enumerate(leaves):
        recipe, _ = strategies.choose(leaf)
        if recipe == "pieces" and beside[index] > max_bytes and leaf.shape:
            yield from _chunks(index, leaf, max_bytes)
        elif beside[index] > SMALL_BYTES:
            yield step([index])
        else:
            ordered = strategies.keeps_order(leaf)
            kind = "pieces" if recipe == "put" and not ordered else recipe
            key = kind, ordered, devices_of(leaf.source), devices_of(leaf.target)
            group = together.setdefault(key, [])
            if group and sum(beside[member] for member in group) + beside[index] > max_bytes:
                yield step(group)
                group.clear()
            group.append(index)
    for group in together.values():
        yield step(group)


def _chunks(index: int, leaf: Leaf, max_bytes: int) -> Iterator[_Step]:
    """Doubles the number of chunks until none has more than `max_bytes`, or each is one row of the
    longest shard.
    """
    num_chunks, longest = 1, max(leaf.target.shard_shape(leaf.shape))
    sizes = [extra_bytes(leaf)]
    while max(sizes) > max_bytes and num_chunks < longest:
        num_chunks = min(2 * num_chunks, longest)
        sizes = [extra_bytes(leaf, number, num_chunks) for number in range(num_chunks)]
    for number, size in enumerate(sizes):
        yield _Step(
            (index,),
            size,
            strategies.make_chunk(leaf, number, num_chunks),
            number == num_chunks - 1,
        )
