"""Products and lookups in a compute dtype, whose gradients to float32 params are float32.

JAX differentiates `x @ kernel.astype(bfloat16)` to a gradient of the kernel in bfloat16: it is
rounded before it is summed over devices, over micro-batches and over several uses of the kernel.
Here only the factors of a gradient have the compute dtype:

    y = x w + b;   by_x = by_y w^T in the compute dtype;   by_w = x^T by_y, by_b = sum by_y in float32

`ops/linear/sharded_gradients.py` has the same for rows that are sharded over devices.
"""

import jax
import jax.numpy as jnp

from rlhf_jax.types import Array


def product(x_AD: Array, kernel_DF: Array, bias_F: Array | None, dtype: str) -> Array:
    """`x kernel + bias` in `dtype`, `[A, F]`, with float32 gradients of kernel and bias.

    Args:
      x_AD: is rounded to `dtype`.
      kernel_DF: float32 or `dtype`.
      bias_F: likewise; None: no bias.
      dtype: of the product.
    """
    if kernel_DF.dtype == dtype:
        return biased_product(x_AD.astype(dtype), kernel_DF, bias_F, dtype)

    def forward(x_AD: Array, kernel_DF: Array, bias_F: Array | None):
        y_AF = biased_product(x_AD, kernel_DF.astype(dtype), bias_F, dtype)
        return y_AF, (x_AD, kernel_DF, bias_F)

    def backward(saved: tuple[Array, Array, Array | None], by_y_AF: Array):
        x_AD, kernel_DF, bias_F = saved
        by_kernel = gradient_of_kernel(x_AD, by_y_AF).astype(kernel_DF.dtype)
        by_bias = None if bias_F is None else gradient_of_bias(by_y_AF).astype(bias_F.dtype)
        return gradient_of_x(by_y_AF, kernel_DF.astype(dtype)), by_kernel, by_bias

    run = jax.custom_vjp(lambda *arguments: forward(*arguments)[0])
    run.defvjp(forward, backward)
    return run(x_AD.astype(dtype), kernel_DF, bias_F)


def wide_product(x_AD: Array, kernel_DF: Array) -> Array:
    """`x kernel`, float32 `[A, F]`: products in the dtype of `x`, summed in float32; with a float32
    gradient of the kernel.

    Args:
      x_AD: rows.
      kernel_DF: float32 or the dtype of `x`, to which it is rounded.
    """

    def plain(x_AD: Array, kernel_DF: Array) -> Array:
        return jnp.dot(x_AD, kernel_DF, preferred_element_type=jnp.float32)

    if kernel_DF.dtype == x_AD.dtype:
        return plain(x_AD, kernel_DF)

    def forward(x_AD: Array, kernel_DF: Array):
        return plain(x_AD, kernel_DF.astype(x_AD.dtype)), (x_AD, kernel_DF)

    def backward(saved: tuple[Array, Array], by_y_AF: Array):
        x_AD, kernel_DF = saved
        rounded_DF = kernel_DF.astype(x_AD.dtype)
        _, pull_x = jax.vjp(lambda x_AD: plain(x_AD, rounded_DF), x_AD)
        # Of a float32 kernel the derivative of the same product is float32.
        _, pull_kernel = jax.vjp(lambda kernel_DF: plain(x_AD, kernel_DF), kernel_DF)
        return *pull_x(by_y_AF), *pull_kernel(by_y_AF)

    run = jax.custom_vjp(lambda *arguments: forward(*arguments)[0])
    run.defvjp(forward, backward)
    return run(x_AD, kernel_DF)


def lookup(table_VD: Array, tokens_A: Array, dtype: str) -> Array:
    """Rows of a table in `dtype`, `[A, D]`, with a float32 gradient of the table.

    Args:
      table_VD: float32 or `dtype`.
      tokens_A: indices of rows.
      dtype: of the result.
    """
    if table_VD.dtype == dtype:
        return rows_of(table_VD, tokens_A)
    num_rows, own = table_VD.shape[0], table_VD.dtype

    def forward(table_VD: Array, tokens_A: Array):
        return rows_of(table_VD.astype(dtype), tokens_A), tokens_A

    def backward(tokens_A: Array, by_rows_AD: Array):
        return gradient_of_table(tokens_A, by_rows_AD, num_rows).astype(own), None

    run = jax.custom_vjp(lambda *arguments: forward(*arguments)[0])
    run.defvjp(forward, backward)
    return run(table_VD, tokens_A)


def biased_product(x_AD: Array, kernel_DF: Array, bias_F: Array | None, dtype: str) -> Array:
    """`x kernel + bias`, `[A, F]`.

    Args:
      x_AD: in `dtype`.
      kernel_DF: in `dtype`.
      bias_F: is rounded to `dtype`; None: no bias.
      dtype: of the product.
    """
    y_AF = jnp.dot(x_AD, kernel_DF)
    return y_AF if bias_F is None else y_AF + jnp.reshape(bias_F.astype(dtype), (1, -1))


def rows_of(table_VD: Array, tokens_A: Array) -> Array:
    """Rows of a table in its dtype, `[A, D]`.

    Args:
      table_VD: V rows.
      tokens_A: indices of rows.
    """
    return jnp.take(table_VD, tokens_A, axis=0)


def gradient_of_x(by_y_AF: Array, kernel_DF: Array) -> Array:
    """`by_y kernel^T`, `[A, D]` in the dtype of both.

    Args:
      by_y_AF: the cotangent of the product.
      kernel_DF: of the product, rounded.
    """
    return jax.lax.dot_general(by_y_AF, kernel_DF, (((1,), (1,)), ((), ())))


def gradient_of_kernel(x_AD: Array, by_y_AF: Array) -> Array:
    """`x^T by_y`, float32 `[D, F]`.

    Args:
      x_AD: of the product.
      by_y_AF: the cotangent of the product.
    """
    contracted = (((0,), (0,)), ((), ()))
    return jax.lax.dot_general(x_AD, by_y_AF, contracted, preferred_element_type=jnp.float32)


def gradient_of_bias(by_y_AF: Array) -> Array:
    """The sum of the cotangents of a product over its rows, float32 `[F]`."""
    return jnp.sum(by_y_AF, axis=0, dtype=jnp.float32)


def gradient_of_table(tokens_A: Array, by_rows_AD: Array, num_rows: int) -> Array:
    """The sum of the cotangents of each row of a table, float32 `[num_rows, D]`.

    Args:
      tokens_A: indices of rows.
      by_rows_AD: the cotangents of the rows that were looked up.
      num_rows: V, of the table.
    """
    zeros = jnp.zeros((num_rows, by_rows_AD.shape[1]), jnp.float32)
    return zeros.at[tokens_A].add(by_rows_AD.astype(jnp.float32))
