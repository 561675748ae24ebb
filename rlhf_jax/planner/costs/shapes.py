"""A role's model as numbers: its params by their logical axes, and what its layers multiply, keep
and cache.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from rlhf_jax import randomness
from rlhf_jax.devices.sharding import RULES
from rlhf_jax.models import llama
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import adapters, decoder, stacking
from rlhf_jax.models.common.linear import (
    gradient_dtype,
    network_gradient_dtype,
    widens_gradients,
)
from rlhf_jax.models.common.stacking import unstack
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.ops.once import once
from rlhf_jax.refusal import Refusal

FULL = adapters.Config()  # all params are trained


@dataclass(frozen=True)
class Leaf:
    """Params of one shape: `count` arrays of `sizes` whose dimensions have the logical `axes`.

    `place`: layer (of all layers), table (the embedding), head (the map to logits), other.
    `item_bytes`: of an element of an int8 kernel or of its scale; 0: as the shape says.
    """

    place: str
    sizes: tuple[int, ...]
    axes: tuple[str | None, ...]
    item_bytes: int
    count: int

    @property
    def elements(self) -> int:
        return self.count * int(np.prod(self.sizes))

    def parts(self, fsdp: int, tensor: int) -> tuple[int, int]:
        """Into how many parts fsdp and tensor cut it; 1 where no dimension divides, as
        `devices/sharding.py` has it.
        """
        mesh, cut = {"fsdp": fsdp, "tensor": tensor}, {"fsdp": 1, "tensor": 1}
        for size, axis in zip(self.sizes, self.axes, strict=True):
            name = RULES[axis] if axis is not None else None
            if name and mesh[name] > 1 and size % mesh[name] == 0:
                cut[name] = mesh[name]
        return cut["fsdp"], cut["tensor"]


@dataclass(frozen=True)
class Split:
    """Numbers of one device of a mesh.

    Params are counted as those of the shape's `copy_bytes`: of an int8 kernel fewer than it has
    elements. Its products are those of all its elements. `gathered`: with what fsdp has cut brought
    together again.
    """

    stored: float  # params that the device holds
    gathered: float
    cut_by_fsdp: (
        float  # of the gathered ones that a forward pass reads, those that must be brought together
    )
    cut_table: float  # of those, the embedding
    cut_head: float  # of those, a map to logits that is not the embedding
    whole_over_fsdp: float  # of the stored ones, those that fsdp does not divide
    layer_products: float  # elements of the layers' kernels, gathered
    layer_kernels: float  # the same as params that are read
    largest_int8: float  # elements of the largest int8 kernel, which a product casts; 0: none is
    head_products: float
    heads: int
    kv_heads: int  # XLA cuts the cache by what tensor and these have in common
    hidden_parts: int  # into which tensor cuts what is between a layer's products
    vocab: int
    table_cut: bool  # the embedding is cut over tensor: what it gives is summed


@dataclass(frozen=True)
class Shape:
    """A model as numbers; `leaves` are all of its params.

    Params are float32 where they are trained (`param_bytes`); `copy_bytes` is what a copy for
    generation or inference has, `compute_bytes` what hidden states and the cache have. `values`
    says that scalars are read and no logits. `adapter` are the params of a role that trains an
    adapter, with a value head; `leaves` then stay as they are, in the dtype of their copies.
    """

    num_layers: int
    width: int
    ffn_width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    vocab_size: int
    gated: bool
    leaves: tuple[Leaf, ...]
    param_bytes: int = 4
    copy_bytes: int = 4
    compute_bytes: int = 4
    values: bool = False
    remat: bool = False  # what the model's own config says
    remat_policy: str = "full"  # of `decoder.REMAT_POLICIES`
    attention: str = "xla"
    # Products are in bfloat16, and gradients are summed and reduced in float32.
    float32_gradients: bool = False
    network_bytes: int = 4  # of a gradient as it is sent between hosts with a copy each
    scanned: bool = False  # layers are stacked and run in a scan
    adapter: tuple[Leaf, ...] = ()

    @property
    def moved(self) -> tuple[Leaf, ...]:
        """The params that are published and resharded: a base is not."""
        return self.adapter or self.leaves

    def adapter_elements(self, fsdp: int, tensor: int) -> float:
        """Params of the adapter that one device of a mesh holds."""
        cut = ((leaf.elements, *leaf.parts(fsdp, tensor)) for leaf in self.adapter)
        return sum(elements / (by_fsdp * by_tensor) for elements, by_fsdp, by_tensor in cut)

    @cached_property
    def num_params(self) -> int:
        return sum(leaf.elements for leaf in self.leaves)

    @cached_property
    def whole_bytes(self) -> int:
        """Bytes of a whole copy for generation or inference."""
        sizes = ((leaf.elements, leaf.item_bytes or self.copy_bytes) for leaf in self.leaves)
        return sum(elements * item_bytes for elements, item_bytes in sizes)

    @cached_property
    def num_arrays(self) -> int:
        return sum(leaf.count for leaf in self.leaves)

    @cached_property
    def tied(self) -> bool:
        """The embedding is the map to logits too."""
        return not any(leaf.place == "head" for leaf in self.leaves)

    def split(self, fsdp: int, tensor: int) -> Split:
        """Sizes that one device of a mesh with those axes holds and multiplies."""
        return _split(self, fsdp, tensor)

    @property
    def column_bytes(self) -> int:
        """Bytes of one column of one row's cache, all layers and heads."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_width * self.compute_bytes


