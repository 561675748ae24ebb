"""How published folders name things: both generations of config keys, refusals by name, every param named once."""

import dataclasses
import math

import jax
import pytest
from flax.traverse_util import flatten_dict

from rlhf_jax import plugins
from rlhf_jax.hub import layouts
from rlhf_jax.models import gemma2, gpt_neox, llama, mistral, qwen2, qwen3

FAMILIES = ("gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma2")
SHAPE = {
    "vocab_size": 11,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 13,
}


def published(family: str, **changes) -> dict:
    return SHAPE | {"model_type": family} | changes


# The config.json of EleutherAI/pythia-1b (transformers 4), of meta-llama/Llama-3.2-1B (4) and as version 5 writes the same.
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
    newer["rope_parameters"] = {"rope_theta": 10000, "rope_type": "default", "partial_rotary_factor": 0.25}
    assert layouts.read_config(newer) == layouts.read_config(PYTHIA_1B)
    newer["rope_parameters"] = newer["rope_parameters"] | {"partial_rotary_factor": 0.5, "rope_theta": 77}
    assert layouts.read_config(newer)[1] == dataclasses.replace(
        gpt_neox.PRESETS["pythia-1b"], rotary_fraction=0.5, rope_theta=77.0
    )
    newer = {key: value for key, value in LLAMA_3_2_1B.items() if not key.startswith("rope")}
    newer["rope_parameters"] = LLAMA_3_2_1B["rope_scaling"] | {"rope_theta": 500000.0}
    assert layouts.read_config(newer) == layouts.read_config(LLAMA_3_2_1B)
    assert layouts.read_config(newer | LLAMA_3_2_1B) == layouts.read_config(LLAMA_3_2_1B)


