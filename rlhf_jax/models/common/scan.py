"""The layers of a decoder, one after the other: each in the program where params have an entry per
layer, and in a `jax.lax.scan` where they are stacked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rlhf_jax.models.api import Cache
from rlhf_jax.models.common import stacking
from rlhf_jax.models.common.decoder import DecoderLayer, run_layer
from rlhf_jax.models.common.layout import keep_rows
from rlhf_jax.models.common.linear import in_stacked_layer
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array, Params

Inputs = tuple[tuple[Array, Array], Array]
"""What a layer reads beside the residual: rotary tables, and the addends that hide columns."""
Kept = list[Sequence[Array]]
Variables = Mapping[str, Params]
"""Params by flax's collections."""


class Network(Protocol):
    """A bound module with the list of its layers."""

    @property
    def layer(self) -> Sequence[Any]: ...

    @property
    def variables(self) -> Variables: ...


def run_layers(
    network: Network, x_AD: Array, inputs: Sequence[Inputs], cache: Cache | None
) -> tuple[Array, Kept]:
    """The residual `[B*L, D]` after all layers, and the keys and values to keep.

    Args:
      network: of the layers.
      x_AD: the residual before the first one.
      inputs: of each layer. Those of stacked layers repeat as the layers do.
      cache: before the tokens are written. Where layers are stacked it is None or stacked too (see
        `stacking.stacked_cache`).
    """
    variables, length = network.variables, stacking.positions(network.variables.get("params"))
    kept: Kept = []
    if length:
        x_AD, kept = _scanned(network, variables, length, x_AD, inputs, cache)
    num_layers = len(network.layer)
    first = num_layers - num_layers % length if length else 0
    for index in range(first, num_layers):
        x_AD, kv = run_layer(network.layer[index], len(kept), x_AD, *inputs[index], cache)
        kept.append(kv)
    return x_AD, kept


def _scanned(
    network: Network,
    variables: Variables,
    length: int,
    x_AD: Array,
    inputs: Sequence[Inputs],
    cache: Cache | None,
) -> tuple[Array, Kept]:
    """The same after the stacked layers, whose keys and values are stacked too.

    The cache is carried, so that it is changed in place: among the scan's inputs and outputs it
    would be held several times while a loop decodes.
    """
    whole = len(network.layer) // length * length
    layers = [_alike(network.layer[position:whole:length]) for position in range(length)]
    stacked = [
        {
            collection: tree[f"scanned_layers_{position}"]
            for collection, tree in variables.items()
            if f"scanned_layers_{position}" in tree
        }
        for position in range(length)
    ]
    num_tokens = inputs[0][1].shape[1]
    pairs = [] if cache is None else [*zip(cache.keys, cache.values, strict=True)][:length]

    def step(carried: tuple[Array, Kept], of_step: tuple[Any, Array]) -> tuple[Any, None]:
        (x_AD, kept), (of_layers, repeat) = carried, of_step
        for position, layer in enumerate(layers):
            own = None
            if cache is not None:
                keys, values = (array[repeat] for array in kept[position])
                own = replace(cache, keys=(keys,), values=(values,))

            def run(
                layer: DecoderLayer,
                x_AD: Array,
                position: int = position,
                own: Cache | None = own,
            ) -> tuple[Array, Sequence[Array]]:
                return run_layer(layer, 0, x_AD, *inputs[position], own)

            with in_stacked_layer(f"scanned_layers_{position}"):
                found = layer.apply(of_layers[position], x_AD, method=run)
            x_AD, new = cast(tuple[Array, Sequence[Array]], found)
            if cache is not None:
                written = tuple(
                    _written(before, after, repeat, cache.column, num_tokens)
                    for before, after in zip(kept[position], new, strict=True)
                )
                kept = [*kept[:position], written, *kept[position + 1 :]]
        return (x_AD, kept), None

    steps = stacked, jnp.arange(len(network.layer) // length)
    (x_AD, kept), _ = jax.lax.scan(step, (keep_rows(x_AD), pairs), steps)
    return x_AD, kept


def _written(
    stacked_NBJMK: Array,
    kept_BJMK: Array,
    repeat: Array,
    column: Array | np.ndarray,
    num_tokens: int,
) -> Array:
    """Stacked keys or values with the new columns of one layer.

    Args:
      stacked_NBJMK: of all layers of a position.
      kept_BJMK: the layer's, with the new columns.
      repeat: the layer's index in the first dimension.
      column: where the new columns begin.
      num_tokens: L, the number of new columns.
    """
    new_BJLK = jax.lax.dynamic_slice_in_dim(kept_BJMK, column, num_tokens, axis=2)
    return jax.lax.dynamic_update_slice(stacked_NBJMK, new_BJLK[None], (repeat, 0, 0, column, 0))


def _alike(layers: Sequence[nn.Module]) -> nn.Module:
    """The first of layers that compute the same, apart from its network.

    Raises Refusal where they do not, as in a family of the user's own.
    """
    first, *others = [layer.clone(parent=None, name=None) for layer in layers]
    for index, layer in enumerate(others, 1):
        if type(layer) is not type(first) or _fields_of(layer) != _fields_of(first):
            raise Refusal(
                f"a {type(first).__name__} and, {index} repeats later, a {type(layer).__name__} "
                "are to be scanned as one, but differ in class or fields; accepted: "
                "model.scan_layers=0, which runs each by itself"
            )
    return first


def _fields_of(layer: nn.Module) -> dict[str, Any]:
    """The fields that a layer was made with."""
    names = [field.name for field in fields(layer) if field.name not in ("parent", "name")]
    return {name: getattr(layer, name) for name in names}
