"""Names in published folders: both generations of config keys, refusals by name, every param named
once.
"""

import dataclasses
import math

import jax
import pytest
from flax.traverse_util import flatten_dict

from rlhf_jax import registry
from rlhf_jax.models import (
    gemma2,
    gemma3,
    gpt_neox,
    llama,
    mistral,
    olmo2,
    olmo3,
    phi3,
    qwen2,
    qwen3,
    smollm3,
)
from rlhf_jax.pretrained import (
    layouts,
    published_configs,
    published_families,
    published_kinds,
    published_rope,
)

FAMILIES = tuple(published_families.FAMILIES)
SHAPE = {
    "vocab_size": 11,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 13,
}


def published(family: str, **changes) -> dict:
    return (
        SHAPE
        | {"model_type": published_families.model_type(family) if family in FAMILIES else family}
        | changes
    )


# The config.json of EleutherAI/pythia-1b (transformers 4), of meta-llama/Llama-3.2-1B (4) and as
# version 5 writes the same.
PYTHIA_1B = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 8,
    "num_hidden_layers": 16,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
LLAMA_3_2_1B = {
    "attention_bias": False,
    "eos_token_id": [128001, 128008],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}


def test_published_files_are_the_presets():
    assert layouts.read_config(PYTHIA_1B) == ("gpt_neox", gpt_neox.PRESETS["pythia-1b"])
    expected = dataclasses.replace(llama.PRESETS["llama-3.2-1b"], head_width=64)
    assert layouts.read_config(LLAMA_3_2_1B) == ("llama", expected)


def test_newer_keys_say_the_same():
    newer = {key: value for key, value in PYTHIA_1B.items() if not key.startswith("rotary")}
    newer["rope_parameters"] = {
        "rope_theta": 10000,
        "rope_type": "default",
        "partial_rotary_factor": 0.25,
    }
    assert layouts.read_config(newer) == layouts.read_config(PYTHIA_1B)
    newer["rope_parameters"] = newer["rope_parameters"] | {
        "partial_rotary_factor": 0.5,
        "rope_theta": 77,
    }
    assert layouts.read_config(newer)[1] == dataclasses.replace(
        gpt_neox.PRESETS["pythia-1b"], rotary_fraction=0.5, rope_theta=77.0
    )
    newer = {key: value for key, value in LLAMA_3_2_1B.items() if not key.startswith("rope")}
    newer["rope_parameters"] = LLAMA_3_2_1B["rope_scaling"] | {"rope_theta": 500000.0}
    assert layouts.read_config(newer) == layouts.read_config(LLAMA_3_2_1B)
    assert layouts.read_config(newer | LLAMA_3_2_1B) == layouts.read_config(LLAMA_3_2_1B)


def test_missing_keys_mean_the_published_defaults():
    """Defaults of each family's configuration file in transformers 5.24."""
    shape = (11, 24, 3, 4)
    grouped = {"rope_theta": 10_000.0, "norm_eps": 1e-6}
    expected = {
        "gpt_neox": gpt_neox.Config(*shape, 13),
        "llama": llama.Config(*shape, 4, 13, head_width=6, **grouped),
        "mistral": mistral.Config(*shape, 8, 13, head_width=6, sliding_window=4096, **grouped),
        "qwen2": qwen2.Config(*shape, 32, 13, head_width=6, **grouped),
        "qwen3": qwen3.Config(*shape, 32, 13, head_width=128, **grouped),
        "gemma2": gemma2.Config(
            *shape, 4, 13, head_width=256, query_scalar=256, sliding_window=4096, **grouped
        ),
        "gemma3": gemma3.Config(*shape, 4, 13, head_width=256, sliding_window=4096),
        "olmo2": olmo2.Config(*shape, 4, 13, head_width=6, rope_theta=10_000.0, norm_eps=1e-5),
        "olmo3": olmo3.Config(*shape, 4, 13, head_width=6, rope_theta=500_000.0, norm_eps=1e-5),
        "smollm3": smollm3.Config(*shape, 4, 13, head_width=6, rope_theta=2_000_000.0),
        "phi3": phi3.Config(*shape, 4, 13, head_width=6, norm_eps=1e-5),
    }
    assert {family: layouts.read_config(published(family)) for family in FAMILIES} == {
        family: (family, config) for family, config in expected.items()
    }


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_null_is_no_window(family):
    config = layouts.read_config(published(family, sliding_window=None))[1]
    assert [config.window(layer) for layer in range(3)] == [0, 0, 0]


