"""Kinds of published models that are not computed, by what their `config.json` says: one sentence
on why for each.
"""

from collections.abc import Mapping
from typing import Any

from rlhf_jax.pretrained.published_families import (
    ALWAYS,
    MODEL_TYPES,
    WHY,
    Accepted,
    architecture,
    sequence_classifier,
)
from rlhf_jax.refusal import Refusal

EXPERTS = "a mixture of experts, whose routing is not computed"
LINEAR = "some of its layers are recurrent (linear attention, convolution or a state space), which is not computed"
MODALITIES = "a model of several modalities, of which no text model alone is read"
TOWER = "a model with a vision tower, of which no text model alone is read: take a folder of Gemma3ForCausalLM"
ENCODER = "an encoder, no causal decoder"
ENCODER_DECODER = "an encoder and a decoder, no causal decoder alone"
MULTIPLIERS = "its embeddings, scores or logits have multipliers that are not computed"
OTHER_LAYERS = (
    "its layers are of another form (norms, biases, positions or residuals) than any family here"
)
PER_LAYER = "its layers share keys or have embeddings of their own, which is not computed"
LATENT = "its keys and values are compressed (latent attention), which is not computed"

KINDS = {
    EXPERTS: "mixtral qwen2_moe qwen3_moe olmoe flex_olmo phimoe granitemoe granitemoeshared "
    "glm4_moe gpt_oss dbrx jetmoe "
    "ernie4_5_moe minimax_m2 hunyuan_v1_moe dots1 cohere2_moe bailing_moe exaone_moe llama4_text "
    "arctic grok",
    LATENT: "deepseek_v2 deepseek_v3 deepseek_v32 kimi_k2 glm4_moe_lite longcat_flash minicpm3",
    LINEAR: "qwen3_next qwen3_5 qwen3_5_text qwen3_5_moe qwen3_5_moe_text mamba mamba2 "
    "falcon_mamba falcon_h1 jamba zamba "
    "zamba2 bamba nemotron_h recurrent_gemma rwkv granitemoehybrid lfm2 lfm2_moe olmo_hybrid "
    "kimi_linear minimax xlstm",
    TOWER: "gemma3",
    MODALITIES: "gemma4 gemma3n paligemma llava llava_next llava_onevision mllama mistral3 pixtral "
    "qwen2_vl qwen2_5_vl "
    "qwen3_vl qwen3_vl_moe qwen2_audio qwen2_5_omni qwen3_omni_moe idefics2 idefics3 smolvlm "
    "internvl llama4 "
    "phi4_multimodal phi4mm kimi_vl glm4v aya_vision cohere2_vision whisper voxtral",
    PER_LAYER: "gemma4_text gemma3n_text",
    ENCODER: "bert roberta xlm-roberta deberta-v2 deberta electra modernbert albert distilbert",
    ENCODER_DECODER: "t5 mt5 umt5 bart mbart pegasus t5gemma longt5",
    MULTIPLIERS: "granite cohere cohere2 minicpm helium",
    OTHER_LAYERS: "gpt2 gptj gpt_neo gpt_bigcode opt bloom mpt falcon phi stablelm starcoder2 "
    "codegen olmo gemma nemotron glm "
    "glm4 exaone exaone4 internlm2 internlm3 baichuan chatglm qwen ministral ministral3 apertus "
    "seed_oss bitnet nanochat",
}
NOT_COMPUTED = {name: why for why, names in KINDS.items() for name in names.split()}


def family_of(published: Mapping[str, Any]) -> str:
    """The family of a parsed `config.json`.

    Raises Refusal that says why another kind of model is not computed.
    """
    kind = published.get("model_type")
    if isinstance(kind, str) and kind in MODEL_TYPES:
        return MODEL_TYPES[kind]
    why = NOT_COMPUTED.get(kind) if isinstance(kind, str) else None
    why = why or (
        MODALITIES
        if any(published.get(f"{tower}_config") for tower in ("text", "vision", "audio"))
        else None
    )
    raise Refusal(
        f"model_type is {kind!r}{f': {why}' if why else ''}; accepted: {', '.join(MODEL_TYPES)}"
    )


def check_accepted(family: str, published: Mapping[str, Any], accepted: Accepted) -> None:
    """Raises Refusal for a key whose value changes what is computed."""
    for key, values in (accepted | ALWAYS).items():
        value = published.get(key, values[0])
        if value not in values:
            text = repr(value) if len(repr(value)) < 80 else repr(value)[:76] + " ..."
            why = f": {WHY[key]}" if key in WHY else ""
            raise Refusal(
                f"{key} is {text}{why}; accepted for {family}: {', '.join(map(repr, values))}"
            )


SUFFIXES = {
    "ForTokenClassification": "a token classifier (a process reward model), whose scores of steps "
    "are not computed",
    "ForQuestionAnswering": "a model that marks spans of a text",
    "ForConditionalGeneration": "a model of several modalities, or of an encoder and a decoder",
    "Model": "a backbone without a head",
}


def check_architectures(family: str, published: Mapping[str, Any]) -> None:
    """Raises Refusal where `architectures` names anything but a decoder or a sequence classifier of
    the family.
    """
    names = published.get("architectures") or []
    accepted = (architecture(family), sequence_classifier(family))
    for name in names if isinstance(names, list) else [names]:
        if str(name).lower() not in map(str.lower, accepted):
            why = next(
                (f": {why}" for suffix, why in SUFFIXES.items() if str(name).endswith(suffix)), ""
            )
            raise Refusal(
                f"architectures is {names!r}{why}; accepted with model_type "
                f"{published.get('model_type')!r}: "
                f"{' or '.join(accepted)}"
            )


def is_classifier(family: str, published: Mapping[str, Any]) -> bool:
    """`architectures` names the family's sequence classifier."""
    names = published.get("architectures") or []
    return any(str(name).lower() == sequence_classifier(family).lower() for name in names)
