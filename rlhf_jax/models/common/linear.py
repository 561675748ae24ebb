"""Products and lookups of a decoder's params with float32 gradients (`model.gradient_dtype`), and
the context in which an objective reduces these gradients over the devices.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import jax
from jax.sharding import PartitionSpec as P

from rlhf_jax.models.api import Model
from rlhf_jax.models.common import adapters
from rlhf_jax.models.common.layout import Layout, current
from rlhf_jax.models.common.stacking import flat, is_stacked_path
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.ops.linear import float32_gradients, int8
from rlhf_jax.ops.linear.sharded_gradients import (
    ParamShards,
    ShardedParam,
    sharded_lookup,
    sharded_product,
)
from rlhf_jax.types import Array, Metrics, Params

Rows = TypeVar("Rows")
Objective = Callable[[Params, Rows], tuple[Array, Metrics]]
"""(params, rows) -> (loss summed over the rows, metrics)."""
Path = tuple[str, ...]
"""A flax collection, then the path of a module or of its param there."""


@dataclass(frozen=True)
class Reduction:
    """The shards of a model's params while an objective is traced.

    Attributes:
      shards: of each param.
      addends: of each param that is reduced once for all of its uses.
      stacked_layer: the name of the stacked layers of which a scan traces one; "" outside a scan.
    """

    shards: Mapping[Path, ParamShards]
    addends: Mapping[Path, Array]
    stacked_layer: str = ""

    def divides(self, rows: Array) -> bool:
        """True where the shards divide rows evenly. Of fewer prompts than shards they may not: the
        compiler then chooses how it computes the float32 gradient of that pass.
        """
        return all(len(rows) % shards.rows.count == 0 for shards in self.shards.values())

    def sharded(self, path: Path, param: Array) -> ShardedParam:
        """A param as a product or a lookup reads it.

        Args:
          path: of the param, inside its layer where a scan traces one.
          param: without the dimension of layers.
        """
        if self.stacked_layer:
            path = (path[0], self.stacked_layer, *path[1:])
        shards = self.shards[path]
        if self.stacked_layer:
            shards = replace(shards, spec=P(*shards.spec[1:]))
        addends = self.addends[path] if path in self.addends else shards.addends(param)
        return ShardedParam(param, shards, addends)


_REDUCTION: ContextVar[Reduction | None] = ContextVar("reduction", default=None)


def reducing_gradients(objective: Objective[Rows], model: Model | ValueModel) -> Objective[Rows]:
    """Wraps the objective of a model with `gradient_dtype` float32 so that, on a mesh that shards
    rows, the gradients of its params are reduced over the devices in the turn of each micro-batch.
    With bfloat16, or without such a mesh, the objective computes what it did.

    The embedding is reduced once for all passes of the objective over prompts and completions, and
    so is each layer. With remat or layers in a scan each pass reduces a layer by itself, so that no
    device holds the whole float32 gradients of all layers between two passes.

    Args:
      objective: applies the model to the trained params, with an adapter or without one, and to the
        rows of a micro-batch.
      model: a decoder, or a value model on one.
    """
    decoder = model.backbone if isinstance(model, ValueModel) else model
    if not widens_gradients(decoder.dtype, gradient_dtype(decoder)):
        return objective

    def reducing(params: Params, rows: Rows) -> tuple[Array, Metrics]:
        layout = current()
        if layout is None:
            return objective(params, rows)
        params, rows = _in_turn(params, rows)
        own = params["backbone"] if isinstance(model, ValueModel) else params
        token = _REDUCTION.set(_reduction(decoder, own, layout))
        try:
            return objective(params, rows)
        finally:
            _REDUCTION.reset(token)

    return reducing


def _reduction(model: Model, params: Params, layout: Layout) -> Reduction:
    specs = jax.tree.unflatten(jax.tree.structure(params), layout.specs(model, params))
    arrays: Mapping[Path, Array] = _by_path(params)
    # With remat the backward pass reads what it gathered to compute the layer again.
    shards = {
        path: ParamShards(layout.shards, spec, gathers_again=not model.remat)
        for path, spec in _by_path(specs).items()
    }
    addends = {
        path: shards[path].addends(arrays[path])
        for path in shards
        if not is_stacked_path(path) and not (model.remat and _is_of_layer(path))
    }
    return Reduction(shards, addends)


@contextmanager
def in_stacked_layer(name: str) -> Iterator[None]:
    """A context in which a scan traces one of the stacked layers.

    Args:
      name: of these layers among params.
    """
    reduction = _REDUCTION.get()
    token = _REDUCTION.set(reduction and replace(reduction, stacked_layer=name))
    try:
        yield
    finally:
        _REDUCTION.reset(token)


def widens_gradients(dtype: object, gradient_dtype: str) -> bool:
    """True where gradients have more bits than the products that they are of.

    Args:
      dtype: of products, as a config names it.
      gradient_dtype: of the config.
    """
    return dtype == "bfloat16" and gradient_dtype == "float32"


def gradient_dtype(model: Model) -> str:
    """The key `model.gradient_dtype` of a model; "bfloat16" for a family of a user's own without
    it.
    """
    return getattr(model, "gradient_dtype", "bfloat16")


def network_gradient_dtype(model: Model | ValueModel) -> str:
    """The key `model.network_gradient_dtype` of a model; "float32" for a family of a user's own
    without it.
    """
    decoder = model.backbone if isinstance(model, ValueModel) else model
    return getattr(decoder, "network_gradient_dtype", "float32")


def product(x_AD: Array, params: Mapping[str, Array], dtype: str, path: Path) -> Array:
    """`x kernel + bias` in `dtype`, `[A, F]`, with float32 gradients of kernel and bias.

    Args:
      x_AD: rows.
      params: the kernel `[D, F]`, then its bias `[F]` if it has one, by name.
      dtype: that everything is rounded to.
      path: of the layer.
    """
    reduction = _REDUCTION.get()
    kernel, bias = [*params.values(), None][:2]
    assert kernel is not None
    # A frozen base is rounded already and has no gradient.
    if reduction is None or kernel.dtype == dtype or not reduction.divides(x_AD):
        return float32_gradients.product(x_AD, kernel, bias, dtype)
    sharded = [reduction.sharded((*path, name), param) for name, param in params.items()]
    return sharded_product(x_AD, sharded[0], sharded[1] if len(sharded) > 1 else None, dtype)


_INT8_SPECS: ContextVar[Mapping[str, P]] = ContextVar("int8_specs", default=MappingProxyType({}))


@contextmanager
def int8_kernels(model: Model, base: Params) -> Iterator[None]:
    """A context in which a model on a base with int8 kernels is traced: on a mesh that shards rows,
    products bring the shards of these kernels together as int8.

    Args:
      model: of the base.
      base: its params.
    """
    layout, specs = current(), dict[str, P]()
    is_int8 = any(path[-1] == adapters.KERNEL_SCALE for path in flat(base))
    if layout is not None and is_int8:
        tree = jax.tree.unflatten(jax.tree.structure(base), layout.specs(model, base))
        for path, spec in flat(tree).items():
            if path[-1] == "kernel":  # layers of one name have one spec
                specs[path[-2]] = P(*spec[1:]) if is_stacked_path(path) else spec
    token = _INT8_SPECS.set(specs)
    try:
        yield
    finally:
        _INT8_SPECS.reset(token)


def int8_product(x_AD: Array, kernel_DF: Array, scale_F: Array, dtype: str, name: str) -> Array:
    """`(x kernel) scale` in `dtype`, `[A, F]`: see `ops/linear/int8.py`.

    Args:
      x_AD: rows.
      kernel_DF: int8.
      scale_F: of its output columns.
      dtype: of the product.
      name: of the layer, as `int8_kernels` knows its spec.
    """
    layout, spec = current(), _INT8_SPECS.get().get(name)
    if layout is None or spec is None:
        return int8.product(x_AD, kernel_DF, scale_F, dtype)
    gathered = partial(layout.shards.gathered, spec=spec)
    return int8.product(x_AD, kernel_DF, scale_F, dtype, gathered)


def lookup(tokens_A: Array, table_VD: Array, dtype: str, path: Path) -> Array:
    """Rows of a table in `dtype`, `[A, D]`, with a float32 gradient of the table.

    Args:
      tokens_A: indices of rows.
      table_VD: float32 or `dtype`.
      dtype: of the result.
      path: of the embedding.
    """
    reduction = _REDUCTION.get()
    if reduction is None or table_VD.dtype == dtype or not reduction.divides(tokens_A):
        return float32_gradients.lookup(table_VD, tokens_A, dtype)
    return sharded_lookup(reduction.sharded((*path, "embedding"), table_VD), tokens_A, dtype)


def _by_path(params: Params) -> dict[Path, Any]:
    """Leaves of params, or of a tree like them, by collection and path, as a module knows them."""
    collections = {"params": adapters.base_of(params)}
    if isinstance(params, adapters.Adapted):
        collections[adapters.COLLECTION] = params.adapter
    return flat(collections)


def _is_of_layer(path: Path) -> bool:
    return any(name.startswith("layer_") for name in path)


def _in_turn(params: Params, rows: Rows) -> tuple[Params, Rows]:
    """Params and rows of a micro-batch, of which nothing is computed before all are there; the
    gradients of the params likewise.

    XLA would gather params before a loop over micro-batches that reads them, and reduce gradients
    after it, so that each device held the whole of both.
    """

    def forward(*arrays: Params | adapters.Rest | Rows):
        return jax.lax.optimization_barrier(arrays), None

    def backward(_: None, cotangents: tuple[Params, adapters.Rest, Rows]):
        return jax.lax.optimization_barrier(cotangents[0]), None, None

    run = jax.custom_vjp(lambda *arrays: forward(*arrays)[0])
    run.defvjp(forward, backward)
    trained, rest, rows = run(*adapters.split(params), rows)
    return adapters.join(trained, rest), rows
