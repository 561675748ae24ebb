"""Moves params and whole train states from any placement to any other, without passing through host
memory.

`jax.device_put` between two layouts gathers the whole array on the host unless every target shard
is exactly a source shard, and `jax.jit` takes no arrays of two device sets. So a leaf is moved by
one of these recipes; `explain` says which, and why:

    copy       the same devices in the same order, the same part on each: a compiled copy
    jit        the same devices in the same order: a compiled identity, whose collectives move what is needed
    put        every target shard is a source shard: copied as it is
    two-phase  as many other devices: resharded on the source's, then put, where that moves no more bytes than
    pieces     any other: intersections of source and target shards are cut, copied and put together (`pieces.py`)

Results own their buffers: what deletes or donates the source later does not touch them. Work is
only dispatched, and awaited where more than `max_bytes` would be under way. Parameter reallocation
is of ReaLHF (Mei et al. 2024, arXiv 2406.14088).
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.devices.transfer import strategies
from rlhf_jax.devices.transfer.copies import Leaf, extra_bytes
from rlhf_jax.devices.transfer.intersections import devices_of
from rlhf_jax.refusal import Refusal

MAX_BYTES = 1 << 28
SMALL_BYTES = 1 << 20
"""Leaves of fewer bytes are moved together: dispatching them one by one would take longer than
moving them.
"""


@dataclass(frozen=True)
class Explained:
    """The strategy that moves a leaf, and the reason for it.

    `moved` is bytes by (from device, to device): of "jit" the least that its collectives must move,
    of the others exactly what is copied ("two-phase": its collectives' least, and the copies).
    """

    path: str
    recipe: strategies.Recipe
    why: str
    moved: Mapping[tuple[Any, Any], int]

    @property
    def moved_bytes(self) -> int:
        """Bytes between devices, in all."""
        return sum(self.moved.values())


def explain(shapes: Any, sources: Any, targets: Any, *, dtype: Any = None) -> list[Explained]:
    """The strategy of `move` for every leaf, in the tree's order. Touches no device.

    Args:
      shapes: a tree of arrays or of shapes with dtypes.
      sources, targets: trees of shardings like it, or one for all leaves.
      dtype: as in `move`.

    Raises Refusal where a mesh axis does not divide the dimension that it cuts.
    """
    leaves = _leaves(jax.tree.leaves(shapes), _like(sources, shapes), _like(targets, shapes), dtype)
    found = []
    for (path, _), leaf in zip(jax.tree.leaves_with_path(shapes), leaves, strict=True):
        recipe, why = strategies.choose(leaf)
        found.append(
            Explained(jax.tree_util.keystr(path), recipe, why, strategies.moved(leaf, recipe))
        )
    return found


def move(
    tree: Any,
    shardings: Any,
    *,
    dtype: Any = None,
    max_bytes: int = MAX_BYTES,
    donate: bool = False,
) -> Any:
    """The tree's arrays in other shardings, in buffers of their own.

    Args:
      tree: of jax arrays in device memory.
      shardings: a tree of NamedShardings like it, or one for all leaves.
      dtype: what floating-point leaves are cast to: before they travel to a narrower one, after it
        to a wider; None: theirs.
      max_bytes: of pieces that a device holds, beside sources and results, at any one time; more is
        dispatched when what went before has arrived. An array with more pieces than that is moved
        in bands (by "pieces" alone: the collectives of "jit" take what they take).
      donate: whether the source is given up: its leaves are deleted one after the other as they are
        moved, so that source and result are never both in memory as a whole.

    Raises Refusal where a leaf is no array, rests in host memory, or is in the tree twice with
    `donate`; where it lies or goes on other processes' devices while the devices or their order
    change; and where a mesh axis does not divide the dimension that it cuts.
    """
    arrays, structure = jax.tree.flatten(tree)
    _check(tree, arrays, donate)
    leaves = _leaves(arrays, [array.sharding for array in arrays], _like(shardings, tree), dtype)
    made: list[Any] = [None] * len(arrays)
    under_way: deque[tuple[int, Any]] = deque()
    for step in _steps(tuple(leaves), max_bytes, donate):
        while under_way and sum(size for size, _ in under_way) + step.beside_bytes > max_bytes:
            jax.block_until_ready(under_way.popleft()[1])
        results = step.run(
            [arrays[place] for place in step.places], [made[place] for place in step.places]
        )
        under_way.append((step.beside_bytes, results))
        for place, result in zip(step.places, results, strict=True):
            made[place] = result
            if donate and step.is_last:
                arrays[place].delete()
    return jax.tree.unflatten(structure, made)


def to_host(tree: Any, *, donate: bool = False) -> Any:
    """The tree's arrays in pinned host memory, laid out as they are: where a role rests that no
    call needs for a while.

    `donate` deletes the source. Raises Refusal where the devices offer no such memory, naming what
    they offer.
    """
    return _in_memory(tree, lambda device: "pinned_host", donate)


def to_device(tree: Any, *, donate: bool = False) -> Any:
    """The tree's arrays in their devices' own memory, laid out as they are: undoes `to_host`, bit
    for bit.
    """
    return _in_memory(tree, lambda device: device.default_memory().kind, donate)


def _in_memory(tree: Any, kind_of: Callable[[Any], str], donate: bool) -> Any:
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


def _like(shardings: Any, tree: Any) -> list[Any]:
    """A sharding for every leaf of the tree."""
    if isinstance(shardings, jax.sharding.Sharding):
        return [shardings] * len(jax.tree.leaves(tree))
    return jax.tree.leaves(jax.tree.map(lambda _, sharding: sharding, tree, shardings))


def _leaves(
    arrays: Sequence[Any], sources: Sequence[Any], targets: Sequence[Any], dtype: Any
) -> list[Leaf]:
    found = []
    for array, source, target in zip(arrays, sources, targets, strict=True):
        before = np.dtype(array.dtype)
        after = (
            np.dtype(dtype)
            if dtype is not None and jnp.issubdtype(before, jnp.floating)
            else before
        )
        found.append(Leaf(tuple(array.shape), before, after, source, target))
    return found


def _check(tree: Any, arrays: Sequence[Any], donate: bool) -> None:
    """Raises Refusal for what `move` does not take."""

    def name(place: int) -> str:
        return jax.tree_util.keystr(jax.tree.leaves_with_path(tree)[place][0])

    seen: dict[int, int] = {}
    for place, array in enumerate(arrays):
        if not isinstance(array, jax.Array):
            raise Refusal(
                f"{name(place)} is a {type(array).__name__}; accepted: arrays of jax, which lie on "
                "devices"
            )
        kind, own = array.sharding.memory_kind, devices_of(array.sharding)[0].default_memory().kind
        if kind is not None and kind != own:
            raise Refusal(
                f"{name(place)} rests in memory of kind {kind}; `to_device` brings it back first"
            )
        if donate and id(array) in seen:
            raise Refusal(
                f"{name(place)} and {name(seen[id(array)])} are the same array, which cannot be "
                "donated twice"
            )
        seen[id(array)] = place


@dataclass(frozen=True)
class _Step:
    """Leaves that are moved together, by their places in the tree, or a band of one leaf."""

    places: tuple[int, ...]
    beside_bytes: int
    run: strategies.Program
    is_last: bool = True


@lru_cache(maxsize=64)
def _steps(leaves: tuple[Leaf, ...], max_bytes: int, donate: bool) -> tuple[_Step, ...]:
    return tuple(_make_steps(leaves, max_bytes, donate))


def _make_steps(leaves: tuple[Leaf, ...], max_bytes: int, donate: bool) -> Iterator[_Step]:
    """Small leaves of one recipe between the same devices go together, up to `max_bytes`; the
    others one by one.
    """
    together: dict[Any, list[int]] = {}
    beside = [strategies.beside_bytes(leaf, strategies.choose(leaf)[0]) for leaf in leaves]

    def step(places: Sequence[int]) -> _Step:
        chosen = tuple(leaves[place] for place in places)
        kinds = {strategies.choose(leaf)[0] for leaf in chosen}
        recipe = kinds.pop() if len(kinds) == 1 else "pieces"
        total = sum(beside[place] for place in places)
        return _Step(tuple(places), total, strategies.make_program(chosen, recipe, donate))

    for place, leaf in enumerate(leaves):
        recipe, _ = strategies.choose(leaf)
        if recipe == "pieces" and beside[place] > max_bytes and leaf.shape:
            yield from _bands(place, leaf, max_bytes)
        elif beside[place] > SMALL_BYTES:
            yield step([place])
        else:
            ordered = strategies.keeps_order(leaf)
            kind = "pieces" if recipe == "put" and not ordered else recipe
            key = kind, ordered, devices_of(leaf.source), devices_of(leaf.target)
            group = together.setdefault(key, [])
            if group and sum(beside[other] for other in group) + beside[place] > max_bytes:
                yield step(group)
                group.clear()
            group.append(place)
    for group in together.values():
        yield step(group)


def _bands(place: int, leaf: Leaf, max_bytes: int) -> Iterator[_Step]:
    """Twice as many bands until none has more than `max_bytes`, or each is one row of the longest
    shard.
    """
    num_bands, longest = 1, max(leaf.target.shard_shape(leaf.shape))
    sizes = [extra_bytes(leaf)]
    while max(sizes) > max_bytes and num_bands < longest:
        num_bands = min(2 * num_bands, longest)
        sizes = [extra_bytes(leaf, number, num_bands) for number in range(num_bands)]
    for number, size in enumerate(sizes):
        yield _Step(
            (place,), size, strategies.make_band(leaf, number, num_bands), number == num_bands - 1
        )
