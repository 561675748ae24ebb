"""Gradients of copies of the params that several hosts hold: summed on the devices of each copy, and
over the copies once per update.

The mesh axis `data` has one copy of the params per index. Where these are on several hosts, a sum
over `data` crosses the network. The compiler would put that sum inside the loop over micro-batches.
Here the loop is mapped over `data` by hand, so that it has no collective over the copies. What is
inside a copy (`fsdp`, `tensor`) stays the compiler's.

With n copies and W bytes of a copy's gradient on a device, in the dtype of the network, each device
sends 2 (n − 1)/n · W per update, whatever the number of micro-batches is.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rlhf_jax.devices import sharding
from rlhf_jax.devices.transfer.per_host import hosts_of_axis
from rlhf_jax.micro_batches import collapse
from rlhf_jax.models.api import Model
from rlhf_jax.models.common.adapters import Rest
from rlhf_jax.models.common.layout import Layout, current, rows_sharded
from rlhf_jax.models.common.linear import network_gradient_dtype
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.ops.row_shards import RowShards
from rlhf_jax.ops.scalars import Scalars
from rlhf_jax.types import Array, Metrics, Params
from rlhf_jax.updating import Gradients, RowsT

AXIS = "data"


@dataclass(frozen=True)
class Copies:
    """Copies of a model's params along `data`; see `copies_of`.

    Attributes:
      mesh: of the update.
      model: names the logical axes of the params.
      dtype: that gradients are sent in.
    """

    mesh: Mesh
    model: Model | ValueModel
    dtype: str

    def __call__(self, gradients: Gradients[RowsT]) -> Gradients[RowsT]:
        """Wraps `gradients` so that each copy computes those of its own rows, and these are added.

        Args:
          gradients: of some rows; rows are as independent of each other as micro-batches are.
        """

        def of_copy(
            params: Params, rows: RowsT, constants: tuple[Scalars, Rest]
        ) -> tuple[Params, Array, Metrics]:
            with rows_sharded(_inside_a_copy()):
                sums = gradients(params, rows, constants)
            return jax.tree.map(lambda x: x[None], sums)

        def summed(
            params: Params, rows: RowsT, constants: tuple[Scalars, Rest]
        ) -> tuple[Params, Array, Metrics]:
            of_rows = jax.tree.map(lambda x: P(AXIS) if jnp.ndim(x) else P(), rows)
            grads, loss_N, metrics = jax.shard_map(
                of_copy,
                mesh=self.mesh,
                in_specs=(P(), of_rows, P()),
                out_specs=P(AXIS),
                axis_names={AXIS},
                check_vma=False,
            )(params, rows, constants)
            shardings = sharding.params_shardings(self.model, params, self.mesh)
            total = jax.tree.map(lambda x, where: self.reduced(x, where.spec), grads, shardings)
            return total, loss_N.sum(), collapse(metrics)

        return summed

    def reduced(self, addends: Array, spec: P) -> Array:
        """The sum of one addend from each copy, in the addends' dtype.

        Args:
          addends: `[copies, ...]`, one from each copy.
          spec: of the sum.
        """
        shards = RowShards(self.mesh, (AXIS,))
        if self.dtype == "float32":
            return shards.reduced(addends, spec)
        return shards.reduced_rounded(addends, spec, self.dtype)


def _inside_a_copy() -> Layout | None:
    """The layout of the context without `data`, whose rows a copy has to itself."""
    layout = current()
    if layout is None:
        return None
    axes = tuple(axis for axis in layout.shards.axes if axis != AXIS)
    shards = RowShards(jax.sharding.get_abstract_mesh(), axes, layout.shards.blocks)
    return replace(layout, shards=shards) if shards.count > 1 else None


def copies_of(model: Model | ValueModel, mesh: Mesh) -> Copies | None:
    """The copies of a model's params on a mesh; None where no two of them are on different hosts.

    Args:
      model: whose updates run on the mesh.
      mesh: of the updates.
    """
    if hosts_of_axis(mesh)[AXIS] == 1:
        return None
    return Copies(mesh, model, network_gradient_dtype(model))
