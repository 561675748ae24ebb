"""The mesh that a function is traced for, as models need to know it: shards of rows, and shardings
of params.

XLA may partition a sharded product by its rows or by its width. With params sharded along the width
(fsdp) it would choose the width, and all-reduce the activations. With rows constrained to their
shards it all-gathers the params instead.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax.models.api import Model
from rlhf_jax.ops.row_shards import RowShards
from rlhf_jax.types import Array, Params


@dataclass(frozen=True)
class Layout:
    """Shards of rows on a mesh, and the shardings that a model's params have there."""

    shards: RowShards
    params: Callable[[Any, Params], Params]  # (model, shapes) -> NamedShardings

    def keep(self, rows: Array) -> Array:
        """Rows constrained to their shards."""
        sharding = NamedSharding(self.shards.mesh, P(self.shards.axes))
        return jax.lax.with_sharding_constraint(rows, sharding)

    @property
    def of_a_copy(self) -> bool:
        """True inside a function that is mapped over the copies of the params: see `devices.copies`."""
        return jax.sharding.AxisType.Manual in self.shards.mesh.axis_types

    def whole_rows(self, table: Array) -> Array:
        """A table whose last dimension is gathered; the compiler chooses the shards of the others."""
        spec = P(*[P.UNCONSTRAINED] * (table.ndim - 1), None)
        return jax.lax.with_sharding_constraint(table, NamedSharding(self.shards.mesh, spec))

    def specs(self, model: Model, params: Params) -> list[P]:
        """The spec of every param of a model, in the order of the leaves."""
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        return [sharding.spec for sharding in jax.tree.leaves(self.params(model, shapes))]


def whole_params(model: Model, params: Params) -> Params:
    """Params gathered from shards of rows, once for all passes that read what this returns; as they
    are outside `rows_sharded`.

    Args:
      model: whose params they are.
      params: of the model.
    """
    layout = current()
    if layout is None:
        return params
    leaves, tree = jax.tree.flatten(params)
    specs = layout.specs(model, params)
    return tree.unflatten(map(layout.shards.gathered, leaves, specs))


_LAYOUT: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextmanager
def rows_sharded(layout: Layout | None) -> Iterator[None]:
    """A context in which functions are traced with rows constrained to the layout's shards; None:
    the compiler chooses.
    """
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def current() -> Layout | None:
    """The layout of `rows_sharded`; None outside it."""
    return _LAYOUT.get()


def keep_rows(rows: Array) -> Array:
    """Rows constrained to the shards of `rows_sharded`; as they are outside it."""
    layout = current()
    return rows if layout is None else layout.keep(rows)


_SAMPLING: ContextVar[Mesh | None] = ContextVar("sampling", default=None)


@contextmanager
def sampling_on(mesh: Mesh) -> Iterator[None]:
    """A context in which functions that draw tokens are traced for a mesh."""
    token = _SAMPLING.set(mesh)
    try:
        yield
    finally:
        _SAMPLING.reset(token)


def sampling_mesh() -> Mesh | None:
    """The mesh of `sampling_on`; None outside it."""
    return _SAMPLING.get()
