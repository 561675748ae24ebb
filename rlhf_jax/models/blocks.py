"""What the decoder families share: norms, rotary positions, attention with an explicit cache, and the `Model` on them.

Everything between two dense layers is `[B*L, D]`: on a CPU a product of three-dimensional operands costs twice as much
in its backward pass, and keeps the element-wise work around it from being split over cores. Norm statistics, rotary
tables and softmax are float32 whatever the compute dtype is.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from rlhf_jax.models.api import Cache
from rlhf_jax.types import Array, Params

HIDDEN_SCORE = -1e30  # finite, so that a query that sees no key at all (left padding) has finite values and gradients


def small_init(width: int) -> nn.initializers.Initializer:
    """Normal of variance 2 / (5 D) (Nguyen and Salazar 2019, arXiv 1910.05895), as GPT-NeoX and Pythia were begun."""
    return nn.initializers.normal(math.sqrt(2 / (5 * width)))


def residual_init(width: int, num_layers: int) -> nn.initializers.Initializer:
    """Normal of deviation 2 / (N sqrt(D)) for what is added to the residual (Black et al. 2022, arXiv 2204.06745)."""
    return nn.initializers.normal(2 / (num_layers * math.sqrt(width)))


def rotary_frequencies(rotary_dims: int, theta: float) -> np.ndarray:
    """Radians a position, float64 `[rotary_dims / 2]`: theta^(-2i / rotary_dims) (Su et al. 2021, arXiv 2104.09864)."""
    return theta ** (-np.arange(0, rotary_dims, 2) / rotary_dims)


def rotary_tables(positions_BL: Array, frequencies: np.ndarray) -> tuple[Array, Array]:
    """Cosines and sines, float32 `[B, L, len(frequencies)]`, of position times frequency."""
    angles = positions_BL.astype(jnp.float32)[..., None] * jnp.asarray(frequencies, jnp.float32)[None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(heads_BHLK: Array, tables: tuple[Array, Array]) -> Array:
    """Turns the first dimensions of each head by its position; the tables say how many, the rest stays.

    Dimension i is paired with i + half of the rotated ones, as in the published weights of both families (not with its
    neighbour, as in the paper).
    """
    cosine, sine = (table[:, None].astype(heads_BHLK.dtype) for table in tables)
    half = cosine.shape[-1]
    first, second, rest = jnp.split(heads_BHLK, [half, 2 * half], axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine, rest], axis=-1)


def attend(queries_BHLK: Array, keys_BJMK: Array, values_BJMK: Array, visible_BLM: Array) -> Array:
    """Softmax attention, `[B*L, H*K]`; query heads j*H/J ... share key-value head j, which is never repeated."""
    B, H, L, K = queries_BHLK.shape
    J, M = keys_BJMK.shape[1:3]
    queries = (queries_BHLK * (1 / math.sqrt(K))).reshape(B, J, H // J * L, K)
    scores = jnp.einsum("bjqk,bjmk->bjqm", queries, keys_BJMK, preferred_element_type=jnp.float32)
    scores = jnp.where(visible_BLM[:, None], scores.reshape(B, H, L, M), HIDDEN_SCORE)
    weights = jax.nn.softmax(scores, axis=-1).astype(values_BJMK.dtype).reshape(B, J, H // J * L, M)
    mixed = jnp.einsum("bjqm,bjmk->bjqk", weights, values_BJMK)
    return mixed.reshape(B, H, L, K).transpose(0, 2, 1, 3).reshape(B * L, H * K)


def visible_columns(mask_BM: Array, num_queries: int, first_column: Array | int) -> Array:
    """Whether a query sees a column, bool `[B, L, M]`: the column holds a token and is not after the query's own."""
    column_L = first_column + jnp.arange(num_queries)
    causal_LM = jnp.arange(mask_BM.shape[1])[None] <= column_L[:, None]
    return mask_BM[:, None] & causal_LM[None]


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last dimension (Ba et al. 2016, arXiv 1607.06450)."""

    eps: float

    @nn.compact
    def __call__(self, x_AD: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x_AD.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x_AD.shape[-1],))
        x = x_AD.astype(jnp.float32)
        centered = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
        return (centered * jax.lax.rsqrt(variance + self.eps) * scale[None] + bias[None]).astype(x_AD.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    eps: float

    @nn.compact
    def __call__(self, x_AD: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x_AD.shape[-1],))
        x = x_AD.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return (x * jax.lax.rsqrt(mean_square + self.eps) * scale[None]).astype(x_AD.dtype)


def logits(hidden: Array, kernel_DV: Array) -> Array:
    """`[..., D] -> [..., V]` float32: products in the dtype of `hidden`, summed in float32."""
    flat_AD = hidden.reshape(-1, hidden.shape[-1])
    flat_AV = jnp.dot(flat_AD, kernel_DV.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return flat_AV.reshape(*hidden.shape[:-1], kernel_DV.shape[-1])


class Head(nn.Module):
    """A linear map to float32 logits without bias."""

    vocab_size: int
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, hidden: Array) -> Array:
        return logits(hidden, self.param("kernel", self.kernel_init, (hidden.shape[-1], self.vocab_size)))


@dataclass(frozen=True)
class Decoder:
    """`models/api.py:Model` for a family: its flax module, and a table of logical axes by the end of a param's path."""

    config: Any
    network: ClassVar[type[nn.Module]]
    axes: ClassVar[Mapping[str, tuple[str | None, ...]]]

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def width(self) -> int:
        return self.config.width

    def init(self, key: Array) -> Params:
        token = jnp.zeros((1, 1), jnp.int32)
        return self.network(self.config).init(key, token, token, token == 0)["params"]

    def apply(
        self, params: Params, tokens_BL: Array, positions_BL: Array, mask_BL: Array, cache: Cache | None = None
    ) -> tuple[Array, Cache | None]:
        return self.network(self.config).apply({"params": params}, tokens_BL, positions_BL, mask_BL, cache)  # pyright: ignore[reportReturnType]

    def head(self, params: Params, hidden: Array) -> Array:
        return self.network(self.config).apply({"params": params}, hidden, method="head")  # pyright: ignore[reportReturnType]

    def init_cache(self, batch_size: int, max_columns: int) -> Cache:
        config = self.config
        shape = (batch_size, config.num_kv_heads, max_columns, config.width // config.num_heads)
        keys, values = (tuple(jnp.zeros(shape, config.dtype) for _ in range(config.num_layers)) for _ in "kv")
        mask_BM = jnp.zeros((batch_size, max_columns), bool)
        return Cache(keys=keys, values=values, mask_BM=mask_BM, column=jnp.zeros((), jnp.int32))

    def logical_axes(self, params: Params) -> Any:
        return logical_axes(params, self.axes)


def logical_axes(params: Params, axes: Mapping[str, tuple[str | None, ...]]) -> Any:
    """A tree like params of tuples of logical axis names, by the last two names of each path.

    Raises KeyError for a param that the table does not name.
    """
    return unflatten_dict({path: axes["/".join(path[-2:])] for path in flatten_dict(params)})


def check_shape(config: Any) -> None:
    """Raises ValueError, naming the value, where a family's numbers do not fit together."""
    if config.vocab_size < 1:
        raise ValueError(f"vocab_size is {config.vocab_size}; set it from the tokenizer, at least 1")
    if config.width % config.num_heads:
        raise ValueError(f"width {config.width} is not a multiple of num_heads {config.num_heads}")
    if config.num_heads % config.num_kv_heads:
        raise ValueError(f"num_heads {config.num_heads} is not a multiple of num_kv_heads {config.num_kv_heads}")
    if config.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is {config.dtype!r}; accepted: float32, bfloat16")


def write_cache(cache: Cache, layer: int, keys_BJLK: Array, values_BJLK: Array) -> tuple[Array, Array]:
    """A layer's keys and values `[B, J, M, K]` with L new columns written at `cache.column`."""
    start = (0, 0, cache.column, 0)
    keys = jax.lax.dynamic_update_slice(cache.keys[layer], keys_BJLK.astype(cache.keys[layer].dtype), start)
    values = jax.lax.dynamic_update_slice(cache.values[layer], values_BJLK.astype(cache.values[layer].dtype), start)
    return keys, values


def see(mask_BL: Array, cache: Cache | None) -> tuple[Array, Array]:
    """The mask of every column `[B, M]` once L tokens are written, and what each query sees of them `[B, L, M]`."""
    if cache is None:
        return mask_BL, visible_columns(mask_BL, mask_BL.shape[1], 0)
    mask_BM = jax.lax.dynamic_update_slice(cache.mask_BM, mask_BL, (0, cache.column))
    return mask_BM, visible_columns(mask_BM, mask_BL.shape[1], cache.column)


def next_cache(cache: Cache | None, filled: list[tuple[Array, Array]], mask_BM: Array, num_tokens: int) -> Cache | None:
    """The cache moved on by `num_tokens`, holding each layer's keys and values; None where there was none."""
    if cache is None:
        return None
    keys, values = zip(*filled, strict=True)
    return Cache(keys=keys, values=values, mask_BM=mask_BM, column=cache.column + num_tokens)