def test_windows_of_layers():
    def windows(family: str, **changes) -> list[int]:
        config = layouts.read_config(published(family, sliding_window=5, **changes))[1]
        return [config.window(layer) for layer in range(3)]

    assert windows("mistral") == [5, 5, 5]
    assert windows("gemma2") == [5, 0, 5]
    assert windows("qwen2", max_window_layers=1) == [0, 0, 0]
    assert windows("qwen3", max_window_layers=1, use_sliding_window=True) == [0, 5, 5]
    layers = ["full_attention", "sliding_attention", "sliding_attention"]
    assert windows("qwen2", max_window_layers=1, use_sliding_window=True, layer_types=layers) == [
        0,
        5,
        5,
    ]


YARN = {"rope_type": "yarn", "factor": 4.0}
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.5, 2.0], "long_factor": [4.0, 5.0, 6.0]}
SLIDING, FULL = "sliding_attention", "full_attention"


def of_layers(full: dict, sliding: dict) -> dict:
    return {"rope_parameters": {FULL: full, SLIDING: sliding}}


def test_stretched_positions_that_say_little():
    """Values that transformers takes where a file is silent, and the names that older files have."""

    def read(family: str, **changes):
        return layouts.read_config(published(family, **changes))[1]

    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert (
        read("llama", rope_scaling=llama3, max_position_embeddings=64).rope_original_max_positions
        == 64
    )
    assert read("llama", rope_scaling=llama3).rope_original_max_positions == 2048
    assert read("qwen2", rope_scaling=llama3).rope_original_max_positions == 32768
    assert (
        read(
            "llama", rope_scaling=llama3, original_max_position_embeddings=9
        ).rope_original_max_positions
        == 9
    )
    config = read("qwen2", rope_scaling=YARN | {"original_max_position_embeddings": 32768})
    assert (config.rope_scaling, config.rope_original_max_positions, config.rope_truncate) == (
        "yarn",
        32768,
        True,
    )
    assert (config.rope_low_frequency_factor, config.rope_high_frequency_factor) == (1.0, 32.0)
    assert config.rope_attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    config = read(
        "llama",
        rope_scaling=YARN | {"factor": None, "mscale": 2, "mscale_all_dim": 1},
        max_position_embeddings=64,
    )
    assert (config.rope_scaling_factor, config.rope_attention_factor) == (1.0, 1.0)
    config = read("llama", rope_scaling=YARN | {"mscale": 2, "mscale_all_dim": 1, "beta_fast": 0})
    assert config.rope_attention_factor == pytest.approx(
        (0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1)
    )
    assert config.rope_high_frequency_factor == 32.0
    assert (
        read("llama", rope_scaling={"type": "dynamic", "factor": 2.0}).rope_original_max_positions
        == 2048
    )
    for kind in ("longrope", "su", "yarn"):
        config = read(
            "phi3", rope_scaling=LONGROPE | {"type": kind}, max_position_embeddings=131072
        )
        assert (config.rope_scaling, config.rope_original_max_positions) == ("longrope", 4096)
        assert config.rope_attention_factor == pytest.approx(
            math.sqrt(1 + math.log(32) / math.log(4096))
        )
        assert (config.rope_short_factors, config.rope_long_factors) == (
            "1.0 1.5 2.0",
            "4.0 5.0 6.0",
        )


