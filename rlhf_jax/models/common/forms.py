"""Checkpoints read in either form: with an entry per layer or with layers stacked, whichever a run
wants (see `stacking.py`).
"""

from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from rlhf_jax.models.common import stacking
from rlhf_jax.types import Array, Params

T = TypeVar("T")
Path = tuple[str, ...]


def names(tree: object) -> list[str]:
    """Paths of a tree's leaves, such as "policy/params/layer_0/q_proj/kernel"."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def read_as(wanted: T, stored: Collection[str], read: Callable[[T], T]) -> T:
    """Reads a tree in the form that is stored, and returns it in the form that is wanted.

    Layers are stacked, or sliced, one array after the other. What an array was made of is deleted,
    so that one array at a time is held twice.

    Args:
      wanted: ShapeDtypeStructs with shardings.
      stored: the names of what is stored (see `names`).
      read: reads a tree like the one that it is given.
    """

    def as_stored(path: tuple[Any, ...], node: Params) -> Params:
        if not stacking.has_layers(node):
            return node
        start = jax.tree_util.keystr(path, simple=True, separator="/")
        start = f"{start}/" if start else ""
        entries = {
            name.removeprefix(start).partition("/")[0] for name in stored if name.startswith(start)
        }
        length = stacking.positions(dict.fromkeys(entries))
        return node if length == stacking.positions(node) else _abstract(node, length)

    abstract = jax.tree_util.tree_map_with_path(as_stored, wanted, is_leaf=stacking.has_layers)
    return jax.tree.map(_as_wanted, wanted, read(abstract), is_leaf=stacking.has_layers)


def _abstract(node: Params, length: int) -> Params:
    """Shapes with shardings of a dict of layers, stacked with another period."""

    def sharded(sharding: Sharding | None, spec: Callable[[Any], Any]) -> Sharding | None:
        if not isinstance(sharding, NamedSharding):
            return sharding
        return NamedSharding(sharding.mesh, PartitionSpec(*spec(sharding.spec)))

    layers: dict[Path, Any] = {}
    for path, leaf in stacking.flat(node).items():
        if stacking.is_stacked_path(path):
            own = sharded(leaf.sharding, lambda spec: spec[1:])
            leaf_of_layer = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=own)
        else:
            leaf_of_layer = leaf
        layers |= dict.fromkeys(stacking.members(path, node), leaf_of_layer)
    if not length:
        return unflatten_dict(layers)
    stacked = jax.eval_shape(lambda tree: stacking.stack(tree, length), unflatten_dict(layers))
    found: dict[Path, Any] = {}
    for path, leaf in stacking.flat(stacked).items():
        first = layers[stacking.members(path, stacked)[0]]
        own = first.sharding
        if stacking.is_stacked_path(path):
            own = sharded(own, lambda spec: (None, *spec))
        found[path] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own)
    return unflatten_dict(found)


def _as_wanted(wanted: Params, tree: Params) -> Params:
    if not stacking.has_layers(wanted) or stacking.positions(wanted) == stacking.positions(tree):
        return tree
    arrays, found = stacking.flat(tree), dict[Path, Array]()
    used: dict[Path, int] = {}
    for path, leaf in stacking.flat(wanted).items():
        places = [stacking.where_of(member, tree) for member in stacking.members(path, wanted)]
        if places == [(path, None)]:
            found[path] = arrays[path]
            continue
        indices = tuple(index for _, index in places)
        sources = [arrays[place] for place, _ in places]
        found[path] = _collector(indices, stacking.is_stacked_path(path), leaf.sharding)(sources)
        for place, source in zip((place for place, _ in places), sources, strict=True):
            used[place] = used.get(place, 0) + 1
            if used[place] == (source.shape[0] if stacking.is_stacked_path(place) else 1):
                jax.block_until_ready(found[path])
                source.delete()
    return unflatten_dict(found)


@lru_cache(maxsize=256)
def _collector(
    indices: tuple[int | None, ...], stacks: bool, sharding: Sharding | None
) -> Callable[[list[Array]], Array]:
    """Layers that are stacked, or the one layer, of arrays or of slices of stacked ones."""

    def collected(sources: list[Array]) -> Array:
        layers = [
            source if index is None else source[index]
            for source, index in zip(sources, indices, strict=True)
        ]
        return jnp.stack(layers) if stacks else layers[0]

    return jax.jit(collected, out_shardings=sharding)