def divided(size: int, parts: int) -> int:
    """A dimension's size on a device; a dimension that does not divide stays whole."""
    return size // parts if size % parts == 0 else size


@cache
def _split(shape: Shape, fsdp: int, tensor: int) -> Split:
    stored = gathered = cut = cut_table = cut_head = whole = layers = head = 0.0
    kernels = largest_int8 = 0.0
    table_cut = False
    for leaf in shape.leaves:
        by_fsdp, by_tensor = leaf.parts(fsdp, tensor)
        elements = leaf.elements / by_tensor
        here = elements * (leaf.item_bytes / shape.copy_bytes if leaf.item_bytes else 1)
        is_head = leaf.place == "head" or (shape.tied and leaf.place == "table")
        stored += here / by_fsdp
        gathered += here
        whole += here if by_fsdp == 1 else 0.0
        # The table is read a few rows a step, but XLA brings its columns together all the same; a
        # value model's head rests.
        if by_fsdp > 1 and not (leaf.place == "head" and shape.values):
            cut += here
            cut_table += here if leaf.place == "table" else 0.0
            cut_head += here if leaf.place == "head" else 0.0
        if leaf.place == "layer" and len(leaf.sizes) == 2:
            layers += elements
            kernels += here
        if leaf.item_bytes == 1:
            largest_int8 = max(largest_int8, elements / leaf.count)
        head += here if is_head and not shape.values else 0.0
        table_cut |= leaf.place == "table" and by_tensor > 1
    return Split(
        stored=stored,
        gathered=gathered,
        cut_by_fsdp=cut,
        cut_table=cut_table,
        cut_head=cut_head,
        whole_over_fsdp=whole,
        layer_products=layers,
        layer_kernels=kernels,
        largest_int8=largest_int8,
        head_products=head,
        heads=divided(shape.num_heads, tensor),
        kv_heads=shape.num_kv_heads // math.gcd(shape.num_kv_heads, tensor),
        hidden_parts=tensor if shape.ffn_width % tensor == 0 else 1,
        vocab=divided(shape.vocab_size, tensor),
        table_cut=table_cut,
    )


def model_shape(
    model: Model | ValueModel, copy_bytes: int | None = None, lora: adapters.Config = FULL
) -> Shape:
    """The shape of a model of any family, or of a value model on one; its params are counted, not
    made.

    Args:
      model: of a role.
      copy_bytes: of a param of the sampler's or of a frozen copy; None: as they are trained. With
        adapters, those of the base are of the compute dtype, or as `lora.base_dtype` says.
      lora: adapters that are trained in the place of all params.
    """
    backbone: Any = getattr(model, "backbone", model)  # a family's own class, with its config
    config = backbone.config
    arrays, axes = _params(model, lora)
    counts = Counter(
        (_place(path), tuple(array.shape), axes[path], _item_bytes(path, arrays))
        for path, array in arrays.items()
    )
    param_bytes = 4
    if lora.rank:
        param_bytes = copy_bytes = np.dtype(config.dtype).itemsize
    return Shape(
        num_layers=config.num_layers,
        width=config.width,
        ffn_width=config.ffn_width,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_width=decoder.head_width(config),
        vocab_size=config.vocab_size,
        gated=any("gate_proj" in path for path in arrays),
        leaves=tuple(Leaf(*key, count) for key, count in sorted(counts.items(), key=repr)),
        param_bytes=param_bytes,
        copy_bytes=copy_bytes or param_bytes,
        compute_bytes=np.dtype(config.dtype).itemsize,
        values=backbone is not model,
        remat=config.remat,
        remat_policy=decoder.remat_policy(config),
        attention=config.attention,
        float32_gradients=widens_gradients(config.dtype, gradient_dtype(backbone)),
        network_bytes=np.dtype(network_gradient_dtype(backbone)).itemsize,
        scanned=stacking.period(config) > 0,
        adapter=_adapter_leaves(model, lora) if lora.rank else (),
    )