def test_positions_of_two_kinds_of_layers():
    """The published keys of Gemma 3 and OLMo 3 before transformers 5, and since."""
    linear = {"rope_type": "linear", "factor": 8.0}
    older = {
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": linear,
        "sliding_window_pattern": 2,
    }
    newer = of_layers(linear | {"rope_theta": 1e6}, {"rope_theta": 1e4, "rope_type": "default"})
    newer |= {"layer_types": [SLIDING, FULL, SLIDING]}
    expected = {
        "rope_theta": 1e6,
        "rope_local_theta": 1e4,
        "rope_scaling": "linear",
        "rope_scaling_factor": 8.0,
    }
    for keys in (older, newer, older | newer):
        config = layouts.read_config(published("gemma3", **keys))[1]
        assert {key: getattr(config, key) for key in expected} == expected
        assert config.full_attention_interval == 2
    yarn = YARN | {"original_max_position_embeddings": 8192, "attention_factor": 1.2}
    older = {"rope_theta": 500000, "rope_scaling": yarn}
    newer = of_layers(yarn | {"rope_theta": 500000}, {"rope_theta": 500000})
    for keys in (older, newer):
        config = layouts.read_config(published("olmo3", **keys))[1]
        assert (config.rope_theta, config.rope_scaling, config.rope_attention_factor) == (
            5e5,
            "yarn",
            1.2,
        )


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        ("...", 0),
        ("..x..x", 3),
        ("..x..", 3),
        ("xxx", 1),
        ("x..", None),
        ("..xx", None),
        ("..x...", None),
        ("", 0),
    ],
)
def test_period(marked, expected):
    assert published_configs.period([mark == "x" for mark in marked]) == expected


