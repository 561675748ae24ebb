"""The params that a model's head reads, apart from all others, so that they alone are gathered from
their shards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Var

from rlhf_jax.models.api import Model
from rlhf_jax.models.common.layout import Layout
from rlhf_jax.models.common.rounding import narrowed
from rlhf_jax.ops.sharded_logprobs import HeadParam
from rlhf_jax.types import Array, Params


@dataclass(frozen=True)
class SplitHead:
    """A head as a function of the params that it reads."""

    params: list[Array]
    layout: list[HeadParam]
    function: Callable[[Sequence[Array], Array], Array]  # (params, [n, D]) -> [n, V]

    def whole(self, layout: Layout) -> list[Array]:
        """The params rounded and gathered where this is called: outside a loop, once for all of its
        passes.

        Args:
          layout: of the mesh.
        """
        return [
            layout.shards.gathered(param.astype(where.dtype), where.spec)
            for param, where in zip(self.params, self.layout, strict=True)
        ]


def split_head(model: Model, params: Params, hidden_ND: Array, layout: Layout) -> SplitHead:
    """The head of a model as a function of the params that its logits depend on.

    They are found by tracing it, so that a family needs to say nothing.

    Args:
      model: whose head it is.
      params: all of the model's.
      hidden_ND: hidden states, arrays or their shapes.
      layout: of the mesh.
    """
    leaves, tree = jax.tree.flatten(params)
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    row = jax.ShapeDtypeStruct((1, hidden_ND.shape[-1]), hidden_ND.dtype)
    traced = jax.make_jaxpr(lambda leaves, row: model.head(tree.unflatten(leaves), row))
    jaxpr = traced(shapes, row).jaxpr
    read = _read(jaxpr)
    used = [index for index in range(len(leaves)) if jaxpr.invars[index] in read]
    specs = layout.specs(model, params)

    def function(used_params: Sequence[Array], hidden: Array) -> Array:
        # Zeros in the place of all others: nothing depends on them, so that none is made.
        whole = [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]
        for index, param in zip(used, used_params, strict=True):
            whole[index] = param.astype(shapes[index].dtype)
        return model.head(tree.unflatten(whole), hidden)

    found = [
        HeadParam(specs[index], narrowed(jaxpr, jaxpr.invars[index], shapes[index].dtype))
        for index in used
    ]
    return SplitHead([leaves[index] for index in used], found, function)


def _read(jaxpr: Jaxpr) -> set[Var]:
    """The variables that the results depend on."""
    needed = {var for var in jaxpr.outvars if isinstance(var, Var)}
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            needed |= {var for var in equation.invars if isinstance(var, Var)}
    return needed
