"""Params in the dtype to which every product rounds them: those of a role that no update changes
are held so, and cost half the memory where products are in bfloat16.
"""

from collections.abc import Hashable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var

from rlhf_jax.models.api import Model
from rlhf_jax.models.common.adapters import split
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.ops.once import once
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array, Params

MOVES = ("transpose", "reshape")
"""Primitives that commute with rounding."""
FLOAT32 = np.dtype("float32")
INNER = ("jaxpr", "call_jaxpr")
"""Names of the function that a primitive calls with its own inputs, one to one."""


def held(model: Model | ValueModel, params: Params) -> Params:
    """Params of a role that no update changes, each in the dtype to which the model rounds it
    before it computes anything: what is computed has the same bits.

    The leaves are found by tracing the model, so that a family needs to say nothing. Norms and
    value heads, which compute in float32, stay as they are. So does everything of a model that
    computes in float32, and of params with an adapter, whose base is rounded already. Casting again
    changes nothing.

    Args:
      model: of the role.
      params: of it, as arrays or their shapes; they are not deleted.
    """
    if _decoder(model).dtype == "float32" or split(params)[1] is not None:
        return params
    leaves, tree = jax.tree.flatten(params)
    dtypes = _dtypes(model, tree, tuple(leaf.shape for leaf in leaves))
    return tree.unflatten(
        [_cast(leaf, dtype or leaf.dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)]
    )


def as_trained(params: Params) -> Params:
    """Shapes of params that a role begins to train with: float32, in which no leaf is rounded.

    Args:
      params: of the role, held or not, as arrays or their shapes.
    """

    def shape(leaf: Array) -> jax.ShapeDtypeStruct:
        dtype = jnp.float32 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype)

    return jax.tree.map(shape, params)


def is_rounded(params: Params) -> bool:
    """True where a leaf of the part that could be trained has less than float32: training cannot
    begin with it.

    Args:
      params: of a role; the base of an adapter is not trained.
    """
    return any(
        jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < FLOAT32.itemsize
        for leaf in jax.tree.leaves(split(params)[0])
    )


def is_shapes(params: Params) -> bool:
    """True for shapes of a role's params, which have no numbers to begin with.

    Args:
      params: of a role; the base of an adapter is not looked at.
    """
    leaves = jax.tree.leaves(split(params)[0])
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


def check_trainable(params: Params, role: str) -> None:
    """Raises Refusal for params that training cannot begin with: rounded ones, or only shapes.

    Args:
      params: of the trained part of a role.
      role: for the message.
    """
    if is_shapes(params):
        raise Refusal(
            f"the {role}'s first params are shapes without numbers; accepted: float32 arrays"
        )
    if is_rounded(params):
        names = sorted({leaf.dtype.name for leaf in jax.tree.leaves(params)})
        raise Refusal(
            f"the {role}'s first params are {', '.join(names)}; accepted: float32, which was not "
            "rounded (those of a frozen role are, see rlhf_jax/models/common/rounding.py)"
        )


def narrowed(jaxpr: Jaxpr, var: Var, dtype: np.dtype) -> str:
    """The narrower dtype to which every use of a variable rounds it first, or its own.

    Args:
      jaxpr: that reads it.
      var: the variable.
      dtype: its own.
    """
    names = set(_dtypes_read(jaxpr, var, dtype.name))
    narrow = names.pop() if len(names) == 1 else dtype.name
    return narrow if jnp.dtype(narrow).itemsize < dtype.itemsize else dtype.name


@once
def _dtypes(
    model: Model | ValueModel, tree: Hashable, sizes: tuple[tuple[int, ...], ...]
) -> tuple[str, ...]:
    """The dtype of each leaf as it is held; "" for one that has to stay as it is."""

    def outputs(leaves: list[Array], tokens_BL: Array, mask_BL: Array) -> Array:
        params = jax.tree.unflatten(tree, leaves)
        hidden_BLD, _ = model.apply(params, tokens_BL, tokens_BL, mask_BL)
        if isinstance(model, ValueModel):
            return model.value(params, hidden_BLD)
        return model.head(params, hidden_BLD)

    leaves = [jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes]
    rows = (jax.ShapeDtypeStruct((1, 2), dtype) for dtype in (jnp.int32, jnp.bool_))
    jaxpr = jax.make_jaxpr(outputs)(leaves, *rows).jaxpr
    found = []
    for var in jaxpr.invars[: len(leaves)]:
        # Nothing reads a value model's map to logits.
        is_read = any(True for _ in _dtypes_read(jaxpr, var, "float32"))
        name = narrowed(jaxpr, var, FLOAT32) if is_read else _decoder(model).dtype
        found.append("" if name == "float32" else name)
    return tuple(found)


def _decoder(model: Model | ValueModel) -> Model:
    return model.backbone if isinstance(model, ValueModel) else model


def _cast(leaf: Array, dtype: str) -> Array:
    if leaf.dtype == dtype:
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)  # type: ignore[return-value]
    return leaf.astype(dtype)


def _dtypes_read(jaxpr: Jaxpr, var: Var, own: str) -> Iterator[str]:
    """The dtype in which each use of a variable reads it."""
    if var in jaxpr.outvars:
        yield own
    for equation in jaxpr.eqns:
        for place, read in enumerate(equation.invars):
            if read is not var:
                continue
            inner = _inner(equation)
            if equation.primitive.name == "convert_element_type":
                yield jnp.dtype(equation.params["new_dtype"]).name
            elif equation.primitive.name in MOVES:
                yield from _dtypes_read(jaxpr, equation.outvars[0], own)
            elif inner is not None:
                yield from _dtypes_read(inner, inner.invars[place], own)
            else:
                yield own


def _inner(equation: JaxprEqn) -> Jaxpr | None:
    """The function that an equation calls with its own inputs: of a scan, its body."""
    for name in INNER:
        inner = equation.params.get(name)
        jaxpr = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
        if isinstance(jaxpr, Jaxpr) and len(jaxpr.invars) == len(equation.invars):
            return jaxpr
    return None
