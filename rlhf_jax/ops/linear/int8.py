"""Kernels that are held in int8, symmetric and by the largest absolute value of each output column
(Dettmers et al. 2022, arXiv 2208.07339, eq. 3, for the columns of the kernel alone):

    s_f = max_d |w_df| / 127,   q_df = round(w_df / s_f),   |w_df - q_df s_f| <= max_d |w_df| / 254
    y_af = s_f sum_d x_ad q_df,                              by_x = (by_y s) q^T

The scale is applied to the product, which is exact algebra. Integers up to 127 are exact in bfloat16
too, so that rounding them costs nothing. Kernel and scale are frozen: they have no gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax.types import Array

LARGEST = 127
Product = Callable[[Array, Array], Array]
"""(rows in the compute dtype, an int8 kernel) -> their product in the compute dtype."""


def quantize(kernel: Array) -> tuple[Array, Array]:
    """A kernel in int8, and the float32 scale of each of its output columns.

    Args:
      kernel: float `[..., D, F]`; leading dimensions are of stacked layers.

    Returns int8 `[..., D, F]` and float32 `[..., F]`. A column of zeros has the scale 0.
    """
    wide = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-2) / LARGEST
    divisor = jnp.where(scale > 0, scale, jnp.float32(1.0))
    return jnp.round(wide / divisor[..., None, :]).astype(jnp.int8), scale


def dequantize(kernel: Array, scale: Array) -> Array:
    """The float32 kernel `[..., D, F]` that products with an int8 kernel have.

    Args:
      kernel: int8 `[..., D, F]`.
      scale: float32 `[..., F]`.
    """
    return kernel.astype(jnp.float32) * scale[..., None, :]


def product(
    x_AD: Array,
    kernel_DF: Array,
    scale_F: Array,
    dtype: str,
    gathered: Callable[[Array], Array] = lambda kernel_DF: kernel_DF,
) -> Array:
    """`(x kernel) scale` in `dtype`, `[A, F]`, with a gradient of `x` alone.

    Args:
      x_AD: is rounded to `dtype`.
      kernel_DF: int8.
      scale_F: float32.
      dtype: of the product. The scale is applied in float32, and the result rounded once more.
      gathered: brings shards of the kernel together as int8, in the forward pass and in the backward
        pass.
    """

    def forward(x_AD: Array, kernel_DF: Array) -> tuple[Array, Array]:
        def times(x_AD: Array, kernel_DF: Array) -> Array:
            return jnp.dot(x_AD, gathered(kernel_DF).astype(dtype))

        return _by_itself(times, x_AD, kernel_DF), kernel_DF

    def backward(kernel_DF: Array, by_y_AF: Array) -> tuple[Array, None]:
        def times(by_y_AF: Array, kernel_DF: Array) -> Array:
            whole_DF = gathered(kernel_DF).astype(dtype)
            return jax.lax.dot_general(by_y_AF, whole_DF, (((1,), (1,)), ((), ())))

        return _by_itself(times, by_y_AF, kernel_DF), None

    run = jax.custom_vjp(lambda *arguments: forward(*arguments)[0])
    run.defvjp(forward, backward)
    y_AF = run(x_AD.astype(dtype), kernel_DF).astype(jnp.float32) * scale_F[None]
    return y_AF.astype(dtype)


def _by_itself(times: Product, rows: Array, kernel: Array) -> Array:
    """A product whose kernel is cast, and gathered, when its rows are there and not before.

    XLA would cast all kernels ahead: in a loop that decodes before the loop, and elsewhere before
    the first product, so that a device held a dequantized copy of the whole base. With a barrier it
    does not on a TPU. On a CPU, whose compiler drops barriers before it schedules, each product is
    the branch of a conditional that is always taken.
    """

    def after_rows(rows: Array, kernel: Array) -> Array:
        return times(*jax.lax.optimization_barrier((rows, kernel)))

    def in_branch(rows: Array, kernel: Array) -> Array:
        result = jax.eval_shape(times, rows, kernel)
        # A constant behind a barrier, which no pass before scheduling knows to be true.
        taken = jax.lax.optimization_barrier(jnp.bool_(True))
        never = lambda rows, kernel: jnp.zeros(result.shape, result.dtype)  # noqa: E731
        return jax.lax.cond(taken, times, never, rows, kernel)

    return jax.lax.platform_dependent(rows, kernel, cpu=in_branch, default=after_rows)
