"""Every family against transformers: tiny random models, ragged left padding, with and without a
cache, there and back.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from rlhf_jax import registry
from rlhf_jax.pretrained import export, layouts, published_configs, published_families

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

V, B, L, PREFILLED = 11, 3, 13, 7
PADS = (0, 2, 5)
QUICK = {
    "xla_backend_optimization_level": 0
}  # halves the time to compile, which is most of the time here
SHAPE = {
    "vocab_size": V,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
GROUPED = SHAPE | {"num_key_value_heads": 2, "rope_theta": 50.0}
# Caps within reach of the scores and logits of these params; a query scale that is not the heads'
# width.
GEMMA = GROUPED | {
    "head_dim": 10,
    "query_pre_attn_scalar": 3,
    "sliding_window": 3,
    "attn_logit_softcapping": 1.5,
    "final_logit_softcapping": 2.5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 20,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}
GEMMA3 = GROUPED | {
    "head_dim": 10,
    "query_pre_attn_scalar": 3,
    "sliding_window": 3,
    "num_hidden_layers": 3,
}
GEMMA3 |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
OLMO3 = GROUPED | {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}


def of_layers(theta: float, local_theta: float, **scaling) -> dict:
    """Rotary parameters of a family whose layers with a window have their own."""
    full = {"rope_theta": theta, "rope_type": "default"} | scaling
    return {
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {"rope_theta": local_theta},
        }
    }


CASES = {
    "gpt_neox": ("gpt_neox", SHAPE | {"rotary_pct": 0.7, "rotary_emb_base": 50.0}),
    "gpt_neox, sequential residual": (
        "gpt_neox",
        SHAPE | {"rotary_pct": 0.4, "use_parallel_residual": False, "layer_norm_eps": 1e-2},
    ),
    "gpt_neox, tied": ("gpt_neox", SHAPE | {"rotary_pct": 1.0, "tie_word_embeddings": True}),
    "llama": ("llama", GROUPED | {"rms_norm_eps": 1e-2}),
    "llama, linear": ("llama", GROUPED | {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
    "llama, stretched and tied": (
        "llama",
        GROUPED | {"rope_scaling": LLAMA3, "tie_word_embeddings": True},
    ),
    "llama, wide heads": ("llama", GROUPED | {"head_dim": 10}),
    "mistral": ("mistral", GROUPED | {"sliding_window": None}),
    "mistral, window": ("mistral", GROUPED | {"sliding_window": 3}),
    "qwen2": ("qwen2", GROUPED | {"sliding_window": 3}),
    "qwen2, window": (
        "qwen2",
        GROUPED | {"sliding_window": 3, "use_sliding_window": True, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", GROUPED | {"head_dim": 10, "tie_word_embeddings": True}),
    "gemma2": ("gemma2", GEMMA),
    "gemma2, no caps": (
        "gemma2",
        GEMMA
        | {
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    ),
    "llama, yarn": ("llama", GROUPED | {"rope_scaling": YARN}),
    "llama, yarn as DeepSeek has it": (
        "llama",
        GROUPED
        | {
            "rope_scaling": YARN
            | {"mscale": 0.7, "mscale_all_dim": 1.3, "beta_fast": 4, "truncate": False}
        },
    ),
    "llama, dynamic": (
        "llama",
        GROUPED | {"rope_scaling": {"rope_type": "dynamic", "factor": 3.0}},
    ),
    "gemma3": ("gemma3_text", GEMMA3 | of_layers(50.0, 7.0, rope_type="linear", factor=3.0)),
    "gemma3, cap and head": (
        "gemma3_text",
        GEMMA3
        | of_layers(50.0, 7.0)
        | {"final_logit_softcapping": 2.5, "tie_word_embeddings": False},
    ),
    "olmo2": ("olmo2", GROUPED),
    "olmo2, tied": ("olmo2", GROUPED | {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "olmo3": ("olmo3", OLMO3 | of_layers(50.0, 50.0, **YARN, attention_factor=1.3)),
    "olmo3, tied": ("olmo3", OLMO3 | of_layers(50.0, 50.0) | {"tie_word_embeddings": True}),
    "smollm3": ("smollm3", GROUPED | {"no_rope_layers": [1, 0]}),
    "smollm3, window": (
        "smollm3",
        GROUPED | {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 3},
    ),
    "smollm3, head": ("smollm3", GROUPED | {"tie_word_embeddings": False}),
    "phi3": ("phi3", GROUPED | {"sliding_window": 3}),
    "phi3, part of a head": (
        "phi3",
        GROUPED | {"head_dim": 8, "partial_rotary_factor": 0.75, "tie_word_embeddings": True},
    ),
    "phi3, longrope": (
        "phi3",
        GROUPED
        | {"hidden_size": 32, "partial_rotary_factor": 0.5, "rope_scaling": LONGROPE}
        | {"max_position_embeddings": 64, "original_max_position_embeddings": 16},
    ),
}


CACHED = ["gpt_neox", "llama", "mistral, window", "qwen2, window", "qwen3", "gemma2"]
CACHED += ["gemma3", "olmo2", "olmo3", "smollm3", "smollm3, window", "phi3", "phi3, longrope"]


def hf_config(model_type: str, **settings):
    return transformers.AutoConfig.for_model(model_type, attn_implementation="eager", **settings)


def hf_model(config, seed: int = 0):
    """A model of transformers, all params random: norms and biases too, away from 0 and 1."""
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager"
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            noise = torch.randn(param.shape, generator=generator)
            param.copy_(noise * 0.4 if param.ndim > 1 else 1 + 0.3 * noise)
    return model


def in_memory(name: str) -> str:
    """transformers 5 writes `embed_out` into files still, but calls it as other families' heads
    once it is loaded.
    """
    return name.replace("embed_out", "lm_head")


def params_of(state_dict, family: str, config) -> dict:
    found = {}
    for path, tensor in layouts.tensors(family, config).items():
        array = state_dict[in_memory(tensor.name)].numpy()
        assert array.shape == tensor.shape
        array = array[tensor.start : tensor.stop]
        found[tuple(path.split("/"))] = jnp.asarray(array.T if tensor.transpose else array)
    return unflatten_dict(found)


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, positions and mask."""
    tokens_BL = np.random.default_rng(0).integers(0, V, (B, L), np.int32)
    mask_BL = np.arange(L)[None] >= np.array(PADS)[:, None]
    return tokens_BL, np.maximum(mask_BL.cumsum(1) - 1, 0).astype(np.int32), mask_BL