def held_shape(model: Model | ValueModel, lora: adapters.Config = FULL) -> Shape:
    """The shape of a role whose params no update changes. They are held in the dtype of products
    (`rounding.held`); norms and value heads, which stay in float32, are counted as the others.

    Args:
      model: of the role.
      lora: adapters that its params have.
    """
    decoder_of = model.backbone if isinstance(model, ValueModel) else model
    return model_shape(model, np.dtype(decoder_of.dtype).itemsize, lora)


def _adapter_leaves(model: Model | ValueModel, lora: adapters.Config) -> tuple[Leaf, ...]:
    """The params that a role with an adapter trains: its matrices, and a value head."""
    backbone = model.backbone if isinstance(model, ValueModel) else model
    adapter = jax.eval_shape(lambda: unstack(adapters.init(backbone, lora, randomness.key(0))))
    arrays: dict[Any, Any] = flatten_dict(adapter)
    axes: dict[Any, Any] = flatten_dict(backbone.logical_axes(adapter))
    if isinstance(model, ValueModel):
        whole, axes_of = _params(model, FULL)
        head = [path for path in whole if "value_head" in path]
        arrays |= {path: whole[path] for path in head}
        axes |= {path: axes_of[path] for path in head}
    counts = Counter((_place(path), tuple(x.shape), axes[path], 0) for path, x in arrays.items())
    return tuple(Leaf(*key, count) for key, count in sorted(counts.items(), key=repr))


@once
def _params(
    model: Model | ValueModel, lora: adapters.Config
) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Shapes and logical axes of a model's params by their paths, without adapters. A deep model
    takes a second to trace, and several roles of a plan have the same one.
    """
    params = jax.eval_shape(lambda: unstack(model.init(randomness.key(0))))
    if isinstance(model, ValueModel):
        base = adapters.in_base_dtype(model.backbone, lora, params["backbone"])
        params = {**params, "backbone": base}
    else:
        params = adapters.in_base_dtype(model, lora, params)
    return flatten_dict(params), flatten_dict(model.logical_axes(params))


def _item_bytes(path: tuple[str, ...], arrays: Mapping[tuple[str, ...], Any]) -> int:
    """Bytes of an element of an int8 kernel or of its scale; 0 for other params."""
    is_int8 = (*path[:-1], adapters.KERNEL_SCALE) in arrays
    return arrays[path].dtype.itemsize if is_int8 and path[-1] != "bias" else 0


def _place(path: tuple[str, ...]) -> str:
    if any(re.fullmatch(r"layer_\d+", name) for name in path):
        return "layer"
    if path[-1] == "embedding":
        return "table"
    return "head" if path[-2] in ("lm_head", "embed_out") else "other"


# Touvron et al. 2023 (arXiv 2307.09288) and Roziere et al. 2023 (arXiv 2308.12950), by their
# published config.json: vocabulary, width, layers, heads, key-value heads, feed-forward width.
LLAMA2 = {
    "llama-2-7b": (32000, 4096, 32, 32, 32, 11008),
    "llama-2-13b": (32000, 5120, 40, 40, 40, 13824),
    "codellama-34b": (32000, 8192, 48, 64, 8, 22016),
    "llama-2-70b": (32000, 8192, 80, 64, 8, 28672),
}


def named(name: str) -> Shape:
    """A published shape by name, in float32. Raises Refusal that lists the names."""
    if name not in LLAMA2:
        raise Refusal(f"no shape {name!r}; there are: {', '.join(LLAMA2)}")
    vocab_size, width, num_layers, num_heads, num_kv_heads, ffn_width = LLAMA2[name]
    one_layer = model_shape(
        llama.make(llama.Config(vocab_size, width, 1, num_heads, num_kv_heads, ffn_width))
    )
    leaves = (
        replace(leaf, count=leaf.count * (num_layers if leaf.place == "layer" else 1))
        for leaf in one_layer.leaves
    )
    return replace(one_layer, num_layers=num_layers, leaves=tuple(leaves))
