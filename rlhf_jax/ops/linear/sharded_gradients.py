"""`ops/linear/float32_gradients.py` for rows that are sharded over devices: a param is gathered in
the compute dtype, each device sums the gradient of its own rows in float32, and these sums are
reduced over the devices in float32.

A param that is used several times may be reduced once for all of its uses: its uses then share one
array of addends.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from rlhf_jax.ops.linear.float32_gradients import (
    biased_product,
    gradient_of_bias,
    gradient_of_kernel,
    gradient_of_table,
    gradient_of_x,
    rows_of,
)
from rlhf_jax.ops.row_shards import RowShards
from rlhf_jax.types import Array


@dataclass(frozen=True)
class ParamShards:
    """A param on a mesh that shards rows.

    Attributes:
      rows: shards of the rows that are multiplied by the param.
      spec: names of mesh axes by dimension of the param.
      gathers_again: the backward pass gathers the param again, so that no device keeps the whole
        param from the forward pass on.
    """

    rows: RowShards
    spec: P
    gathers_again: bool = True

    def whole(self, param: Array, dtype: str) -> Array:
        """The param rounded to `dtype`, whole on every shard of rows.

        Args:
          param: is sharded as `spec` says.
          dtype: of the result.
        """
        return self.rows.gathered(param.astype(dtype), self.spec)

    def whole_again(self, param: Array, dtype: str) -> Array:
        """`whole` for the backward pass.

        Args:
          param: is sharded as `spec` says.
          dtype: of the result.
        """
        # Without the barrier XLA merges both gathers, and keeps the result in between.
        again = jax.lax.optimization_barrier(param) if self.gathers_again else param
        return self.whole(again, dtype)

    def addends(self, param: Array) -> Array:
        """Float32 zeros `[shards, ...]`. The gradient of `param` is the sum of their cotangent over
        the shards, which is reduced once, however often the zeros are used.

        Args:
          param: whose gradient it is.
        """
        shape, dtype = (self.rows.count, *param.shape), param.dtype

        def forward(param: Array) -> tuple[Array, None]:
            return jnp.zeros(shape, jnp.float32), None

        def backward(_: None, addends: Array) -> tuple[Array]:
            return (self.rows.reduced(addends, self.spec).astype(dtype),)

        run = jax.custom_vjp(lambda param: forward(param)[0])
        run.defvjp(forward, backward)
        return run(param)

    def sums(self, function: Callable[..., Array], *rows: Array) -> Array:
        """`function` of each shard's own rows, `[shards, ...]`.

        Args:
          function: of local rows.
          rows: arrays whose rows the shards divide evenly.
        """
        return self.rows.run(lambda _, rows: function(*rows)[None], (), rows)


@dataclass(frozen=True)
class ShardedParam:
    """A param, its shards, and the addends of its gradient, as `ParamShards.addends` makes them."""

    param: Array
    shards: ParamShards
    addends: Array


def sharded_product(
    x_AD: Array, kernel: ShardedParam, bias: ShardedParam | None, dtype: str
) -> Array:
    """`float32_gradients.product` of rows that are sharded over devices.

    Args:
      x_AD: is rounded to `dtype`; the shards divide A.
      kernel: `[D, F]`.
      bias: `[F]`; None: no bias.
      dtype: of the product.
    """
    bias_shards = None if bias is None else bias.shards

    def forward(x_AD: Array, params: tuple[Array, Array | None], addends: object):
        kernel_DF, bias_F = params
        y_AF = biased_product(x_AD, kernel.shards.whole(kernel_DF, dtype), bias_F, dtype)
        return y_AF, (x_AD, kernel_DF)

    def backward(saved: tuple[Array, Array], by_y_AF: Array):
        x_AD, kernel_DF = saved
        by_x_AD = gradient_of_x(by_y_AF, kernel.shards.whole_again(kernel_DF, dtype))
        by_kernel = kernel.shards.sums(gradient_of_kernel, x_AD, by_y_AF)
        by_bias = None if bias_shards is None else bias_shards.sums(gradient_of_bias, by_y_AF)
        return by_x_AD, None, (by_kernel, by_bias)

    run = jax.custom_vjp(lambda *arguments: forward(*arguments)[0])
    run.defvjp(forward, backward)
    params = (kernel.param, None if bias is None else bias.param)
    return run(x_AD.astype(dtype), params, (kernel.addends, None if bias is None else bias.addends))


def sharded_lookup(table: ShardedParam, tokens_A: Array, dtype: str) -> Array:
    """`float32_gradients.lookup` of rows that are sharded over devices.

    Args:
      table: `[V, D]`.
      tokens_A: indices of rows; the shards divide A.
      dtype: of the result.
    """
    num_rows, shards = table.param.shape[0], table.shards

    def forward(table_VD: Array, tokens_A: Array, addends: Array):
        return shards.rows.run(rows_of, shards.whole(table_VD, dtype), tokens_A), tokens_A

    def backward(tokens_A: Array, by_rows_AD: Array):
        def by_table(tokens_A: Array, by_rows_AD: Array) -> Array:
            return gradient_of_table(tokens_A, by_rows_AD, num_rows)

        return None, None, shards.sums(by_table, tokens_A, by_rows_AD)

    run = jax.custom_vjp(lambda *arguments: forward(*arguments)[0])
    run.defvjp(forward, backward)
    return run(table.param, tokens_A, table.addends)