def hf_logits(model) -> np.ndarray:
    tokens_BL, positions_BL, mask_BL = batch()
    with torch.no_grad():
        inputs = (torch.from_numpy(x.astype(np.int64)) for x in (tokens_BL, mask_BL, positions_BL))
        return model(
            **dict(zip(("input_ids", "attention_mask", "position_ids"), inputs, strict=True))
        ).logits.numpy()


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """(model of transformers, family, our config, model and params)."""
    model_type, settings = CASES[request.param]
    theirs = hf_model(hf_config(model_type, **settings))
    family, config = layouts.read_config(theirs.config.to_dict())
    assert published_families.model_type(family) == model_type
    return (
        theirs,
        family,
        config,
        registry.find("models", family).make(config),
        params_of(theirs.state_dict(), family, config),
    )


def test_logits_are_those_of_transformers(case):
    theirs, _, _, model, params = case

    def logits(params, *columns):
        return model.head(params, model.apply(params, *columns)[0])

    mask_BL, expected = batch()[2], hf_logits(theirs)
    actual = np.asarray(jax.jit(logits, compiler_options=QUICK)(params, *batch()))
    assert np.std(expected) > 0.3
    np.testing.assert_allclose(actual[mask_BL], expected[mask_BL], atol=1e-4)


@pytest.mark.parametrize("case", CACHED, indirect=True)
def test_logits_with_a_cache_are_those_of_transformers(case):
    """A prefill, then a token at a time, past the ends of the sliding windows."""
    theirs, _, _, model, params = case

    def logits(params, *columns):
        first, cache = model.apply(
            params, *(x[:, :PREFILLED] for x in columns), model.init_cache(B, L + 2)
        )

        def step(cache, column):
            hidden, cache = model.apply(params, *(x[:, None] for x in column), cache)
            return cache, hidden[:, 0]

        _, later = jax.lax.scan(step, cache, tuple(x[:, PREFILLED:].T for x in columns))
        return model.head(params, jnp.concatenate([first, later.swapaxes(0, 1)], axis=1))

    mask_BL = batch()[2]
    actual = np.asarray(jax.jit(logits, compiler_options=QUICK)(params, *batch()))
    np.testing.assert_allclose(actual[mask_BL], hf_logits(theirs)[mask_BL], atol=1e-4)


def test_a_written_config_builds_the_same_model_in_transformers(case):
    """Our config.json and our tensors' names, loaded there: the same shapes, the same logits bit
    for bit.
    """
    theirs, family, config, _, params = case
    written = layouts.write_config(family, config)
    rebuilt = hf_model(hf_config(**written), seed=1)
    state = {
        in_memory(name): torch.from_numpy(np.array(fetch()))
        for name, (_, fetch) in export.published_tensors(family, config, params)
    }
    missing, unexpected = rebuilt.load_state_dict(state, strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if config.tie_embeddings else [])
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    np.testing.assert_array_equal(hf_logits(rebuilt), hf_logits(theirs))
    for again in (rebuilt.config.to_dict(), written):
        assert layouts.read_config(again)[0] == family
        assert published_configs.computed(
            layouts.read_config(again)[1]
        ) == published_configs.computed(config)


def test_every_param_of_transformers_is_named(case):
    theirs, family, config, *_ = case
    named = {
        in_memory(tensor.name): tensor.shape for tensor in layouts.tensors(family, config).values()
    }
    assert named == {name: tuple(param.shape) for name, param in theirs.named_parameters()}
    assert type(theirs).__name__ == layouts.architecture(family)
    classifier = transformers.AutoModelForSequenceClassification.from_config(theirs.config)
    assert type(classifier).__name__ == layouts.sequence_classifier(family)
    backbone = {name for name in named if name != "lm_head.weight"}
    assert {name for name, _ in classifier.named_parameters()} == backbone | {"score.weight"}