LINEAR = {"type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "mamba",
            {},
            "model_type is 'mamba': some of its layers are recurrent .*; accepted: gpt_neox, llama",
        ),
        ("nonesuch", {}, "model_type is 'nonesuch'; accepted: gpt_neox, llama"),
        (
            "nonesuch",
            {"vision_config": {"depth": 3}},
            "model_type is 'nonesuch': a model of several modalities",
        ),
        (None, {}, "model_type is None; accepted"),
        (["llama"], {}, "model_type is .*; accepted"),
        (
            "llama",
            {"hidden_act": "gelu"},
            "hidden_act is 'gelu'; accepted for llama: 'silu', 'swish'",
        ),
        (
            "gpt_neox",
            {"hidden_act": "gelu_fast"},
            "hidden_act is 'gelu_fast'; accepted for gpt_neox: 'gelu'",
        ),
        ("gpt_neox", {"attention_bias": False}, "attention_bias is False"),
        ("gpt_neox", {"head_dim": 3}, "head_dim is 3; accepted for gpt_neox: None"),
        (
            "gpt_neox",
            {"rope_theta": 3.0},
            "rope_theta is 3.0, but 10000.0 by the keys of gpt_neox; accepted: one value",
        ),
        (
            "gpt_neox",
            {"partial_rotary_factor": 0.5},
            "partial_rotary_factor is 0.5, but 0.25 by the keys of gpt_neox",
        ),
        (
            "gpt_neox",
            {"rope_scaling": LINEAR},
            "rope_type is 'linear'; accepted for gpt_neox: default",
        ),
        (
            "gpt_neox",
            {"use_parallel_residual": "no"},
            "use_parallel_residual is 'no'; accepted: a value of type bool",
        ),
        ("llama", {"attention_bias": True}, "attention_bias is True; accepted for llama: False"),
        ("llama", {"mlp_bias": True}, "mlp_bias is True"),
        (
            "llama",
            {"rope_scaling": LONGROPE},
            "rope_type is 'longrope'; accepted for llama: default, linear, llama3",
        ),
        ("llama", {"rope_parameters": {"rope_type": "mrope"}}, "rope_type is 'mrope'"),
        (
            "llama",
            {"rope_scaling": YARN | {"rope_type": ["yarn"]}},
            "rope_type is .'yarn'.; accepted",
        ),
        (
            "llama",
            {"rope_scaling": YARN | {"factor": "4"}},
            "rope_parameters.factor is '4'; accepted: a number",
        ),
        (
            "llama",
            {"rope_scaling": YARN | {"factor": -4.0}},
            "rope_parameters.factor is -4.0; accepted: a number from 0",
        ),
        (
            "llama",
            {"rope_scaling": YARN | {"original_max_position_embeddings": 0}},
            "embeddings is 0.0; accepted: at least 2",
        ),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads is 0; accepted: at least 1"),
        ("llama", {"num_key_value_heads": -1}, "num_key_value_heads is -1; accepted: at least 0"),
        (
            "llama",
            {"hidden_size": float("nan")},
            "hidden_size is nan; accepted: a value of type int",
        ),
        (
            "llama",
            {"rope_scaling": YARN | {"truncate": "no"}},
            "truncate of rope_type 'yarn' is 'no'",
        ),
        (
            "phi3",
            {"rope_scaling": LINEAR},
            "rope_type is 'linear'; accepted for phi3: default, longrope",
        ),
        (
            "phi3",
            {"rope_scaling": LONGROPE | {"original_max_position_embeddings": 9}},
            "embeddings is 9, but there is no",
        ),
        (
            "phi3",
            {"rope_scaling": LONGROPE | {"short_factor": None}},
            "there is no rope_parameters.short_factor",
        ),
        (
            "phi3",
            {"rope_scaling": LONGROPE | {"long_factor": [0.0]}},
            r"long_factor of rope_type 'longrope' is \[0.0\]",
        ),
        (
            "phi3",
            {"rope_scaling": LONGROPE | {"original_max_position_embeddings": 9}},
            "accepted: both",
        ),
        (
            "gemma3",
            {"rope_parameters": {"rope_theta": 3.0}},
            "rope_parameters is .*; accepted for gemma3: an object with",
        ),
        (
            "gemma3",
            of_layers({}, LINEAR),
            "rope_parameters.sliding_attention is .*; accepted for gemma3: .* not stretched",
        ),
        (
            "gemma3",
            {"partial_rotary_factor": 0.5},
            "partial_rotary_factor is not 1; accepted for gemma3",
        ),
        (
            "gemma3",
            {"attn_logit_softcapping": 50.0},
            "attn_logit_softcapping is 50.0; accepted for gemma3: None",
        ),
        (
            "gemma3",
            {"layer_types": [FULL, SLIDING, SLIDING]},
            "layer_types is .*; accepted for gemma3: .* every n-th",
        ),
        (
            "gemma3",
            {"layer_types": [FULL, "chunked_attention", FULL]},
            "layer_types is .*; accepted: 3 times",
        ),
        ("gemma3", {"layer_types": [FULL] * 2}, "layer_types is .*; accepted: 3 times"),
        (
            "gemma3",
            {"layer_types": [FULL] * 3, "sliding_window_pattern": 2},
            "but sliding_window_pattern is 2",
        ),
        (
            "olmo3",
            {"rope_theta": 10000.0},
            "rope_theta is 10000.0, and 500000.0 for the layers with a window",
        ),
        (
            "olmo3",
            of_layers(YARN | {"truncate": False}, {}),
            "truncate of rope_type 'yarn' is False; accepted for olmo3",
        ),
        (
            "smollm3",
            {"no_rope_layers": [0, 1, 1]},
            "no_rope_layers is .*; accepted: a 0 for every n-th layer",
        ),
        ("smollm3", {"no_rope_layers": [1, 1]}, "no_rope_layers is .*; accepted: 3 times 0 or 1"),
        (
            "smollm3",
            {"layer_types": [SLIDING] * 3},
            "layer_types is .*; accepted with the other keys",
        ),
        ("olmo2", {"attention_bias": True}, "attention_bias is True; accepted for olmo2: False"),
        (
            "llama",
            {"is_causal": False},
            "is_causal is False: attention is causal here; accepted for llama: True",
        ),
        (
            "llama",
            {"per_layer_config": {"0": {"head_dim": 3}}},
            "per_layer_config is .*: all layers are of one shape",
        ),
        (
            "llama",
            {"transformers_weights": "other.safetensors"},
            "transformers_weights is 'other.safetensors'",
        ),
        (
            "llama",
            {"vision_config": {"depth": 2}},
            "vision_config is .*: a model of several modalities",
        ),
        (
            "llama",
            {"architectures": ["MistralForCausalLM"]},
            "architectures is .*; accepted with model_type 'llama'",
        ),
        (
            "qwen2",
            {"architectures": ["Qwen2ForTokenClassification"]},
            "a token classifier .a process reward model.",
        ),
        (
            "llama",
            {"architectures": ["LlamaModel"]},
            "architectures is .*: a backbone without a head",
        ),
        (
            "llama",
            {"architectures": ["LlamaForRewardModel"]},
            "architectures is .*LlamaForRewardModel.*; accepted",
        ),
        ("llama", {"architectures": "LlamaForCausalLM2"}, "architectures is 'LlamaForCausalLM2'"),
        (
            "llama",
            {"rope_scaling": {"type": "linear"}},
            "no rope_parameters.factor or rope_scaling.factor",
        ),
        ("llama", {"rope_scaling": {"type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        (
            "llama",
            {"rope_parameters": {"full_attention": YARN}},
            "rope_parameters is .*one flat object",
        ),
        (
            "llama",
            {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e4}},
            "rope_theta is 10000.0, rope_theta is 5000",
        ),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (
            "llama",
            {"quantization_config": {"bits": 4}},
            "quantization_config is {'bits': 4}: a quantised folder; dequant",
        ),
        (
            "llama",
            {"compression_config": {"format": "x" * 99}},
            r"compression_config is {'format': 'x*x \.\.\.: a quant",
        ),
        ("llama", {"hidden_size": 24.5}, "hidden_size is 24.5; accepted: a value of type int"),
        ("llama", {"rms_norm_eps": None}, "rms_norm_eps is None"),
        ("qwen3", {"attention_bias": True}, "attention_bias is True"),
        (
            "qwen2",
            {"layer_types": ["sliding_attention"] * 3},
            "layer_types is .*'sliding_attention'",
        ),
        (
            "gemma2",
            {"hidden_activation": "gelu"},
            "hidden_activation is 'gelu'; accepted for gemma2: 'gelu_pytorch_ta",
        ),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma2", {"layer_types": ["full_attention"] * 3}, "layer_types is"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(family, changes, message):
    with pytest.raises(ValueError, match=message):
        layouts.read_config(published(family, **changes))


def test_heads_that_do_not_divide_the_width_are_refused_by_the_model():
    config = layouts.read_config(published("llama", hidden_size=25))[1]
    with pytest.raises(ValueError, match="width 25 is not a multiple of num_heads 4"):
        llama.make(config)


@pytest.mark.parametrize("key", sorted(SHAPE))
def test_a_missing_shape_is_named(key):
    with pytest.raises(ValueError, match=f"there is no '{key}'"):
        layouts.read_config(
            {name: value for name, value in published("llama").items() if name != key}
        )


PRESETS = [
    (family, name) for family in FAMILIES for name in registry.find("models", family).PRESETS
]


LONG = {"rope_scaling": "longrope", "rope_short_factors": "1.0 1.5", "rope_long_factors": "3.0 4.0"}
LONG |= {"rope_scaling_factor": 2.0}
STRETCHED = [
    ("llama", {"rope_scaling": "linear", "rope_scaling_factor": 3.0}),
    (
        "qwen3",
        {
            "rope_scaling": "yarn",
            "rope_scaling_factor": 3.0,
            "rope_attention_factor": 1.1,
            "rope_truncate": False,
        },
    ),
    (
        "mistral",
        {"rope_scaling": "dynamic", "rope_scaling_factor": 3.0, "rope_original_max_positions": 77},
    ),
    ("phi3", LONG | {"head_width": 8, "rotary_fraction": 0.5, "rope_attention_factor": 1.3}),
    (
        "gemma3",
        {"rope_scaling": "linear", "rope_scaling_factor": 3.0, "full_attention_interval": 0},
    ),
    ("olmo3", {"rope_scaling": "llama3", "rope_scaling_factor": 3.0, "rope_theta": 7.0}),
    ("smollm3", {"no_rope_interval": 0, "sliding_window": 5}),
    ("smollm3", {"no_rope_interval": 1, "sliding_window": 5}),
    ("qwen2", {"sliding_window": 5, "first_window_layer": 1}),
]


@pytest.mark.parametrize(
    ("family", "preset", "changes"),
    [(*each, {}) for each in PRESETS] + [(f, "quickstart", c) for f, c in STRETCHED],
)
def test_a_written_config_is_read_back(family, preset, changes):
    """Read as the same model, though fields that mean nothing there may differ."""
    config = registry.find("models", family).PRESETS[preset]
    config = dataclasses.replace(config, vocab_size=config.vocab_size or 11, **changes)
    read_family, read = layouts.read_config(layouts.write_config(family, config))
    assert read_family == family
    assert published_configs.computed(read) == published_configs.computed(config)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"rope_theta": 3.0}),
        ("llama", {"head_width": 3}),
        ("mistral", {"sliding_window": 3}),
        ("gemma3", {"rope_local_theta": 3.0}),
        ("gemma3", {"full_attention_interval": 1}),
        ("smollm3", {"no_rope_interval": 0}),
        ("phi3", {"rotary_fraction": 0.25}),
        ("gpt_neox", {"rotary_fraction": 0.25}),
        ("olmo2", {"tie_embeddings": True}),
    ],
)
def test_configs_of_other_numbers_compute_something_else(family, changes):
    config = registry.find("models", family).PRESETS["quickstart"]
    assert published_configs.computed(
        dataclasses.replace(config, **changes)
    ) != published_configs.computed(config)


