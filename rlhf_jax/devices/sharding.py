"""Shardings of arrays on a mesh: params by their logical axes, rows over data and fsdp, scalars
replicated.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax import randomness
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import blocks
from rlhf_jax.types import Params, TrainState

RULES = {
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "embed": "fsdp",
}
"""Logical axis -> mesh axis. A dimension that the mesh axis does not divide stays whole."""


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def rows(mesh: Mesh) -> NamedSharding:
    """Rows over the data and fsdp axes."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def row_shardings(tree: Any, mesh: Mesh) -> Any:
    """A sharding for every leaf: rows for arrays, replicated for scalars."""
    return jax.tree.map(lambda x: rows(mesh) if len(x.shape) else replicated(mesh), tree)


def abstract_rows(tree: Any, mesh: Mesh) -> Any:
    """Shapes of rows and scalars with their shardings."""
    shardings = row_shardings(tree, mesh)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings
    )


def keeping_rows(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A function to be compiled for the mesh, in whose models rows stay on their shards where
    params are cut along fsdp.

    For passes over whole sequences: a decoding step has few rows, and is better off with sums of
    them than with all params.
    """
    if mesh.shape["fsdp"] == 1:
        return function

    def run(*arguments: Any) -> Any:
        with blocks.rows_sharded(rows(mesh)):
            return function(*arguments)

    return run


def params_shardings(model: Model, params: Params, mesh: Mesh) -> Any:
    """A NamedSharding for every array of params (arrays or their shapes)."""

    def one(array: Any, axes: tuple[str | None, ...]) -> NamedSharding:
        names = []
        for size, axis in zip(array.shape, axes, strict=True):
            name = RULES[axis] if axis is not None else None
            names.append(
                name if name and mesh.shape[name] > 1 and size % mesh.shape[name] == 0 else None
            )
        return NamedSharding(mesh, P(*names))

    return jax.tree.map(one, params, model.logical_axes(params))


def abstract_params(model: Model, mesh: Mesh) -> Any:
    """Shapes of a model's params with their shardings: what restoring needs."""
    shapes = jax.eval_shape(model.init, randomness.key(0))
    where = params_shardings(model, shapes, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where
    )


def state_shardings(
    model: Model, state: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shardings of a whole TrainState: what the optimizer keeps for a param lies as the param does,
    the rest everywhere.
    """
    of_params = params_shardings(model, state.params, mesh)
    everywhere = replicated(mesh)
    of_optimizer = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        state.opt_state,
        of_params,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(step=everywhere, params=of_params, opt_state=of_optimizer)  # type: ignore[arg-type]
