"""Low-rank adapters of linear layers whose own params stay as they are (LoRA: Hu et al. 2021, arXiv
2106.09685, eq. 3).

    y = x W + bias + scale (x A) B,    A [in, r],  B [r, out],  scale = alpha / r

A role's params are then `Adapted(base, adapter)`. Any number of roles share the arrays of one base,
and only the adapter is trained, published and saved. B begins as 0, so that a fresh adapter changes
nothing. The scale is a constant of the compiled program: it is never multiplied into A or B.

Rows of one batch may have adapters of n versions. With A = [A_1 | ... | A_n] and B_1 ... B_n one
above the other, the columns of x A that are not of a row's version are 0 for it:

    y = x W + bias + scale ((x A) * is_own) B,    A [in, n r],  B [n r, out]
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.core import Tracer

from rlhf_jax import randomness
from rlhf_jax.config import Natural, NonNegative, Positive
from rlhf_jax.models.api import Model
from rlhf_jax.models.common.stacking import (
    flat,
    is_stacked_path,
    members,
    positions,
    stack,
    unstack,
)
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.ops.linear import int8
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array, Params

COLLECTION, VARIABLE = "adapter", "low_rank"
"""The flax collection of adapters, and the name that a linear layer's has in it."""
KERNEL_SCALE = "kernel_scale"
"""The float32 param `[F]` beside a kernel that is int8: see `ops/linear/int8.py`."""
ALL = "all"


@dataclass(frozen=True)
class Config:
    """Adapters of a run's models.

    Rank, scale and targets are those of "LoRA Without Regret" (Schulman et al. 2025): all linear
    layers, alpha 32, and ten times the learning rate of full fine-tuning, whatever the rank.
    """

    rank: Natural = 0  # r; 0: no adapters, all params are trained
    alpha: Positive = 32.0  # the adapter's product is multiplied by alpha / rank
    # linear layers that have an adapter: "all", or names with commas between them, such as
    # q_proj,v_proj
    targets: str = ALL
    # with adapters, the learning rates of all stages are those of the config times this
    learning_rate_factor: NonNegative = 10.0
    # in which the kernels of the base's linear layers are held: "" is model.dtype; "int8" has a
    # float32 scale for each output column
    base_dtype: Literal["", "int8"] = ""

    def __post_init__(self) -> None:
        if self.base_dtype and not self.rank:
            raise Refusal(
                f"lora.base_dtype is {self.base_dtype!r} and lora.rank is 0, which trains all "
                "params; accepted with it: lora.rank of 1 or more"
            )

    @property
    def scale(self) -> float:
        """The factor of the adapter's product."""
        return self.alpha / self.rank

    def on_published(self) -> "Config":
        """The same adapters on a published reward model, which is used as it is."""
        return dataclasses.replace(self, base_dtype="")


Multiply = Callable[[Array, str, Array], Array]
"""(x, "a" or "b", the float32 matrix of that name) -> their product in the dtype of x."""


@struct.dataclass
class LowRank:
    """The adapter of one linear layer, as the layer reads it, or those of n versions."""

    a: Array  # [in, r], or [in, n r]
    b: Array  # [r, out], or [n r, out]
    scale: float = struct.field(pytree_node=False)
    version_B: Array | None = None  # int32, 0 ... n - 1, the version of each row; None: n is 1
    num_versions: int = struct.field(pytree_node=False, default=1)  # n

    def product(self, inputs: Array, multiply: Multiply | None = None) -> Array:
        """Computes scale (x A) B, in the dtype of the inputs.

        Args:
          inputs: `[B*L, in]` or `[B, L, in]`, all positions of a row together.
          multiply: by A, and by B; None: both are rounded to the dtype of the inputs.
        """
        a, b = self.a, self.b
        if multiply is None:
            a, b = (matrix.astype(inputs.dtype) for matrix in (a, b))
        by = multiply or (lambda x, _, matrix: jnp.dot(x, matrix))
        low = by(inputs, "a", a)
        if self.version_B is not None:
            low_BLR = low.reshape(self.version_B.shape[0], -1, a.shape[1])
            version_R = jnp.arange(a.shape[1]) // (a.shape[1] // self.num_versions)
            is_own_B1R = self.version_B[:, None, None] == version_R[None, None]
            low = jnp.where(is_own_B1R, low_BLR, 0).reshape(low.shape)
        return self.scale * by(low, "b", b)


@struct.dataclass
class Adapted(Mapping[str, Any]):
    """A decoder's params with an adapter: `base` as the model's `init` returns them, and for every
    adapted layer `{"a": [in, r], "b": [r, out]}` at the layer's place in the tree. Of stacked layers
    all of these have a leading dimension.
    """

    base: Params
    adapter: Params
    scale: float = struct.field(pytree_node=False)
    # Of `of_rows`, on adapters of several versions side by side.
    version_B: Array | None = None
    num_versions: int = struct.field(pytree_node=False, default=1)

    def __getitem__(self, key: str) -> Params:
        return {"base": self.base, "adapter": self.adapter}[key]

    def __iter__(self) -> Iterator[str]:
        return iter(("base", "adapter"))

    def __len__(self) -> int:
        return 2


