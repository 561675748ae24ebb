"""How published checkpoint folders name what the decoder families compute: configs, tensors, architectures.

Tables alone; `hub/folders.py` reads and writes the files.
"""

import re
from functools import lru_cache
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict

from rlhf_jax import plugins
from rlhf_jax.hub.published_configs import read_config as read_config
from rlhf_jax.hub.published_configs import write_config as write_config


class Tensor(NamedTuple):
    """A published tensor that holds one of our params."""

    name: str
    transpose: bool  # ours is its transpose: a kernel is [in, out], published [out, in]
    shape: tuple[int, ...]  # as published


CLASSES = {
    "gpt_neox": "GPTNeoX",
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma2",
}
PREFIXES = {family: "gpt_neox" if family == "gpt_neox" else "model" for family in CLASSES}
HEADS = {family: "embed_out" if family == "gpt_neox" else "lm_head" for family in CLASSES}

# Within a layer; what is not named here (the norms) stands in the layer itself.
GROUPS = {
    "query_key_value": "attention",
    "dense": "attention",
    "dense_h_to_4h": "mlp",
    "dense_4h_to_h": "mlp",
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"), "self_attn"),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp"),
}
LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "weight": "weight", "bias": "bias"}

# What older files hold beside the params: causal masks and rotary frequencies, which are computed.
COMPUTED = re.compile(
    r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"
    r"|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
)


def tensors(family: str, config: Any) -> dict[str, Tensor]:
    """Every param's published tensor, by our path: "layer_0/query_key_value/kernel"; a tied head has none of its own."""
    return dict(_tensors(family, config))


@lru_cache
def _tensors(family: str, config: Any) -> dict[str, Tensor]:
    shapes: Any = flatten_dict(jax.eval_shape(plugins.find("models", family).make(config).init, jax.random.key(0)))
    found = {}
    for path, leaf in shapes.items():
        transpose = path[-1] == "kernel"
        shape = leaf.shape[::-1] if transpose else leaf.shape
        found["/".join(path)] = Tensor(_published_name(family, path), transpose, shape)
    return found


def _published_name(family: str, path: tuple[str, ...]) -> str:
    *layer, module, leaf = path
    if module == HEADS[family]:
        return head_name(family)
    parts = [PREFIXES[family]]
    if layer:
        parts += ["layers", layer[0].removeprefix("layer_")]
    if module in GROUPS:
        parts.append(GROUPS[module])
    return ".".join([*parts, module, LEAVES[leaf]])


def head_name(family: str) -> str:
    """The tensor of the head that gives logits."""
    return f"{HEADS[family]}.weight"


def architecture(family: str) -> str:
    """The class of transformers that a decoder's folder names."""
    return f"{CLASSES[family]}ForCausalLM"


def sequence_classifier(family: str) -> str:
    """The class of transformers that a reward model's folder names."""
    return f"{CLASSES[family]}ForSequenceClassification"


def ignored(family: str, name: str) -> bool:
    """Whether a tensor that is no param of the model may be passed over: computed ones, and the head of a tied model."""
    return name == head_name(family) or COMPUTED.fullmatch(name) is not None
