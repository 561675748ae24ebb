"""The `Model` that a decoder family becomes: its config, its flax module, and a table of logical
axes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, replace
from functools import cache
from typing import Annotated, Any, ClassVar, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from rlhf_jax import randomness
from rlhf_jax.config import Bounds
from rlhf_jax.models.api import Cache, LogicalAxes
from rlhf_jax.models.common import adapters, blocks, linear, stacking
from rlhf_jax.models.common.cache import remember
from rlhf_jax.models.common.layout import keep_rows
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array, Params

Depth = Annotated[int, Bounds(least=1, most=1024)]
"""Layers, each of which is traced: more would take minutes before anything is compiled."""
T = TypeVar("T")
REMAT_POLICIES = {
    "full": None,  # nothing but a layer's input is kept
    # Attention's scores and mixed values have batch dimensions: they are computed again.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""The results that the backward pass of a layer with remat finds kept, by `remat_policy`."""
SHARED_DRAW = 1 << 20  # elements; see `draw`


class DecoderConfig(Protocol):
    """A family's frozen `Config`, by what all of them have as fields or properties."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def vocab_size(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def num_layers(self) -> int: ...

    @property
    def num_heads(self) -> int: ...

    @property
    def num_kv_heads(self) -> int: ...

    @property
    def head_width(self) -> int:
        """Width of one query, key or value; 0: width / num_heads."""
        ...

    @property
    def dtype(self) -> str: ...

    @property
    def remat(self) -> bool: ...

    @property
    def attention(self) -> str: ...

    @property
    def padding_id(self) -> int: ...


class DecoderLayer(Protocol):
    """A family's layer in three steps, between which keys and values meet the cache."""

    @property
    def config(self) -> DecoderConfig: ...

    def heads(self, x_AD: Array, tables: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        """Queries `[B, H, L, K]`, keys and values `[B, J, L, K]` of the residual `[B*L, D]`."""
        ...

    def attend(
        self, queries_BHLK: Array, keys_BJMK: Array, values_BJMK: Array, hide_BLM: Array
    ) -> Array:
        """Mixed values `[B*L, H*K]`."""
        ...

    def join(self, x_AD: Array, mixed_AD: Array) -> Array:
        """The residual `[B*L, D]` after the layer."""
        ...


def small_init(width: int, scale: float = 1.0) -> nn.initializers.Initializer:
    """Deviation for `draw`: scale * sqrt(2 / (5 D)) (Nguyen and Salazar 2019, arXiv 1910.05895), as
    Pythia was begun.
    """
    return nn.initializers.constant(scale * math.sqrt(2 / (5 * width)))


def residual_init(width: int, num_layers: int) -> nn.initializers.Initializer:
    """Deviation for `draw`: 2 / (N sqrt(D)), for what is added to the residual (Black et al. 2022,
    arXiv 2204.06745).
    """
    return nn.initializers.constant(2 / (num_layers * math.sqrt(width)))


def draw(key: Array, deviations: Params, period: int = 0) -> Params:
    """Params from what the modules' initializers give: each matrix times standard normal numbers,
    vectors as they are.

    Small matrices share one long draw, since every draw adds to the time to compile (two layers:
    1.0 s, and 2.7 s with a draw a matrix). A large matrix has its own, so that it can be made where
    its shards are; those that are stacked are drawn together, each with its own key.

    Args:
      key: of the random numbers.
      deviations: with an entry per layer.
      period: of `stacking.period`; the params are stacked with it, and the numbers are the same.
    """
    leaves, tree = jax.tree.flatten(deviations)
    small = [
        index for index, leaf in enumerate(leaves) if leaf.ndim == 2 and leaf.size <= SHARED_DRAW
    ]
    large = {index for index, leaf in enumerate(leaves) if leaf.ndim == 2} - {*small}
    keys = jax.random.split(key, len(leaves) + 1)
    ends = np.cumsum([0] + [leaves[index].size for index in small])
    shared = jax.lax.optimization_barrier(
        jax.random.normal(keys[-1], (int(ends[-1]),), jnp.float32)
    )
    for slot, index in enumerate(small):
        leaves[index] = leaves[index] * shared[ends[slot] : ends[slot + 1]].reshape(
            leaves[index].shape
        )

    def times_drawn(leaf: Array, indices: np.ndarray) -> Array:
        if indices.flat[0] not in large:
            return leaf
        if not indices.ndim:
            return leaf * jax.random.normal(keys[int(indices)], leaf.shape, jnp.float32)
        drawn = jax.vmap(lambda key: jax.random.normal(key, leaf.shape[1:], jnp.float32))
        return leaf * drawn(keys[indices])

    own_indices = jax.tree.unflatten(tree, [np.asarray(index) for index in range(len(leaves))])
    return jax.tree.map(
        times_drawn,
        stacking.stack(jax.tree.unflatten(tree, leaves), period),
        stacking.stack(own_indices, period),
    )


@dataclass(frozen=True)
class Decoder:
    """`models/api.py:Model` for a family: its flax module, and a table of logical axes by the end
    of a param's path.
    """

    config: DecoderConfig
    network: ClassVar[type[nn.Module]]
    axes: ClassVar[Mapping[str, tuple[str | None, ...]]]

    @property
    def family(self) -> str:
        """Name of the file of `models/` that defines the config: families may share a class, never
        a config.

        Of a family of the user's own it is the whole name of that module, so that none is taken for
        a published one.
        """
        return type(self.config).__module__.removeprefix("rlhf_jax.models.")

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def width(self) -> int:
        return self.config.width

    @property
    def dtype(self) -> str:
        return self.config.dtype

    @property
    def remat(self) -> bool:
        return self.config.remat

    @property
    def remat_policy(self) -> str:
        """The results that the backward pass finds kept where `remat` is on: see `REMAT_POLICIES`."""
        return remat_policy(self.config)

    @property
    def scan_layers(self) -> int:
        """Layers from which on params hold them stacked; 0: never, as in a config without it."""
        return getattr(self.config, "scan_layers", 0)

    @property
    def gradient_dtype(self) -> str:
        """The dtype of the gradients of kernels and embeddings, where products are in bfloat16."""
        return getattr(self.config, "gradient_dtype", "bfloat16")

    @property
    def network_gradient_dtype(self) -> str:
        """The dtype that gradients are sent in between hosts."""
        return getattr(self.config, "network_gradient_dtype", "float32")

    @property
    def padding_id(self) -> int:
        return self.config.padding_id

    def with_config(self, **changes: object) -> Self:
        return replace(self, config=replace(self.config, **changes))

    def init(self, key: Array) -> Params:
        token = jnp.zeros((1, 1), jnp.int32)
        deviations = self.network(self.config).init(key, token, token, token == 0)["params"]
        return draw(key, deviations, stacking.period(self.config))

    def stacked(self, tree: T) -> T:
        """A tree with entries of layers, such as params or an adapter, in the form that this model's
        params have: its layers stacked or not.
        """
        return stacking.stack(stacking.unstack(tree), stacking.period(self.config))

    def apply(
        self,
        params: Params,
        tokens_BL: Array,
        positions_BL: Array,
        mask_BL: Array,
        cache: Cache | None = None,
    ) -> tuple[Array, Cache | None]:
        if cache is not None and not stacking.is_stacked_cache(cache):
            # Decoding reads a slice for each layer. A scan with the cache among its inputs and
            # outputs would hold it several times.
            params = stacking.unstack(params)
        with linear.int8_kernels(self, adapters.base_of(params)):
            return self.network(self.config).apply(
                adapters.variables(params), tokens_BL, positions_BL, mask_BL, cache
            )  # pyright: ignore[reportReturnType]

    def head(self, params: Params, hidden: Array) -> Array:
        return self.network(self.config).apply(
            {"params": adapters.base_of(params)}, hidden, method="head"
        )  # pyright: ignore[reportReturnType]

    def init_cache(self, batch_size: int, max_columns: int) -> Cache:
        config = self.config
        shape = (batch_size, config.num_kv_heads, max_columns, head_width(config))
        keys, values = (
            tuple(jnp.zeros(shape, config.dtype) for _ in range(config.num_layers)) for _ in "kv"
        )
        position_BM = jnp.full((batch_size, max_columns), -1, jnp.int32)
        column = np.zeros((), np.int32)
        return Cache(keys=keys, values=values, position_BM=position_BM, column=column)

    def logical_axes(self, params: Params) -> LogicalAxes:
        if isinstance(params, adapters.Adapted):
            base, adapter = (self.logical_axes(tree) for tree in (params.base, params.adapter))
            return adapters.Adapted(base, adapter, params.scale)
        return logical_axes(params, self.axes)

    def linear_layers(self) -> dict[tuple[str, ...], tuple[int, int]]:
        """Inputs and outputs of the linear layers that may have an adapter, by path: neither the
        embedding nor the head.
        """
        return dict(_linear_layers(self.with_config(remat=False)))


@cache
def _linear_layers(model: Decoder) -> dict[tuple[str, ...], tuple[int, int]]:
    """The layers of `blocks.Dense` that are called while a model without remat is traced."""
    layers: dict[tuple[str, ...], tuple[int, int]] = {}

    def noted(
        call: Callable[..., object],
        arguments: tuple[Any, ...],
        options: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> object:
        module = context.module
        if isinstance(module, blocks.Dense):
            layers[module.path] = arguments[0].shape[-1], module.features
        return call(*arguments, **options)

    with nn.intercept_methods(noted):
        jax.eval_shape(model.init, randomness.key(0))
    return layers


def run_layer(
    layer: DecoderLayer,
    index: int,
    x_AD: Array,
    tables: tuple[Array, Array],
    hide_BLM: Array,
    cache: Cache | None,
) -> tuple[Array, Sequence[Array]]:
    """The residual `[B*L, D]` after a layer, and its keys and values to keep `[B, J, M, K]`.

    With `config.remat` the backward pass computes the layer again from what goes into it (Chen et
    al. 2016, arXiv 1604.06174) and what `REMAT_POLICIES` keeps, with a cache or without one.
    """

    def run(layer: DecoderLayer, x_AD: Array) -> tuple[Array, Sequence[Array]]:
        queries, *new = layer.heads(x_AD, tables)
        # The cache is closed over: as an argument its column would be traced, and an empty cache no
        # longer known as such.
        seen, kv = remember(cache, index, new)
        return keep_rows(layer.join(x_AD, layer.attend(queries, seen[0], seen[1], hide_BLM))), kv

    x_AD = x_AD if index else keep_rows(x_AD)
    if not layer.config.remat:
        return run(layer, x_AD)
    return nn.remat(run, policy=REMAT_POLICIES[remat_policy(layer.config)])(layer, x_AD)


def remat_policy(config: DecoderConfig) -> str:
    """The key of `REMAT_POLICIES` of a config; "full" for one of a user's own without that field."""
    return getattr(config, "remat_policy", "full")


def logical_axes(params: Params, axes: Mapping[str, tuple[str | None, ...]]) -> LogicalAxes:
    """A tree like params of tuples of logical axis names, by the last two names of each path.

    The matrices of an adapter have the axis of their layer's inputs or outputs, but never `embed`,
    and none for the rank. So has the scale of an int8 kernel. They are small: gathering them from
    shards in every layer would cost more than it saves.

    Raises KeyError for a param that the table does not name.
    """

    def axes_of(path: tuple[str, ...]) -> tuple[str | None, ...]:
        return (None, *of_layer(path)) if stacking.is_stacked_path(path) else of_layer(path)

    def of_layer(path: tuple[str, ...]) -> tuple[str | None, ...]:
        if path[-1] not in ("a", "b", adapters.KERNEL_SCALE):
            return axes["/".join(path[-2:])]
        inputs, outputs = axes[f"{path[-2]}/kernel"]
        of_adapter = {"a": (_whole(inputs), None), "b": (None, _whole(outputs))}
        return of_adapter.get(path[-1], (_whole(outputs),))

    return unflatten_dict({path: axes_of(path) for path in flatten_dict(params)})


def _whole(axis: str | None) -> str | None:
    return None if axis == "embed" else axis


def head_width(config: DecoderConfig) -> int:
    """Width of one query, key or value; where `config.head_width` is 0, the heads share the width
    of the model.
    """
    return config.head_width or config.width // config.num_heads


def check_rotary(dims: int, what: str) -> None:
    """Raises Refusal where rotary positions cannot turn `dims` numbers in pairs; `what` names them."""
    if dims < 2 or dims % 2:
        raise Refusal(
            f"{what} is {dims}, which rotary positions turn in pairs; accepted: even numbers from "
            "2 on"
        )


def check_shape(config: DecoderConfig) -> None:
    """Raises Refusal, naming the value, where a family's numbers do not fit together."""
    if config.vocab_size < 1:
        raise Refusal(f"vocab_size is {config.vocab_size}; set it from the tokenizer, at least 1")
    if not config.head_width and config.width % config.num_heads:
        raise Refusal(f"width {config.width} is not a multiple of num_heads {config.num_heads}")
    if config.num_heads % config.num_kv_heads:
        raise Refusal(
            f"num_heads {config.num_heads} is not a multiple of num_kv_heads {config.num_kv_heads}"
        )
    dtypes = ("float32", "bfloat16")
    choices = {
        **dict.fromkeys(("dtype", "gradient_dtype", "network_gradient_dtype"), dtypes),
        "attention": blocks.ATTENTIONS,
        "remat_policy": tuple(REMAT_POLICIES),
    }
    for key, accepted in choices.items():
        if (value := getattr(config, key, accepted[0])) not in accepted:
            raise Refusal(f"{key} is {value!r}; accepted: {', '.join(accepted)}")
    if config.attention == "cudnn":
        _check_cudnn(config)


def _check_cudnn(config: DecoderConfig) -> None:
    if config.dtype != "bfloat16":
        raise Refusal(
            f"attention is 'cudnn' and dtype {config.dtype!r}; accepted with it: bfloat16"
        )
    if head_width(config) % 8 or head_width(config) > 256:
        raise Refusal(
            f"attention is 'cudnn' and a head's width {head_width(config)}; accepted with it: "
            "multiples of 8 up to 128, "
            "from Hopper on up to 256"
        )