@struct.dataclass
class Versions:
    """Adapters of several versions on one base, of which each row of a batch has its own."""

    base: Params
    adapters: tuple[Params, ...]  # all of the same shapes
    scale: float = struct.field(pytree_node=False)

    def joined(self) -> Adapted:
        """The adapters side by side along their rank. `of_rows` tells which one a row has."""
        by_path = [flat(adapter) for adapter in self.adapters]

        def beside(path: tuple[str, ...]) -> Array:
            axis = -1 if path[-1] == "a" else -2
            return jnp.concatenate([arrays[path] for arrays in by_path], axis)

        return Adapted(
            self.base, unflatten_dict({path: beside(path) for path in by_path[0]}), self.scale
        )


def of_rows(params: Params, version_B: Array | None, num_versions: int) -> Params:
    """Params whose rows have a version each.

    Args:
      params: of `Versions.joined`; where `version_B` is None any, which are returned.
      version_B: int32, the place of each row's version among the adapters.
      num_versions: of the adapters.
    """
    if version_B is None:
        return params
    assert isinstance(params, Adapted)
    return dataclasses.replace(params, version_B=version_B, num_versions=num_versions)


@struct.dataclass
class Base:
    """The part of params that is not trained: the base, and the scale of adapters on it."""

    params: Params
    scale: float = struct.field(pytree_node=False)


Rest = Base | Mapping[str, Base] | None
"""What `split` leaves of params: nothing of plain ones; of a value model, by the name of its part."""


def split(params: Params) -> tuple[Params, Rest]:
    """The trained part of a role's params, and the rest, which `join` puts together again.

    Args:
      params: of a decoder or a value model, with an adapter or without one.

    Returns the adapter (of a value model, with the value head) and its base; plain params and None.
    """
    if isinstance(params, Adapted):
        return params.adapter, Base(params.base, params.scale)
    backbone = params.get("backbone")
    if isinstance(backbone, Adapted):
        adapter, base = split(backbone)
        assert isinstance(base, Base)
        return {**params, "backbone": adapter}, {"backbone": base}
    return params, None


def join(trained: Params, rest: Rest) -> Params:
    """Params of a trained part and the rest, the inverse of `split`; the arrays are the same."""
    if rest is None:
        return trained
    if isinstance(rest, Base):
        return Adapted(rest.params, trained, rest.scale)
    return {**trained, **{name: join(trained[name], base) for name, base in rest.items()}}


def variables(params: Params) -> dict[str, Params]:
    """The flax variables of a decoder's params."""
    if not isinstance(params, Adapted):
        return {"params": params}

    def of_layer(pair: Params) -> LowRank:
        version_B = params.version_B
        if version_B is not None and pair["a"].ndim == 3:  # a scan reads a slice for each layer
            version_B = jnp.broadcast_to(version_B[None], (len(pair["a"]), len(version_B)))
        return LowRank(pair["a"], pair["b"], params.scale, version_B, params.num_versions)

    pairs = {path: {VARIABLE: of_layer(pair)} for path, pair in _pairs(_beside(params)).items()}
    return {"params": params.base, COLLECTION: unflatten_dict(pairs)}


def base_of(params: Params) -> Params:
    """A decoder's own params, without an adapter."""
    return params.base if isinstance(params, Adapted) else params


def init(model: Model, config: Config, key: Array) -> Params:
    """A fresh adapter: A uniform in ±1 / sqrt(in), as PEFT begins it, and B 0; float32.

    Args:
      model: of the base.
      config: of its adapters.
      key: of the random numbers of A.

    Raises as `targets`.
    """
    layers = targets(model, config)
    keys = jax.random.split(key, len(layers))
    adapter = unflatten_dict(
        {
            path: {
                "a": jax.random.uniform(
                    keys[index],
                    (num_in, config.rank),
                    jnp.float32,
                    -1 / math.sqrt(num_in),
                    1 / math.sqrt(num_in),
                ),
                "b": jnp.zeros((config.rank, num_out), jnp.float32),
            }
            for index, (path, (num_in, num_out)) in enumerate(layers.items())
        }
    )
    return in_form_of(model, adapter)


def in_form_of(model: Model, adapter: Params) -> Params:
    """An adapter with its layers stacked or not, as the model's params have them.

    Args:
      model: of the base. A family of the user's own may stack nothing.
      adapter: with an entry per layer; arrays on the host stay there.
    """
    return getattr(model, "stacked", lambda tree: tree)(adapter)


