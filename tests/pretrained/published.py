"""Published folders of every family, made here with random weights, and how both sides read them."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from rlhf_jax.devices import sharding
from rlhf_jax.ops.masked import positions_from_mask
from rlhf_jax.pretrained import folders
from rlhf_jax.stages.common import pretrained_models
from tests import tiny

SHAPE = {
    "vocab_size": 11,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
GROUPED = SHAPE | {"num_key_value_heads": 1, "rope_theta": 50.0}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3}
GEMMA = GROUPED | {"head_dim": 8, "query_pre_attn_scalar": 3, "sliding_window": 3}


def rope(theta: float, local_theta: float, **scaling) -> dict:
    """Rotary parameters of a family whose layers with a window have their own."""
    full = {"rope_theta": theta, "rope_type": "default"} | scaling
    return {
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {"rope_theta": local_theta},
        }
    }


# What a config.json says, by a name of the folder; every number that a family has is away from its
# default.
FOLDERS = {
    "gpt_neox": (
        "gpt_neox",
        SHAPE | {"rotary_pct": 0.5, "rotary_emb_base": 50.0, "layer_norm_eps": 1e-3},
    ),
    "llama": ("llama", GROUPED | {"rms_norm_eps": 1e-3, "head_dim": 6}),
    "llama, yarn": (
        "llama",
        GROUPED
        | {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}},
    ),
    "mistral": ("mistral", GROUPED | {"sliding_window": 3}),
    "qwen2": (
        "qwen2",
        GROUPED | {"sliding_window": 3, "use_sliding_window": True, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", GROUPED | {"head_dim": 6, "tie_word_embeddings": True}),
    "gemma2": ("gemma2", GEMMA | {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.5}),
    "gemma3": ("gemma3_text", GEMMA | LAYERS | rope(50.0, 7.0, rope_type="linear", factor=3.0)),
    "olmo2": ("olmo2", GROUPED | {"rms_norm_eps": 1e-3}),
    "olmo3": (
        "olmo3",
        GROUPED
        | LAYERS
        | rope(
            50.0,
            50.0,
            rope_type="yarn",
            factor=4.0,
            original_max_position_embeddings=8,
            attention_factor=1.2,
        ),
    ),
    "smollm3": (
        "smollm3",
        GROUPED | {"no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 3},
    ),
    "phi3": (
        "phi3",
        GROUPED
        | {"partial_rotary_factor": 0.5, "sliding_window": 3, "max_position_embeddings": 64}
        | {
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 2.0],
                "long_factor": [3.0, 4.0],
            }
        },
    ),
}
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
TOKENS = np.array([[3, 4, 5, 6, 7, 3, 8, 9], [3, 9, 10, 2, 8, 4, 4, 5]])


def random_torch(model):
    """The model with every parameter drawn anew, norms and biases too."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator) + (
            parameter.ndim == 1
        )
    return model.eval()


def write(path: Path, name: str, auto: str = "AutoModelForCausalLM", **changes) -> Path:
    """A folder as transformers saves it, whose config.json says what `FOLDERS` says and not what
    transformers adds.
    """
    import transformers

    model_type, settings = FOLDERS[name]
    config = {"model_type": model_type} | settings | IDS | changes
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    model = random_torch(
        getattr(transformers, auto).from_config(transformers.AutoConfig.from_pretrained(path))
    )
    model.save_pretrained(path)
    written = json.loads((path / "config.json").read_text())
    config |= {"architectures": written["architectures"], "transformers_version": "4.40.0"}
    (path / "config.json").write_text(json.dumps(config))
    return path


def theirs(
    path: Path, tokens_BL: np.ndarray = TOKENS, auto: str = "AutoModelForCausalLM"
) -> np.ndarray:
    """What transformers computes of a folder: logits."""
    import torch
    import transformers

    model = (
        getattr(transformers, auto)
        .from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
        .eval()
    )
    with torch.no_grad():
        return model(torch.tensor(tokens_BL)).logits.numpy()


def one_device(model):
    return sharding.params_shardings(
        model, jax.eval_shape(model.init, jax.random.key(0)), tiny.make_mesh((1, 1, 1))
    )


def load(path: Path, dtype: str = "float32"):
    """The model and the params of a folder."""
    folder = folders.Folder(path)
    model = pretrained_models.model_of(folder)
    return model, folders.load(folder, model, one_device(model), dtype)


def read_classifier(path: Path):
    """The value model and the params of a published reward model."""
    model = pretrained_models.classifier(str(path))
    return model, pretrained_models.load_classifier(str(path), model, tiny.make_mesh((1, 1, 1)))


def ours(path: Path, tokens_BL: np.ndarray = TOKENS) -> np.ndarray:
    """What we compute of a folder: logits."""
    model, params = load(path)
    mask_BL = jnp.ones(tokens_BL.shape, bool)
    hidden, _ = jax.jit(model.apply)(
        params, jnp.asarray(tokens_BL), positions_from_mask(mask_BL), mask_BL
    )
    return np.asarray(model.head(params, hidden))


def check_equal(one, other) -> None:
    one, other = flatten_dict(one), flatten_dict(other)
    assert one.keys() == other.keys()
    for path, array in one.items():
        np.testing.assert_array_equal(
            np.asarray(array), np.asarray(other[path]), err_msg="/".join(path)
        )


def copied(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def rewrite(path: Path, change) -> None:
    """The folder with its tensors changed."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path / folders.SINGLE)
    change(tensors)
    save_file(tensors, path / folders.SINGLE, metadata={"format": "pt"})


def configure(path: Path, **changes) -> Path:
    """The folder with keys of its config.json changed; None takes a key away."""
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if value is not None})
    )
    return path
