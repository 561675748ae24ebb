"""Params of a deep decoder with its layers stacked, so that `jax.lax.scan` runs them and one layer
is compiled.

    layer_0 ... layer_{N-1}  <->  scanned_layers_0 ... scanned_layers_{p-1}, each [N // p, ...],
                                  and the last N % p layers as they were

`scanned_layers_j` holds the layers j, j + p, j + 2 p, ...: p is the least number after which windows
and rotary positions repeat, 1 where all layers are alike. Any tree with an entry per layer has both
forms: params, adapters, gradients, the states of an optimizer.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from rlhf_jax.models.api import Cache
from rlhf_jax.types import Array, Params

T = TypeVar("T")
_STACKED, _LAYER = re.compile(r"scanned_layers_(\d+)"), re.compile(r"layer_(\d+)")


class Deep(Protocol):
    """A config of layers."""

    @property
    def num_layers(self) -> int: ...


@lru_cache(maxsize=256)
def period(config: Deep) -> int:
    """Layers after which a decoder repeats itself; 0 where its layers are not stacked.

    They are stacked from `config.scan_layers` layers on, where they repeat at least once. A config
    without that field (of a family of the user's own) never stacks them.

    Args:
      config: of a family, hashable.
    """
    least, num_layers = getattr(config, "scan_layers", 0), config.num_layers
    if not least or num_layers < least:
        return 0
    alike = [getattr(config, name) for name in ("window", "rotary") if hasattr(config, name)]
    kinds = [tuple(of_layer(index) for of_layer in alike) for index in range(num_layers)]
    for length in range(1, num_layers // 2 + 1):
        if all(kind == kinds[index % length] for index, kind in enumerate(kinds)):
            return length
    return 0


def positions(tree: object) -> int:
    """Entries of a dict that hold stacked layers: p, or 0 where it holds none."""
    if not isinstance(tree, Mapping):
        return 0
    return sum(isinstance(name, str) and bool(_STACKED.fullmatch(name)) for name in tree)


def has_layers(node: object) -> bool:
    """True for a dict with an entry per layer, or with stacked layers."""
    return bool(_num_layers(node) or positions(node))


def is_stacked(tree: object) -> bool:
    """True where layers are stacked anywhere in a tree."""
    return any(map(positions, jax.tree.leaves(tree, is_leaf=lambda node: bool(positions(node)))))


def is_stacked_path(path: tuple[str, ...]) -> bool:
    """True for the path of an array with a leading dimension of layers."""
    return any(_STACKED.fullmatch(name) for name in path)


def flat(tree: Params) -> dict[tuple[str, ...], Any]:
    """Leaves of nested dicts by their paths."""
    return flatten_dict(tree)  # pyright: ignore[reportReturnType] (its type allows for empty nodes)


def stack(tree: T, length: int) -> T:
    """A tree with its layers stacked; those of every dict that has them in the tree.

    Args:
      tree: with entries `layer_0`, `layer_1`, ...; arrays on the host stay there.
      length: p; 0 returns the tree as it is.
    """
    if not length:
        return tree
    return jax.tree.map(
        lambda node: _stacked(node, length), tree, is_leaf=lambda node: bool(_num_layers(node))
    )


def unstack(tree: T) -> T:
    """The inverse of `stack`, which is a slice for each layer; a tree without stacked layers is
    returned as it is.
    """
    return jax.tree.map(_unstacked, tree, is_leaf=lambda node: bool(positions(node)))


def where_of(path: tuple[str, ...], layers: Params) -> tuple[tuple[str, ...], int | None]:
    """The path of a param among stacked params, and its index in the first dimension there.

    Args:
      path: as in unrolled params.
      layers: the dict that has the entries of layers, in either form.

    Returns the path itself and None for what is not stacked.
    """
    length, layer = positions(layers), _LAYER.fullmatch(path[0])
    if not length or layer is None or path[0] in layers:
        return path, None
    repeat, position = divmod(int(layer[1]), length)
    return (f"scanned_layers_{position}", *path[1:]), repeat


def members(path: tuple[str, ...], layers: Params) -> list[tuple[str, ...]]:
    """The paths in unrolled params of what an array of params holds, in order.

    Args:
      path: of the array, stacked or not.
      layers: the dict that has the entries of layers, of arrays or their shapes.
    """
    stacked = _STACKED.fullmatch(path[0])
    if stacked is None:
        return [path]
    length, position = positions(layers), int(stacked[1])
    count = jax.tree.leaves(layers[path[0]])[0].shape[0]
    return [(f"layer_{repeat * length + position}", *path[1:]) for repeat in range(count)]


def stacked_cache(cache: Cache, params: Params) -> Cache:
    """An empty cache in the form of params: keys and values of stacked layers are stacked too,
    `[N // p, B, J, M, K]`, so that the scan reads and writes them.

    Args:
      cache: empty, with an entry per layer.
      params: of the model, in either form.
    """
    layers = _holder(params)
    length = positions(layers)
    if not length:
        return cache
    count = jax.tree.leaves(layers["scanned_layers_0"])[0].shape[0]

    def stacked(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        shapes = [(count, *array.shape) for array in arrays[:length]]
        zeros = tuple(jnp.zeros(shape, arrays[0].dtype) for shape in shapes)
        return zeros + arrays[count * length :]

    return replace(cache, keys=stacked(cache.keys), values=stacked(cache.values))


def is_stacked_cache(cache: Cache) -> bool:
    """True for a cache of `stacked_cache` on stacked params."""
    return cache.keys[0].ndim == 5


def _holder(params: Params) -> Params:
    """The dict of a decoder's or a value model's params that has the entries of layers."""
    params = params.get("backbone", params)
    return params.get("base", params)


def _num_layers(node: object) -> int:
    return (
        sum(isinstance(name, str) and bool(_LAYER.fullmatch(name)) for name in node)
        if isinstance(node, Mapping)
        else 0
    )


def _stacked(node: Params, length: int) -> Params:
    num_layers = _num_layers(node)
    repeats = num_layers // length
    if not repeats:
        return node
    whole = repeats * length
    found = {
        name: value
        for name, value in node.items()
        if not (layer := _LAYER.fullmatch(name)) or int(layer[1]) >= whole
    }
    for position in range(length):
        layers = [node[f"layer_{index}"] for index in range(position, whole, length)]
        found[f"scanned_layers_{position}"] = jax.tree.map(_joined, *layers)
    return found


def _joined(*arrays: Array) -> Array | np.ndarray:
    if all(isinstance(array, np.ndarray) for array in arrays):
        return np.stack(arrays)
    return jnp.stack(arrays)


def _unstacked(node: Params) -> Params:
    length = positions(node)
    if not length:
        return node
    found = {name: value for name, value in node.items() if not _STACKED.fullmatch(name)}
    for position in range(length):
        layers = node[f"scanned_layers_{position}"]
        for repeat in range(jax.tree.leaves(layers)[0].shape[0]):
            found[f"layer_{repeat * length + position}"] = jax.tree.map(
                lambda array, repeat=repeat: array[repeat], layers
            )
    return found
