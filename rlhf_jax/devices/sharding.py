"""Shardings of arrays on a mesh: params by their logical axes, rows over data and fsdp, scalars
replicated.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax import randomness
from rlhf_jax.devices import memory
from rlhf_jax.devices.transfer import per_host
from rlhf_jax.models.api import Model
from rlhf_jax.models.common.layout import Layout, rows_sharded, sampling_on
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.ops.once import once
from rlhf_jax.ops.row_shards import RowShards
from rlhf_jax.types import Params, TrainState

T = TypeVar("T")
RULES = {
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "embed": "fsdp",
}
"""Logical axis -> mesh axis. A dimension that the mesh axis does not divide stays whole."""
WHOLE_PARAMS = 0.25
"""Largest share of a device's memory that whole params take while it samples: the cache needs the
rest.
"""


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def rows(mesh: Mesh) -> NamedSharding:
    """Rows over the data and fsdp axes."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def row_shardings(tree: T, mesh: Mesh) -> T:
    """A tree like the given one of NamedShardings: rows for arrays, replicated for scalars.

    Args:
      tree: of arrays or their shapes.
      mesh: of the shardings.
    """
    return jax.tree.map(lambda x: rows(mesh) if len(x.shape) else replicated(mesh), tree)


def abstract_rows(tree: T, mesh: Mesh) -> T:
    """ShapeDtypeStructs of rows and scalars with the shardings of `row_shardings`.

    Args:
      tree: of arrays or their shapes.
      mesh: of the shardings.
    """
    shardings = row_shardings(tree, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def layout_of(mesh: Mesh) -> Layout | None:
    """The layout that functions are traced for on a mesh; None where it does not shard rows."""
    return _layout(mesh, per_host.hosts_of_axis(mesh)["fsdp"])


def _layout(mesh: Mesh, fsdp_hosts: int) -> Layout | None:
    blocks = (("fsdp", fsdp_hosts),) if fsdp_hosts > 1 else ()
    shards = RowShards(mesh, ("data", "fsdp"), blocks)
    return Layout(shards, partial(params_shardings, mesh=mesh)) if shards.count > 1 else None


def keeping_rows(function: Callable[..., T], mesh: Mesh) -> Callable[..., T]:
    """Wraps `function` so that activations stay sharded by row and params are all-gathered.

    It is for passes over whole sequences; see `sampling_rows` for those that decode.

    Args:
      function: is compiled for the mesh.
      mesh: of its arguments.
    """
    return _keeping_rows(function, mesh, per_host.hosts_of_axis(mesh)["fsdp"])


@once
def _keeping_rows(function: Callable[..., T], mesh: Mesh, fsdp_hosts: int) -> Callable[..., T]:
    layout = _layout(mesh, fsdp_hosts)
    if layout is None:
        return function

    def run(*arguments: object) -> T:
        with rows_sharded(layout):
            return function(*arguments)

    return run


@once
def sampling_rows(function: Callable[..., T], mesh: Mesh) -> Callable[..., T]:
    """Wraps `function(params, ...)`, which decodes, as `keeping_rows` does where a device has room
    for whole params: `sampling.sample` then gathers them once, before it decodes.

    Where whole params take more than `WHOLE_PARAMS` of a device's memory they stay sharded. The
    compiler then sums the activations and logits of each step over fsdp, which costs less than
    gathering all params in each.

    Args:
      function: is compiled for the mesh; its first argument is params.
      mesh: of its arguments.
    """
    available = memory.total_bytes(mesh.devices.flat[0])

    def run(params: Params, *arguments: object) -> T:
        needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
        fits = available is None or needed <= WHOLE_PARAMS * available * mesh.shape["tensor"]
        with sampling_on(mesh):
            return (keeping_rows(function, mesh) if fits else function)(params, *arguments)

    return run


def params_shardings(model: Model | ValueModel, params: Params, mesh: Mesh) -> Params:
    """A NamedSharding for every array of params, by the model's logical axes and `RULES`.

    Args:
      model: names the logical axes.
      params: arrays or their shapes.
      mesh: of the shardings.
    """

    def sharding_of(array: jax.ShapeDtypeStruct, axes: tuple[str | None, ...]) -> NamedSharding:
        names = []
        for size, axis in zip(array.shape, axes, strict=True):
            name = RULES[axis] if axis is not None else None
            names.append(
                name if name and mesh.shape[name] > 1 and size % mesh.shape[name] == 0 else None
            )
        return NamedSharding(mesh, P(*names))

    return jax.tree.map(sharding_of, params, model.logical_axes(params))


def abstract_params(model: Model | ValueModel, mesh: Mesh) -> Params:
    """ShapeDtypeStructs of a model's params with their shardings, as restoring takes them.

    Args:
      model: whose params they are.
      mesh: of the shardings.
    """
    shapes = jax.eval_shape(model.init, randomness.key(0))
    shardings = params_shardings(model, shapes, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def state_shardings(
    model: Model | ValueModel,
    state: TrainState,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainState:
    """Shardings of a whole TrainState: the optimizer's arrays for a param are sharded as the param,
    and all others are replicated.

    Args:
      model: names the logical axes of params.
      state: arrays or their shapes.
      optimizer: made the state's `opt_state`.
      mesh: of the shardings.
    """
    params = params_shardings(model, state.params, mesh)
    scalar = replicated(mesh)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        state.opt_state,
        params,
        transform_non_params=lambda _: scalar,
    )
    return TrainState(step=scalar, params=params, opt_state=opt_state)  # type: ignore[arg-type]
