"""Names of the tensors of published checkpoint folders, for the params of each decoder family.

Tables alone; `pretrained/folders.py` reads and writes the files.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import jax

from rlhf_jax import randomness, registry
from rlhf_jax.models.common import stacking
from rlhf_jax.models.common.decoder import DecoderConfig
from rlhf_jax.pretrained.published_configs import read_config as read_config
from rlhf_jax.pretrained.published_configs import write_config as write_config
from rlhf_jax.pretrained.published_families import FAMILIES
from rlhf_jax.pretrained.published_families import architecture as architecture
from rlhf_jax.pretrained.published_families import sequence_classifier as sequence_classifier


class Tensor(NamedTuple):
    """A published tensor that holds one of our params: all of it, or rows of it where it holds
    several.
    """

    name: str
    transpose: bool  # ours is its transpose: a kernel is [in, out], published [out, in]
    shape: tuple[int, ...]  # as published, of the whole tensor
    start: int  # the first of its rows that are ours
    stop: int

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """The shape of the rows that are ours, as published."""
        return (self.stop - self.start, *self.shape[1:])


# Within a layer; a param that is not named here (a norm's) belongs to the layer itself.
GROUPS = {
    "query_key_value": "attention",
    "dense": "attention",
    "dense_h_to_4h": "mlp",
    "dense_4h_to_h": "mlp",
    **dict.fromkeys(
        ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "q_norm", "k_norm"), "self_attn"
    ),
    **dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj", "down_proj"), "mlp"),
}
LEAVES = {
    "kernel": "weight",
    "embedding": "weight",
    "scale": "weight",
    "weight": "weight",
    "bias": "bias",
}
# Families that publish several of our matrices as one, their rows in this order.
FUSED = {
    "phi3": {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
}

# What older files hold beside the params: causal masks and rotary frequencies, which are computed.
COMPUTED = re.compile(
    r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"
    r"|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|model\.rotary_emb\.inv_freq"
)


def tensors(family: str, config: DecoderConfig) -> dict[str, Tensor]:
    """Every param's published tensor, by our path, such as "layer_0/query_key_value/kernel".

    A head that is tied to the embeddings has no entry.

    Args:
      family: a file of `models/` with a published form.
      config: of the family.
    """
    return dict(_tensors(family, config))


@lru_cache
def _tensors(family: str, config: DecoderConfig) -> dict[str, Tensor]:
    init = registry.find("models", family).make(config).init
    shapes = stacking.flat(
        jax.eval_shape(lambda key: stacking.unstack(init(key)), randomness.key(0))
    )
    published = {
        path: leaf.shape[::-1] if path[-1] == "kernel" else leaf.shape
        for path, leaf in shapes.items()
    }
    return {"/".join(path): _tensor(family, path, published) for path in shapes}


def _tensor(
    family: str, path: tuple[str, ...], shapes: Mapping[tuple[str, ...], tuple[int, ...]]
) -> Tensor:
    *layer, module, leaf = path
    for fused, members in FUSED.get(family, {}).items():
        if module in members:
            rows = [shapes[(*layer, member, leaf)][0] for member in members]
            start = sum(rows[: members.index(module)])
            shape = (sum(rows), *shapes[path][1:])
            name = _published_name(family, (*layer, fused, leaf))
            return Tensor(name, leaf == "kernel", shape, start, start + shapes[path][0])
    return Tensor(_published_name(family, path), leaf == "kernel", shapes[path], 0, shapes[path][0])


def _published_name(family: str, path: tuple[str, ...]) -> str:
    *layer, module, leaf = path
    if module == FAMILIES[family].head:
        return head_name(family)
    names = [FAMILIES[family].prefix]
    if layer:
        names += ["layers", layer[0].removeprefix("layer_")]
    if module in GROUPS:
        names.append(GROUPS[module])
    return ".".join([*names, module, LEAVES[leaf]])


def head_name(family: str) -> str:
    """The tensor of the head that gives logits."""
    return f"{FAMILIES[family].head}.weight"


def embedding_name(family: str) -> str:
    """The tensor of the embeddings, which a tied head shares."""
    return (
        f"{FAMILIES[family].prefix}.{'embed_in' if family == 'gpt_neox' else 'embed_tokens'}.weight"
    )


def ignored(family: str, name: str) -> bool:
    """True for a tensor that is no param of the model and may be passed over: computed ones, and
    the head of a tied model.
    """
    return name == head_name(family) or COMPUTED.fullmatch(name) is not None
