"""A published `config.json` as a family's `Config` and back: which key is which number, and what a missing key means.

Two generations of keys exist: `rope_theta`, `rope_scaling` and GPT-NeoX's `rotary_pct`, `rotary_emb_base`, and since
transformers 5 all of them within `rope_parameters`. Both are read, and both are written. Defaults are those of the
`configuration_*.py` files of transformers 5.23.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from rlhf_jax import plugins
from rlhf_jax.models import _decoder
from rlhf_jax.refusal import Refusal

REQUIRED = object()
Fields = dict[str, tuple[str, Any]]  # our field -> (published key, value where it is absent)

SHAPE: Fields = {
    "vocab_size": ("vocab_size", REQUIRED),
    "width": ("hidden_size", REQUIRED),
    "num_layers": ("num_hidden_layers", REQUIRED),
    "num_heads": ("num_attention_heads", REQUIRED),
    "ffn_width": ("intermediate_size", REQUIRED),
    "tie_embeddings": ("tie_word_embeddings", False),
}
LLAMA: Fields = SHAPE | {
    "num_kv_heads": ("num_key_value_heads", None),
    "head_width": ("head_dim", None),
    "norm_eps": ("rms_norm_eps", 1e-6),
}
MISTRAL: Fields = LLAMA | {"num_kv_heads": ("num_key_value_heads", 8), "sliding_window": ("sliding_window", 4096)}
QWEN2: Fields = MISTRAL | {
    "num_kv_heads": ("num_key_value_heads", 32),
    "first_window_layer": ("max_window_layers", 28),
}
FIELDS: dict[str, Fields] = {
    "gpt_neox": SHAPE | {"norm_eps": ("layer_norm_eps", 1e-5), "parallel_residual": ("use_parallel_residual", True)},
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN2 | {"head_width": ("head_dim", 128)},
    "gemma2": MISTRAL
    | {
        "num_kv_heads": ("num_key_value_heads", 4),
        "head_width": ("head_dim", 256),
        "query_scalar": ("query_pre_attn_scalar", 256),
        "score_cap": ("attn_logit_softcapping", 50.0),
        "logit_cap": ("final_logit_softcapping", 30.0),
        "tie_embeddings": ("tie_word_embeddings", True),
    },
}
NULL_IS_ZERO = {"num_kv_heads", "head_width", "sliding_window", "score_cap", "logit_cap"}

SILU = {"hidden_act": ("silu", "swish")}
ACCEPTED: dict[str, dict[str, tuple[Any, ...]]] = {  # keys that change the maths; the first value is the default
    "gpt_neox": {"hidden_act": ("gelu",), "attention_bias": (True,)},
    "llama": SILU | {"attention_bias": (False,), "mlp_bias": (False,)},
    "mistral": SILU,
    "qwen2": SILU,
    "qwen3": SILU | {"attention_bias": (False,)},
    "gemma2": {
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attention_bias": (False,),
        "use_bidirectional_attention": (None, False),
    },
}
ROPE_PLACES = ("rope_parameters", "rope_scaling")


def read_config(published: Mapping[str, Any]) -> tuple[str, Any]:
    """The family's name and its `Config`, computing in float32, of a parsed `config.json`.

    Raises Refusal, naming key and value, for a missing key, for keys that contradict one another, and for whatever
    changes the maths in a way that the family does not compute.
    """
    family = published.get("model_type")
    if family not in FIELDS:
        raise Refusal(f"model_type is {family!r}; accepted: {', '.join(FIELDS)}")
    _check_accepted(family, published)
    config_type = plugins.find("models", family).Config
    kinds = typing.get_type_hints(config_type)
    values = {field: _read(published, field, kinds[field], *at) for field, at in FIELDS[family].items()}
    if family != "gpt_neox":
        values["num_kv_heads"] = values["num_kv_heads"] or values["num_heads"]
        if not values["head_width"] and values["width"] % values["num_heads"] == 0:
            values["head_width"] = values["width"] // values["num_heads"]
    if "first_window_layer" in values and not published.get("use_sliding_window", False):
        values["sliding_window"] = 0  # the number alone means nothing: Qwen's files hold one that is switched off
    config = config_type(**values, **(_read_neox_rope(published) if family == "gpt_neox" else _read_rope(published)))
    _check_layer_types(published, config)
    return family, config


def _check_accepted(family: str, published: Mapping[str, Any]) -> None:
    for key, accepted in (ACCEPTED[family] | {"quantization_config": (None,)}).items():
        value = published.get(key, accepted[0])
        if value not in accepted:
            raise Refusal(f"{key} is {value!r}; accepted for {family}: {', '.join(map(repr, accepted))}")


def _read(published: Mapping[str, Any], field: str, kind: type, key: str, default: Any) -> Any:
    if key not in published and default is REQUIRED:
        raise Refusal(f"there is no {key!r}, which the shape depends on")
    value = published.get(key, default)
    if value is None and field in NULL_IS_ZERO:
        return kind(0)
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, int | float) or kind(value) != value:
        raise Refusal(f"{key} is {value!r}; accepted: a value of type {kind.__name__}")
    return kind(value)


def _agreed(published: Mapping[str, Any], default: Any, *places: tuple[str, ...]) -> Any:
    """The value that stands at any of some places. Raises Refusal where two of them differ."""
    found = {}
    for place in places:
        value: Any = published
        for key in place:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            found[".".join(place)] = value
    if any(value != next(iter(found.values())) for value in found.values()):
        raise Refusal("keys contradict one another: " + ", ".join(f"{key} is {v!r}" for key, v in found.items()))
    if not found and default is REQUIRED:
        raise Refusal(f"there is no {' or '.join('.'.join(place) for place in places)}")
    return next(iter(found.values()), default)


def _in_rope(*keys: str) -> list[tuple[str, str]]:
    return [(place, key) for place in ROPE_PLACES for key in keys]


def _rope_type(published: Mapping[str, Any], *accepted: str) -> str:
    for place in ROPE_PLACES:
        held = published.get(place)
        if held is not None and (not isinstance(held, Mapping) or any(isinstance(v, Mapping) for v in held.values())):
            raise Refusal(f"{place} is {held!r}; accepted: one flat object for all layers, or null")
    rope_type = _agreed(published, "default", *_in_rope("rope_type", "type"))
    if rope_type not in accepted:
        raise Refusal(f"rope_type is {rope_type!r}; accepted: {', '.join(accepted)}")
    return rope_type


def _read_rope(published: Mapping[str, Any]) -> dict[str, Any]:
    rope_type = _rope_type(published, "default", "linear", "llama3")
    fraction = _agreed(published, 1.0, ("partial_rotary_factor",), *_in_rope("partial_rotary_factor"))
    if fraction != 1.0:
        raise Refusal(f"partial_rotary_factor is {fraction!r}; accepted: 1.0")
    values = {"rope_theta": float(_agreed(published, 10_000.0, ("rope_theta",), *_in_rope("rope_theta")))}
    if rope_type == "default":
        return values
    values |= {
        "rope_scaling": rope_type,
        "rope_scaling_factor": float(_agreed(published, REQUIRED, *_in_rope("factor"))),
    }
    if rope_type == "linear":
        return values
    original = "original_max_position_embeddings"
    return values | {
        "rope_low_frequency_factor": float(_agreed(published, REQUIRED, *_in_rope("low_freq_factor"))),
        "rope_high_frequency_factor": float(_agreed(published, REQUIRED, *_in_rope("high_freq_factor"))),
        "rope_original_max_positions": int(_agreed(published, REQUIRED, *_in_rope(original), (original,))),
    }


def _read_neox_rope(published: Mapping[str, Any]) -> dict[str, Any]:
    _rope_type(published, "default")
    theta = _agreed(published, 10_000.0, ("rotary_emb_base",), ("rope_theta",), *_in_rope("rope_theta"))
    places = (("rotary_pct",), ("partial_rotary_factor",), *_in_rope("partial_rotary_factor"))
    return {"rope_theta": float(theta), "rotary_fraction": float(_agreed(published, 0.25, *places))}


def _check_layer_types(published: Mapping[str, Any], config: Any) -> None:
    stated = published.get("layer_types")
    if stated is None:
        return
    ours = ["sliding_attention" if window(config, index) else "full_attention" for index in range(config.num_layers)]
    if list(stated) != ours:
        raise Refusal(f"layer_types is {stated!r}; accepted with the other keys: {ours!r}")


def window(config: Any, layer: int) -> int:
    """The sliding window of a layer of any family; 0 is none."""
    return config.window(layer) if hasattr(config, "window") else 0


def write_config(family: str, config: Any) -> dict[str, Any]:
    """The `config.json`, in the keys of transformers 4 and 5 both, that builds the same model there.

    Left to the caller: token ids, `architectures`, the dtype of the tensors, and the longest context that the model was made
    for (`max_position_embeddings`), which no number here depends on.
    """
    values = dataclasses.asdict(config)
    if family != "gpt_neox":
        values["head_width"] = _decoder.head_width(config)
    published = {"model_type": family} | {key: accepted[0] for key, accepted in ACCEPTED[family].items()}
    for field, (key, _) in FIELDS[family].items():
        published[key] = None if field in NULL_IS_ZERO and not values[field] else values[field]
    if "first_window_layer" in values:
        published["use_sliding_window"] = bool(values["sliding_window"])
    return published | (_write_neox_rope(config) if family == "gpt_neox" else _write_rope(config))


def _write_neox_rope(config: Any) -> dict[str, Any]:
    theta, fraction = config.rope_theta, config.rotary_fraction
    nested = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": fraction}
    return {"rotary_emb_base": theta, "rotary_pct": fraction, "rope_parameters": nested}


def _write_rope(config: Any) -> dict[str, Any]:
    theta = {"rope_theta": config.rope_theta}
    if config.rope_scaling_factor == 1.0:
        return theta | {"rope_scaling": None, "rope_parameters": theta | {"rope_type": "default"}}
    scaling = {"rope_type": config.rope_scaling, "factor": config.rope_scaling_factor}
    if config.rope_scaling == "llama3":
        scaling |= {
            "low_freq_factor": config.rope_low_frequency_factor,
            "high_freq_factor": config.rope_high_frequency_factor,
            "original_max_position_embeddings": config.rope_original_max_positions,
        }
    return theta | {"rope_scaling": scaling, "rope_parameters": theta | scaling}
