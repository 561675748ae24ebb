"""The published families that are computed: names of their classes, keys of their `config.json`,
defaults of absent keys.

Tables alone. `published_configs.py` reads and writes a config by them, `layouts.py` names the
tensors. Defaults are those of the `configuration_*.py` files of transformers 5.24.
"""

from dataclasses import dataclass
from typing import Any

REQUIRED = object()
Fields = dict[str, tuple[str, Any]]  # our field -> (published key, value where it is absent)
Accepted = dict[
    str, tuple[Any, ...]
]  # published key -> values that are computed; the first is the default

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
MISTRAL: Fields = LLAMA | {
    "num_kv_heads": ("num_key_value_heads", 8),
    "sliding_window": ("sliding_window", 4096),
}
QWEN2: Fields = MISTRAL | {
    "num_kv_heads": ("num_key_value_heads", 32),
    "first_window_layer": ("max_window_layers", 28),
}
GEMMA2: Fields = MISTRAL | {
    "num_kv_heads": ("num_key_value_heads", 4),
    "head_width": ("head_dim", 256),
    "query_scalar": ("query_pre_attn_scalar", 256),
    "score_cap": ("attn_logit_softcapping", 50.0),
    "logit_cap": ("final_logit_softcapping", 30.0),
    "tie_embeddings": ("tie_word_embeddings", True),
}
GEMMA3: Fields = {field: at for field, at in GEMMA2.items() if field != "score_cap"} | {
    "logit_cap": ("final_logit_softcapping", None)
}
OLMO2: Fields = LLAMA | {"norm_eps": ("rms_norm_eps", 1e-5)}
SMOLLM3: Fields = LLAMA | {
    "num_kv_heads": ("num_key_value_heads", 4),
    "sliding_window": ("sliding_window", None),
    "tie_embeddings": ("tie_word_embeddings", True),
}
PHI3: Fields = OLMO2 | {"sliding_window": ("sliding_window", None)}
NEOX: Fields = SHAPE | {
    "norm_eps": ("layer_norm_eps", 1e-5),
    "parallel_residual": ("use_parallel_residual", True),
}
NULL_IS_ZERO = {"num_kv_heads", "head_width", "sliding_window", "score_cap", "logit_cap"}

SILU: Accepted = {"hidden_act": ("silu", "swish")}
NO_BIAS: Accepted = {"attention_bias": (False,)}
GELU: Accepted = {"hidden_activation": ("gelu_pytorch_tanh",)}
# Of every family: keys that transformers' base classes read, or that say that the folder holds
# another kind of model.
ALWAYS: Accepted = {
    "is_causal": (True,),
    "is_encoder_decoder": (False, None),
    "per_layer_config": (None, {}),
    "quantization_config": (None, {}),
    "compression_config": (None, {}),
    "transformers_weights": (None, "model.safetensors"),
    **dict.fromkeys(("text_config", "vision_config", "audio_config"), (None, {})),
}
WHY = {
    "is_causal": "attention is causal here",
    "per_layer_config": "all layers are of one shape here",
    "quantization_config": "a quantised folder; dequantise it, or take the folder that it was made "
    "of",
    "compression_config": "a quantised folder; dequantise it, or take the folder that it was made "
    "of",
    "transformers_weights": "weights are read from model.safetensors or from its shards",
    **dict.fromkeys(
        ("text_config", "vision_config", "audio_config"),
        "a model of several modalities; save its text model alone",
    ),
}


@dataclass(frozen=True)
class Published:
    """One family, as transformers names and configures it."""

    class_name: str  # of its classes in transformers, before "ForCausalLM"
    fields: Fields
    accepted: Accepted
    model_type: str = ""  # "": the family's name
    classifier: str = (
        ""  # the class of a sequence classifier; "": class_name + "ForSequenceClassification"
    )
    theta: float = 10_000.0  # of rotary positions
    max_positions: int = 2048  # max_position_embeddings
    pad_id: int | None = None  # pad_token_id
    prefix: str = "model"  # of its tensors
    head: str = "lm_head"
    interval: int = 0  # of layers that see all columns, for families whose layer_types is free


FAMILIES: dict[str, Published] = {
    "gpt_neox": Published(
        "GPTNeoX",
        NEOX,
        {"hidden_act": ("gelu",), "attention_bias": (True,), "head_dim": (None,)},
        prefix="gpt_neox",
        head="embed_out",
    ),
    "llama": Published("Llama", LLAMA, SILU | NO_BIAS | {"mlp_bias": (False,)}),
    "mistral": Published("Mistral", MISTRAL, SILU, max_positions=131072),
    "qwen2": Published("Qwen2", QWEN2, SILU, max_positions=32768),
    "qwen3": Published(
        "Qwen3", QWEN2 | {"head_width": ("head_dim", 128)}, SILU | NO_BIAS, max_positions=32768
    ),
    "gemma2": Published(
        "Gemma2",
        GEMMA2,
        GELU | NO_BIAS | {"use_bidirectional_attention": (None, False)},
        max_positions=8192,
        pad_id=0,
    ),
    "gemma3": Published(
        "Gemma3",
        GEMMA3,
        # Its attention scores are never capped in transformers, whatever the key says.
        GELU
        | NO_BIAS
        | {"use_bidirectional_attention": (False, None), "attn_logit_softcapping": (None,)},
        model_type="gemma3_text",
        classifier="Gemma3TextForSequenceClassification",
        theta=1_000_000.0,
        max_positions=131072,
        pad_id=0,
        interval=6,
    ),
    "olmo2": Published("Olmo2", OLMO2, SILU | NO_BIAS, pad_id=1),
    "olmo3": Published(
        "Olmo3",
        OLMO2 | {"sliding_window": ("sliding_window", 4096)},
        SILU | NO_BIAS,
        theta=500_000.0,
        pad_id=1,
        interval=4,
    ),
    "smollm3": Published(
        "SmolLM3",
        SMOLLM3,
        SILU | NO_BIAS | {"mlp_bias": (False,)},
        theta=2_000_000.0,
        max_positions=32768,
        pad_id=128004,
    ),
    "phi3": Published("Phi3", PHI3, SILU, max_positions=4096, pad_id=32000),
}
MODEL_TYPES = {published.model_type or family: family for family, published in FAMILIES.items()}


def model_type(family: str) -> str:
    """The `model_type` of a family's `config.json`."""
    return FAMILIES[family].model_type or family


def architecture(family: str) -> str:
    """The class of transformers that a decoder's folder names."""
    return f"{FAMILIES[family].class_name}ForCausalLM"


def sequence_classifier(family: str) -> str:
    """The class of transformers that a reward model's folder names."""
    return FAMILIES[family].classifier or f"{FAMILIES[family].class_name}ForSequenceClassification"