def test_a_family_without_a_published_form_is_not_written():
    with pytest.raises(
        ValueError, match="the family 'mine' has no published form; accepted: gpt_neox, llama"
    ):
        layouts.write_config("mine", llama.PRESETS["quickstart"])


# Keys of transformers' configs that change no logit: token ids, dropout (in training alone), how
# weights are first drawn or held, and what a classifier does with its labels.
INERT = {
    *(
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "initializer_range",
        "use_cache",
        "pretraining_tp",
        "is_decoder",
    ),
    *(
        "attention_dropout",
        "hidden_dropout",
        "classifier_dropout",
        "resid_pdrop",
        "embd_pdrop",
        "chunk_size_feed_forward",
    ),
    *(
        "id2label",
        "label2id",
        "problem_type",
        "transformers_version",
        "output_hidden_states",
        "return_dict",
        "dtype",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_that_transformers_has_is_read_refused_or_inert(family):
    """A newer version of transformers may have a key more, which then fails here and not in
    silence.
    """
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(published_families.model_type(family))
    family_keys = published_families.FAMILIES[family]
    known = (
        {key for key, _ in family_keys.fields.values()}
        | family_keys.accepted.keys()
        | published_families.ALWAYS.keys()
    )
    known |= published_configs.LAYER_KEYS | published_rope.KEYS | {"architectures", "model_type"}
    assert {field.name for field in dataclasses.fields(config)} <= known | INERT


def test_defaults_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    for family, ours in published_families.FAMILIES.items():
        theirs = transformers.AutoConfig.for_model(published_families.model_type(family))
        assert ours.max_positions == theirs.max_position_embeddings
        assert ours.pad_id == theirs.pad_token_id
        rope = theirs.rope_parameters
        assert ours.theta == rope.get("full_attention", rope)["rope_theta"]
        for key, default in ours.fields.values():
            if default is not published_families.REQUIRED:
                assert (
                    default == getattr(theirs, key, None)
                    or default is None
                    or key == "sliding_window"
                ), (
                    family,
                    key,
                )


def test_kinds_that_are_refused_are_none_that_are_read():
    assert not published_kinds.NOT_COMPUTED.keys() & published_families.MODEL_TYPES.keys()
    assert {"qwen3_5", "mixtral", "gemma3", "bert"} <= published_kinds.NOT_COMPUTED.keys()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_param_is_named_once(family, tied):
    module = registry.find("models", family)
    config = dataclasses.replace(module.PRESETS["quickstart"], vocab_size=11, tie_embeddings=tied)
    shapes = flatten_dict(jax.eval_shape(module.make(config).init, jax.random.key(0)), sep="/")
    tensors = layouts.tensors(family, config)
    assert tensors.keys() == shapes.keys()
    names = [tensor.name for tensor in tensors.values()]
    rows = sorted(
        (tensor.name, tensor.start, tensor.stop, tensor.shape[0]) for tensor in tensors.values()
    )
    for name in set(names):  # the rows of a tensor are one after the other, all of them
        parts = [part[1:] for part in rows if part[0] == name]
        assert [start for start, *_ in parts] == [0, *(stop for _, stop, _ in parts[:-1])]
        assert parts[-1][1] == parts[-1][2]
        assert len(parts) == 1 or family == "phi3"
    assert (layouts.head_name(family) in names) == (not tied)
    assert not any(
        layouts.ignored(family, name) for name in names if name != layouts.head_name(family)
    )
    for path, tensor in tensors.items():
        assert tensor.transpose == path.endswith("kernel")
        assert tensor.rows_shape == (
            shapes[path].shape[::-1] if tensor.transpose else shapes[path].shape
        )


def test_names_by_hand():
    config = dataclasses.replace(gpt_neox.PRESETS["quickstart"], vocab_size=11)
    tensors = layouts.tensors("gpt_neox", config)
    name = "gpt_neox.layers.1.attention.query_key_value.weight"
    assert tensors["layer_1/query_key_value/kernel"] == (name, True, (192, 64), 0, 192)
    assert tensors["embed_in/embedding"] == ("gpt_neox.embed_in.weight", False, (11, 64), 0, 11)
    assert tensors["embed_out/kernel"] == ("embed_out.weight", True, (11, 64), 0, 11)
    assert tensors["final_layer_norm/bias"].name == "gpt_neox.final_layer_norm.bias"
    tensors = layouts.tensors(
        "qwen3", dataclasses.replace(qwen3.PRESETS["quickstart"], vocab_size=11)
    )
    assert tensors["layer_0/q_norm/scale"] == (
        "model.layers.0.self_attn.q_norm.weight",
        False,
        (24,),
        0,
        24,
    )
    assert tensors["layer_0/o_proj/kernel"] == (
        "model.layers.0.self_attn.o_proj.weight",
        True,
        (64, 96),
        0,
        64,
    )
    assert tensors["layer_1/down_proj/kernel"] == (
        "model.layers.1.mlp.down_proj.weight",
        True,
        (64, 192),
        0,
        64,
    )
    tensors = layouts.tensors(
        "gemma2", dataclasses.replace(gemma2.PRESETS["quickstart"], vocab_size=11)
    )
    name = "model.layers.0.pre_feedforward_layernorm.weight"
    assert tensors["layer_0/pre_feedforward_layernorm/weight"] == (name, False, (64,), 0, 64)
    tensors = layouts.tensors(
        "phi3", dataclasses.replace(phi3.PRESETS["quickstart"], vocab_size=11)
    )
    name = "model.layers.1.self_attn.qkv_proj.weight"  # 4 heads of 16, then 2 and 2
    assert tensors["layer_1/q_proj/kernel"] == (name, True, (128, 64), 0, 64)
    assert tensors["layer_1/v_proj/kernel"] == (name, True, (128, 64), 96, 128)
    assert tensors["layer_1/up_proj/kernel"] == (
        "model.layers.1.mlp.gate_up_proj.weight",
        True,
        (384, 64),
        192,
        384,
    )
    assert layouts.sequence_classifier("gemma3") == "Gemma3TextForSequenceClassification"
    assert layouts.architecture("gpt_neox") == "GPTNeoXForCausalLM"
    assert layouts.sequence_classifier("gemma2") == "Gemma2ForSequenceClassification"


@pytest.mark.parametrize(
    ("family", "name", "expected"),
    [
        ("gpt_neox", "gpt_neox.layers.0.attention.bias", True),
        ("gpt_neox", "gpt_neox.layers.15.attention.masked_bias", True),
        ("gpt_neox", "gpt_neox.layers.3.attention.rotary_emb.inv_freq", True),
        ("llama", "model.layers.3.self_attn.rotary_emb.inv_freq", True),
        ("gpt_neox", "embed_out.weight", True),
        ("llama", "lm_head.weight", True),
        ("gpt_neox", "lm_head.weight", False),
        ("gpt_neox", "gpt_neox.layers.0.attention.dense.bias", False),
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value.bias", False),
        ("gpt_neox", "gpt_neox.layers.0.input_layernorm.bias", False),
        ("llama", "score.weight", False),
    ],
)
def test_computed_tensors_are_ignored_and_no_others(family, name, expected):
    assert layouts.ignored(family, name) == expected


# Sizes of the published safetensors, embeddings counted once where tied: by hand for qwen3-0.6b, of
# width 1024 with 16 + 2 * 8 heads of 128: 151936*1024 + 28*(1024*(2048 + 2*1024) + 2048*1024 +
# 3*1024*3072 + 2*128 + 2*1024) + 1024 = 596,049,920.
PUBLISHED = {
    ("mistral", "mistral-7b-v0.1"): 7_241_732_096,
    ("mistral", "mistral-7b-v0.3"): 7_248_023_552,
    ("qwen2", "qwen2.5-0.5b"): 494_032_768,
    ("qwen2", "qwen2.5-1.5b"): 1_543_714_304,
    ("qwen2", "qwen2.5-7b"): 7_615_616_512,
    ("qwen2", "qwen2.5-32b"): 32_763_876_352,
    ("qwen3", "qwen3-0.6b"): 596_049_920,
    ("qwen3", "qwen3-8b"): 8_190_735_360,
    ("gemma2", "gemma-2-2b"): 2_614_341_888,
    ("gemma2", "gemma-2-9b"): 9_241_705_984,
    ("gemma2", "gemma-2-27b"): 27_227_128_320,
    ("gemma3", "gemma-3-270m"): 268_098_176,
    ("gemma3", "gemma-3-1b"): 999_885_952,
    ("olmo2", "olmo-2-1b"): 1_484_916_736,
    ("olmo2", "olmo-2-7b"): 7_298_617_344,
    ("olmo2", "olmo-2-13b"): 13_716_198_400,
    ("olmo3", "olmo-3-7b"): 7_298_011_136,
    ("smollm3", "smollm3-3b"): 3_075_098_624,
    ("phi3", "phi-3-mini-4k"): 3_821_079_552,
    ("phi3", "phi-3-medium-4k"): 13_960_238_080,
    ("phi3", "phi-4"): 14_659_507_200,
}


@pytest.mark.parametrize(("family", "preset"), sorted(PUBLISHED))
def test_published_number_of_params(family, preset):
    """Counted for one layer and for two, which gives it for all without tracing them."""

    def size(num_layers: int) -> int:
        config = dataclasses.replace(
            registry.find("models", family).PRESETS[preset], num_layers=num_layers
        )
        return sum(
            math.prod(tensor.rows_shape) for tensor in layouts.tensors(family, config).values()
        )

    one, two = size(1), size(2)
    num_layers = registry.find("models", family).PRESETS[preset].num_layers
    assert one + (num_layers - 1) * (two - one) == PUBLISHED[family, preset]