def targets(model: Model, config: Config) -> dict[tuple[str, ...], tuple[int, int]]:
    """The layers that have an adapter: inputs and outputs by path.

    Args:
      model: of the base.
      config: names the targets.

    Raises Refusal for a target that is no linear layer of the model, naming those there are, and
    for a family without linear layers of `models.common.blocks`.
    """
    layers: dict[tuple[str, ...], tuple[int, int]] = getattr(model, "linear_layers", dict)()
    if not layers:
        raise Refusal(
            f"lora.rank is {config.rank}, but the model family {model.family} has no linear layer "
            "of rlhf_jax.models.common.blocks.Dense; accepted: 0, or a family that has"
        )
    if config.targets == ALL:
        return layers
    known = dict.fromkeys(path[-1] for path in layers)
    wanted = [name.strip() for name in config.targets.split(",")]
    if unknown := [name for name in wanted if name not in known]:
        raise Refusal(
            f"lora.targets has {unknown[0]!r}; accepted for {model.family}: {ALL}, or some of "
            f"{','.join(known)}"
        )
    return {path: size for path, size in layers.items() if path[-1] in wanted}


def shapes(model: Model | ValueModel, config: Config) -> Params:
    """Shapes of a role's params, its base among them.

    Args:
      model: the policy, or a value model on it.
      config: of the run's adapters; rank 0: the plain params.
    """
    plain = jax.eval_shape(model.init, randomness.key(0))
    if not config.rank:
        return plain
    if isinstance(model, ValueModel):
        return {**plain, "backbone": shapes(model.backbone, config)}
    base = jax.eval_shape(partial(compact, dtype=model.dtype), in_base_dtype(model, config, plain))
    return Adapted(
        base, jax.eval_shape(partial(init, model, config), randomness.key(0)), config.scale
    )


def compact(params: Params, dtype: str) -> Params:
    """A base whose matrices are in the compute dtype, to which every product rounds them anyway;
    those that are int8 stay so.

    Args:
      params: float32 or int8; those that are rounded are deleted, one after the other.
      dtype: of the computation.
    """

    def rounded(path: tuple[str, ...], array: Array) -> Array:
        if array.ndim - is_stacked_path(path) < 2 or array.dtype in (dtype, jnp.int8):
            return array
        result = array.astype(dtype)
        if not isinstance(array, Tracer):
            array.delete()
        return result

    return unflatten_dict({path: rounded(path, array) for path, array in flat(params).items()})


Quantize = Callable[[tuple[str, ...], Array], tuple[Array, Array]]
"""(path, kernel) -> (the int8 kernel, its scale), as `int8.quantize` of the kernel."""


def in_base_dtype(
    model: Model,
    config: Config,
    params: Params,
    quantize: Quantize = lambda _, kernel: jax.eval_shape(int8.quantize, kernel),
) -> Params:
    """A base with the kernels of its linear layers in `lora.base_dtype`: embedding, norms, biases and
    head stay.

    Args:
      model: of the base.
      config: of its adapters.
      params: of the base, in float32, as arrays or their shapes.
      quantize: of each of these kernels, one after the other; by default of its shape.
    """
    if not config.base_dtype:
        return params
    arrays, layers = flat(params), getattr(model, "linear_layers", dict)()
    for path, kernel in flat(params).items():
        if path[-1] == "kernel" and members(path, params)[0][:-1] in layers:
            arrays[path], arrays[(*path[:-1], KERNEL_SCALE)] = quantize(path, kernel)
    return unflatten_dict(arrays)


def dequantized(params: Params) -> Params:
    """A base with its int8 kernels in float32 on the host; others are returned as they are.

    Args:
      params: of the base.
    """
    arrays = flat(params)
    for path in [path for path in arrays if path[-1] == KERNEL_SCALE]:
        kernel = (*path[:-1], "kernel")
        held = (jax.device_get(x) for x in (arrays[kernel], arrays.pop(path)))
        arrays[kernel] = np.asarray(int8.dequantize(*held))
    return unflatten_dict(arrays)


def merged(params: Params) -> Params:
    """Plain params on the host that compute the same: W + scale A B, in float32.

    Args:
      params: of a decoder or a value model; without an adapter they are returned as they are.
    """
    if not isinstance(params, Adapted):
        backbone = params.get("backbone")
        return {**params, "backbone": merged(backbone)} if isinstance(backbone, Adapted) else params
    arrays = dict(flatten_dict(dequantized(params.base)))
    for path, pair in _pairs(_beside(params)).items():
        a, b, kernel = (
            np.asarray(jax.device_get(x), np.float32)
            for x in (pair["a"], pair["b"], arrays[(*path, "kernel")])
        )
        arrays[(*path, "kernel")] = kernel + params.scale * (a @ b)
    return unflatten_dict(arrays)


def _beside(params: Adapted) -> Params:
    """The adapter with its layers stacked as the base's are: a layer reads what has its own path."""
    period = positions(params.base)
    if positions(params.adapter) == period:
        return params.adapter
    return stack(unstack(params.adapter), period)


def _pairs(adapter: Params) -> dict[tuple[str, ...], Params]:
    flat = flatten_dict(adapter)
    return {
        path[:-1]: {"a": array, "b": flat[(*path[:-1], "b")]}
        for path, array in flat.items()
        if path[-1] == "a"
    }
