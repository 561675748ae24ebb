"""Parts that the decoder families share: norms, rotary positions, and attention.

Everything between two dense layers is `[B*L, D]`: on a CPU a product of three-dimensional operands
costs twice as much in its backward pass, and keeps the element-wise work around it from being split
over cores. Norm statistics, rotary tables and softmax are float32 whatever the compute dtype is.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rlhf_jax.models.common import adapters, linear
from rlhf_jax.models.common import layout as layouts
from rlhf_jax.ops.linear.float32_gradients import wide_product
from rlhf_jax.types import Array

ATTENTIONS = ("xla", "dot_product", "cudnn")
HIDDEN_SCORE = (
    -1e30
)  # finite, so that a query that sees no key at all (left padding) has finite values and gradients


def rotary_frequencies(rotary_dims: int, theta: float) -> np.ndarray:
    """Radians a position, float64 `[rotary_dims / 2]`: theta^(-2i / rotary_dims) (Su et al. 2021,
    arXiv 2104.09864).
    """
    return theta ** (-np.arange(0, rotary_dims, 2) / rotary_dims)


def rotary_tables(
    positions_BL: Array, frequencies: Sequence[float] | np.ndarray, scale: float = 1.0
) -> tuple[Array, Array]:
    """Cosines and sines of position times frequency, each times `scale`.

    Args:
      positions_BL: int32 positions.
      frequencies: radians per position.
      scale: factor of both tables.

    Returns two float32 arrays `[B, L, len(frequencies)]`.
    """
    angles = (
        positions_BL.astype(jnp.float32)[..., None]
        * jnp.asarray(frequencies, jnp.float32)[None, None]
    )
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    if scale != 1.0:
        cosine, sine = scale * cosine, scale * sine
    # A barrier, or XLA computes them anew inside every loop that reads them: for each layer, head,
    # query and key.
    return jax.lax.optimization_barrier((cosine, sine))


def rotate(heads_BHLK: Array, tables: tuple[Array, Array]) -> Array:
    """Rotates the first dimensions of each head by its position; the others are unchanged.

    Dimension i is paired with i + half of the rotated ones, as in the published weights. (The
    paper pairs it with its neighbour.)

    Args:
      heads_BHLK: queries or keys.
      tables: as `rotary_tables` returns them; twice their last dimension is rotated.
    """
    cosine, sine = (table[:, None] for table in tables)
    half = cosine.shape[-1]
    first, second, rest = jnp.split(heads_BHLK, [half, 2 * half], axis=-1)
    turned = jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )
    return jnp.concatenate([turned.astype(rest.dtype), rest], axis=-1)


def attend(
    queries_BHLK: Array,
    keys_BJMK: Array,
    values_BJMK: Array,
    hide_BLM: Array,
    scale: float | None = None,
    cap: float = 0.0,
    how: str = "xla",
) -> Array:
    """Softmax attention, `[B*L, H*K]`.

    If queries and columns are the same positions (L = M), blocks of queries leave out the columns
    after them. On a CPU (heads of neox-tiny, forward and backward) two blocks take 0.52 of one
    block's time at L = 384 and 0.79 at 192; at 128 the gain is lost again in what each block adds
    to compile and join.

    Args:
      queries_BHLK: `[B, H, L, K]`. H / J consecutive heads share a key-value head, which is never
        repeated.
      keys_BJMK, values_BJMK: `[B, J, M, K]`.
      hide_BLM: addends of the scores; see `hide_columns`.
      scale: factor of the products of queries and keys; None is 1 / sqrt(K).
      cap: of `soft_cap` on the scaled scores; 0 is none.
      how: "xla" is written here; "dot_product" is `jax.nn.dot_product_attention`; "cudnn" its
        kernel of that name, which never holds the scores (it was not run: no such device was at
        hand). The last two need a cap of 0; with "cudnn" a single query is computed as with "xla".
    """
    B, H, L, K = queries_BHLK.shape
    M = keys_BJMK.shape[2]
    if how == "dot_product" or (how == "cudnn" and L > 1):
        return _dot_product(
            queries_BHLK,
            keys_BJMK,
            values_BJMK,
            hide_BLM,
            scale,
            "cudnn" if how == "cudnn" else None,
        )
    queries = queries_BHLK * (1 / math.sqrt(K) if scale is None else scale)
    num_blocks = 1 if L != M or L < 192 else 2 if L < 512 else 4
    blocks = []
    for start, end in itertools.pairwise(
        L * block // num_blocks for block in range(num_blocks + 1)
    ):
        seen = M if num_blocks == 1 else end
        hide = hide_BLM[:, start:end, :seen]
        blocks.append(
            _mix(
                queries[:, :, start:end],
                keys_BJMK[:, :, :seen],
                values_BJMK[:, :, :seen],
                hide,
                cap,
            )
        )
    mixed_BHLK = jnp.concatenate(blocks, axis=2) if num_blocks > 1 else blocks[0]
    return mixed_BHLK.transpose(0, 2, 1, 3).reshape(B * L, H * K)


def _mix(
    queries_BHLK: Array, keys_BJMK: Array, values_BJMK: Array, hide_BLM: Array, cap: float
) -> Array:
    """Values mixed by softmax(queries keys^T + hide), `[B, H, L, K]`.

    One query a key-value head is two equal ones on a TPU. XLA writes a product with one query as
    sums, not as a matrix product, and gives them a layout of the cache that is its own. A segment of
    slots would then copy all keys and values into it and back: for 16 heads of width 64, which
    that layout pads to 128, temporaries of twice the cache (libtpu 0.0.42).
    """
    B, H, L, K = queries_BHLK.shape
    J = keys_BJMK.shape[1]
    queries_BJqK = queries_BHLK.reshape(B, J, H // J * L, K)
    hide_BqM = jnp.tile(hide_BLM, (1, H // J, 1))
    weigh = functools.partial(_weigh, cap=cap)

    def twice(queries: Array, keys: Array, values: Array, hide: Array) -> Array:
        return weigh(jnp.tile(queries, (1, 1, 2, 1)), keys, values, jnp.tile(hide, (1, 2, 1)))[
            :, :, :1
        ]

    arguments = (queries_BJqK, keys_BJMK, values_BJMK, hide_BqM)
    if queries_BJqK.shape[2] > 1:
        mixed_BJqK = weigh(*arguments)
    else:
        mixed_BJqK = jax.lax.platform_dependent(*arguments, tpu=twice, default=weigh)
    return mixed_BJqK.reshape(B, H, L, K)


def _weigh(
    queries_BJqK: Array, keys_BJMK: Array, values_BJMK: Array, hide_BqM: Array, cap: float
) -> Array:
    """The same for q queries of each key-value head, `[B, J, q, K]`.

    The mask is added, and the sum of the exponentials divided out after the mixing: XLA on a CPU
    then runs product, mask, maximum and exponential as one loop. With a `where`, or divided before:
    1.25 times as long.
    """
    scores = jnp.einsum(
        "bjqk,bjmk->bjqm", queries_BJqK, keys_BJMK, preferred_element_type=jnp.float32
    )
    scores = soft_cap(scores, cap) + hide_BqM[:, None]
    raised = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    mixed = jnp.einsum("bjqm,bjmk->bjqk", raised.astype(values_BJMK.dtype), values_BJMK)
    return (mixed / jnp.sum(raised, axis=-1, keepdims=True)).astype(values_BJMK.dtype)


def _dot_product(
    queries_BHLK: Array,
    keys_BJMK: Array,
    values_BJMK: Array,
    hide_BLM: Array,
    scale: float | None,
    implementation: Literal["cudnn"] | None,
) -> Array:
    """Softmax attention `[B*L, H*K]` by JAX's function, which takes columns before heads, and a
    mask of what is seen.
    """
    B, H, L, K = queries_BHLK.shape
    seen_BLM = hide_BLM == 0
    # A query that sees nothing (left padding) sees all: finite whatever an implementation does with
    # an empty softmax.
    seen_BLM |= ~seen_BLM.any(axis=-1, keepdims=True)
    queries, keys, values = (
        x.transpose(0, 2, 1, 3) for x in (queries_BHLK, keys_BJMK, values_BJMK)
    )
    if implementation == "cudnn":  # its gradient takes a mask of even lengths alone
        more_L, more_M = L % 2, keys.shape[1] % 2
        queries = jnp.pad(queries, ((0, 0), (0, more_L), (0, 0), (0, 0)))
        keys, values = (jnp.pad(x, ((0, 0), (0, more_M), (0, 0), (0, 0))) for x in (keys, values))
        seen_BLM = jnp.pad(
            jnp.pad(seen_BLM, ((0, 0), (0, 0), (0, more_M))),
            ((0, 0), (0, more_L), (0, 0)),
            mode="edge",
        )
    mixed_BLHK = jax.nn.dot_product_attention(
        queries, keys, values, mask=seen_BLM[:, None], scale=scale, implementation=implementation
    )
    return mixed_BLHK[:, :L].reshape(B * L, H * K)


def soft_cap(x: Array, cap: float) -> Array:
    """cap * tanh(x / cap), between -cap and cap (Bello et al. 2017, arXiv 1611.09940).

    Args:
      x: any shape.
      cap: largest absolute value; 0 returns `x` itself.
    """
    return cap * jnp.tanh(x / cap) if cap else x


def hide_columns(position_BM: Array, position_BL: Array, window: int = 0) -> Array:
    """Addends of a query's scores: 0 on columns that it sees, HIDDEN_SCORE on the others.

    A query at position p sees the columns with 0 <= position <= p. With a window it sees only those
    with position > p - window. The order of columns does not matter, nor do gaps between them.

    Args:
      position_BM: int32, position of the token in each column; -1 where the row has none.
      position_BL: int32, positions of the queries; one of -1 sees nothing. Its first dimension is B
        or 1.
      window: positions; 0 is no window.

    Returns float32 `[B, L, M]`.
    """
    key_B1M, query_BL1 = position_BM[:, None], position_BL[..., None]
    seen_BLM = (key_B1M >= 0) & (key_B1M <= query_BL1)
    if window:
        seen_BLM &= key_B1M > query_BL1 - window
    return jnp.where(seen_BLM, jnp.float32(0.0), jnp.float32(HIDDEN_SCORE))


def gelu(x: Array) -> Array:
    """x Φ(x), exactly (Hendrycks and Gimpel 2016, arXiv 1606.08415); by erf, which costs 0.4 of
    `jax.nn.gelu`'s erfc.
    """
    y = x.astype(jnp.float32)
    return (y * (0.5 + 0.5 * jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


class Dense(nn.Dense):
    """`nn.Dense` of rows `[A, D]`, and the product of its low-rank adapter where the variables hold
    one. The adapter is float32 and is rounded to the compute dtype here, as the kernel is.

    With `gradient_dtype` float32 the gradients of kernel, bias and adapter are float32 though
    products are in bfloat16. A kernel with a scale beside it is int8 and has no gradient.
    """

    gradient_dtype: str = "bfloat16"

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        wide = linear.widens_gradients(self.dtype, self.gradient_dtype)
        if self.has_variable("params", adapters.KERNEL_SCALE):
            outputs = self._int8_product(inputs)
        else:
            outputs = self._wide_product(inputs) if wide else super().__call__(inputs)
        if not self.has_variable(adapters.COLLECTION, adapters.VARIABLE):
            return outputs
        pair = self.get_variable(adapters.COLLECTION, adapters.VARIABLE)
        inputs = inputs.astype(outputs.dtype)
        if not wide:
            return outputs + pair.product(inputs)
        path = (adapters.COLLECTION, *self.path)

        def multiply(x_AD: Array, name: str, matrix: Array) -> Array:
            return linear.product(x_AD, {name: matrix}, outputs.dtype.name, path)

        return outputs + pair.product(inputs, multiply)

    def _int8_product(self, x_AD: Array) -> Array:
        kernel_DF, scale_F = (
            self.get_variable("params", name) for name in ("kernel", adapters.KERNEL_SCALE)
        )
        y_AF = linear.int8_product(x_AD, kernel_DF, scale_F, str(self.dtype), str(self.name))
        if not self.use_bias:
            return y_AF
        bias_F = self.param("bias", self.bias_init, (self.features,))
        return y_AF + bias_F.astype(y_AF.dtype)[None]

    def _wide_product(self, x_AD: Array) -> Array:
        params = {"kernel": self.param("kernel", self.kernel_init, (x_AD.shape[-1], self.features))}
        if self.use_bias:
            params["bias"] = self.param("bias", self.bias_init, (self.features,))
        return linear.product(x_AD, params, str(self.dtype), ("params", *self.path))


class Embed(nn.Embed):
    """`nn.Embed` of tokens `[A]`; with `gradient_dtype` float32 the gradient of the table is float32
    though its rows are bfloat16.
    """

    gradient_dtype: str = "bfloat16"

    def __call__(self, inputs: Array) -> Array:
        if not linear.widens_gradients(self.dtype, self.gradient_dtype):
            if (layout := layouts.current()) is None or not layout.of_a_copy:
                return super().__call__(inputs)
            # XLA's partitioner aborts where the rows of a table are sharded in both dimensions and
            # the function around is mapped over a third axis by hand (XLA of jaxlib 0.10).
            table_VD = layout.whole_rows(self.embedding.astype(self.dtype))
            return jnp.take(table_VD, inputs, axis=0)
        return linear.lookup(inputs, self.embedding, str(self.dtype), ("params", *self.path))


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last dimension (Ba et al. 2016,
    arXiv 1607.06450).
    """

    eps: float

    @nn.compact
    def __call__(self, x_AD: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x_AD.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x_AD.shape[-1],))
        x = x_AD.astype(jnp.float32)
        centered = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
        return (centered * jax.lax.rsqrt(variance + self.eps) * scale[None] + bias[None]).astype(
            x_AD.dtype
        )


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last dimension (Zhang and Sennrich 2019, arXiv
    1910.07467).
    """

    eps: float

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (inputs.shape[-1],))
        x = inputs.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        scale = jnp.expand_dims(scale, range(x.ndim - 1))
        return (x * jax.lax.rsqrt(mean_square + self.eps) * scale).astype(inputs.dtype)


def logits(hidden: Array, kernel_DV: Array, gradient_dtype: str = "bfloat16") -> Array:
    """Logits `[..., V]`, float32: products in the dtype of `hidden`, summed in float32.

    Args:
      hidden: `[..., D]`.
      kernel_DV: is cast to the dtype of `hidden`.
      gradient_dtype: with "float32" the gradient of the kernel is not rounded to the dtype of
        `hidden`.
    """
    flat_AD = hidden.reshape(-1, hidden.shape[-1])
    if linear.widens_gradients(hidden.dtype.name, gradient_dtype):
        flat_AV = wide_product(flat_AD, kernel_DV)
    else:
        rounded_DV = kernel_DV.astype(hidden.dtype)
        flat_AV = jnp.dot(flat_AD, rounded_DV, preferred_element_type=jnp.float32)
    return flat_AV.reshape(*hidden.shape[:-1], kernel_DV.shape[-1])


class Head(nn.Module):
    """A linear map to float32 logits without bias."""

    vocab_size: int
    kernel_init: nn.initializers.Initializer
    gradient_dtype: str = "bfloat16"

    @nn.compact
    def __call__(self, hidden: Array) -> Array:
        shape = (hidden.shape[-1], self.vocab_size)
        return logits(hidden, self.param("kernel", self.kernel_init, shape), self.gradient_dtype)