def test_missing_keys_mean_the_published_defaults():
    """By the table of each family's configuration file in transformers 5.23."""
    shape = (11, 24, 3, 4)
    grouped = {"rope_theta": 10_000.0, "norm_eps": 1e-6}
    expected = {
        "gpt_neox": gpt_neox.Config(*shape, 13),
        "llama": llama.Config(*shape, 4, 13, head_width=6, **grouped),
        "mistral": mistral.Config(*shape, 8, 13, head_width=6, sliding_window=4096, **grouped),
        "qwen2": qwen2.Config(*shape, 32, 13, head_width=6, **grouped),
        "qwen3": qwen3.Config(*shape, 32, 13, head_width=128, **grouped),
        "gemma2": gemma2.Config(*shape, 4, 13, head_width=256, query_scalar=256, sliding_window=4096, **grouped),
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
    assert windows("qwen2", max_window_layers=1, use_sliding_window=True, layer_types=layers) == [0, 5, 5]


YARN = {"rope_type": "yarn", "factor": 4.0}
LINEAR = {"type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("mamba", {}, "model_type is 'mamba'; accepted: gpt_neox, llama"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; accepted for llama: 'silu', 'swish'"),
        ("gpt_neox", {"hidden_act": "gelu_fast"}, "hidden_act is 'gelu_fast'; accepted for gpt_neox: 'gelu'"),
        ("gpt_neox", {"attention_bias": False}, "attention_bias is False"),
        ("gpt_neox", {"rope_scaling": LINEAR}, "rope_type is 'linear'; accepted: default"),
        ("gpt_neox", {"use_parallel_residual": "no"}, "use_parallel_residual is 'no'; accepted: a value of type bool"),
        ("llama", {"attention_bias": True}, "attention_bias is True; accepted for llama: False"),
        ("llama", {"mlp_bias": True}, "mlp_bias is True"),
        ("llama", {"rope_scaling": YARN}, "rope_type is 'yarn'; accepted: default, linear, llama3"),
        ("llama", {"rope_parameters": YARN}, "rope_type is 'yarn'"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "no rope_parameters.factor or rope_scaling.factor"),
        ("llama", {"rope_scaling": {"type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ("llama", {"rope_parameters": {"full_attention": YARN}}, "rope_parameters is .*one flat object"),
        ("llama", {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e4}}, "rope_theta is 500000.0, rope_param"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
        ("llama", {"hidden_size": 24.5}, "hidden_size is 24.5; accepted: a value of type int"),
        ("llama", {"rms_norm_eps": None}, "rms_norm_eps is None"),
        ("qwen3", {"attention_bias": True}, "attention_bias is True"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "layer_types is .*'sliding_attention'"),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'; accepted for gemma2: 'gelu_pytorch_ta"),
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
        layouts.read_config({name: value for name, value in published("llama").items() if name != key})


PRESETS = [(family, name) for family in FAMILIES for name in plugins.find("models", family).PRESETS]


@pytest.mark.parametrize(("family", "preset"), PRESETS)
def test_a_written_config_is_read_back(family, preset):
    config = plugins.find("models", family).PRESETS[preset]
    if family != "gpt_neox":
        config = dataclasses.replace(config, head_width=config.head_width or config.width // config.num_heads)
    assert layouts.read_config(layouts.write_config(family, config)) == (family, config)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_param_is_named_once(family, tied):
    module = plugins.find("models", family)
    config = dataclasses.replace(module.PRESETS["quickstart"], vocab_size=11, tie_embeddings=tied)
    shapes = flatten_dict(jax.eval_shape(module.make(config).init, jax.random.key(0)), sep="/")
    tensors = layouts.tensors(family, config)
    assert tensors.keys() == shapes.keys()
    names = [tensor.name for tensor in tensors.values()]
    assert len(set(names)) == len(names)
    assert (layouts.head_name(family) in names) == (not tied)
    assert not any(layouts.ignored(family, name) for name in names if name != layouts.head_name(family))
    for path, tensor in tensors.items():
        assert tensor.transpose == path.endswith("kernel")
        assert tensor.shape == (shapes[path].shape[::-1] if tensor.transpose else shapes[path].shape)


def test_names_by_hand():
    config = dataclasses.replace(gpt_neox.PRESETS["quickstart"], vocab_size=11)
    tensors = layouts.tensors("gpt_neox", config)
    name = "gpt_neox.layers.1.attention.query_key_value.weight"
    assert tensors["layer_1/query_key_value/kernel"] == (name, True, (192, 64))
    assert tensors["embed_in/embedding"] == ("gpt_neox.embed_in.weight", False, (11, 64))
    assert tensors["embed_out/kernel"] == ("embed_out.weight", True, (11, 64))
    assert tensors["final_layer_norm/bias"].name == "gpt_neox.final_layer_norm.bias"
    tensors = layouts.tensors("qwen3", dataclasses.replace(qwen3.PRESETS["quickstart"], vocab_size=11))
    assert tensors["layer_0/q_norm/scale"] == ("model.layers.0.self_attn.q_norm.weight", False, (24,))
    assert tensors["layer_0/o_proj/kernel"] == ("model.layers.0.self_attn.o_proj.weight", True, (64, 96))
    assert tensors["layer_1/down_proj/kernel"] == ("model.layers.1.mlp.down_proj.weight", True, (64, 192))
    tensors = layouts.tensors("gemma2", dataclasses.replace(gemma2.PRESETS["quickstart"], vocab_size=11))
    name = "model.layers.0.pre_feedforward_layernorm.weight"
    assert tensors["layer_0/pre_feedforward_layernorm/weight"] == (name, False, (64,))
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


# Sizes of the published safetensors, embeddings counted once where tied: by hand for qwen3-0.6b, of width 1024 with 16 + 2 * 8
# heads of 128: 151936*1024 + 28*(1024*(2048 + 2*1024) + 2048*1024 + 3*1024*3072 + 2*128 + 2*1024) + 1024 = 596,049,920.
PUBLISHED = {
    ("mistral", "mistral-7b-v0.1"): 7_241_732_096,
    ("mistral", "mistral-7b-v0.3"): 7_248_023_552,
    ("qwen2", "qwen2.5-0.5b"): 494_032_768,
    ("qwen2", "qwen2.5-1.5b"): 1_543_714_304,
    ("qwen2", "qwen2.5-7b"): 7_615_616_512,
    ("qwen3", "qwen3-0.6b"): 596_049_920,
    ("qwen3", "qwen3-8b"): 8_190_735_360,
    ("gemma2", "gemma-2-2b"): 2_614_341_888,
    ("gemma2", "gemma-2-9b"): 9_241_705_984,
    ("gemma2", "gemma-2-27b"): 27_227_128_320,
}


@pytest.mark.parametrize(("family", "preset"), sorted(PUBLISHED))
def test_published_number_of_params(family, preset):
    """Of one layer and of two, which says it of all without tracing them."""

    def size(num_layers: int) -> int:
        config = dataclasses.replace(plugins.find("models", family).PRESETS[preset], num_layers=num_layers)
        return sum(math.prod(tensor.shape) for tensor in layouts.tensors(family, config).values())

    one, two = size(1), size(2)
    num_layers = plugins.find("models", family).PRESETS[preset].num_layers
    assert one + (num_layers - 1) * (two - one) == PUBLISHED[family, preset]
