"""PEFT folders: names of tensors by family, a round trip, and what is refused."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax import randomness
from rlhf_jax.models.common import adapters
from rlhf_jax.models.common.adapters import Adapted, Config
from rlhf_jax.models.common.family import find
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.ops.masked import positions_from_mask
from rlhf_jax.pretrained import peft
from rlhf_jax.refusal import MissingInput, Refusal
from tests.models.families import FAMILIES, config_of, random_params

LORA = Config(rank=3, alpha=6.0)
LLAMA = [
    "mlp.down_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "self_attn.k_proj",
    "self_attn.o_proj",
    "self_attn.q_proj",
    "self_attn.v_proj",
]
GOLDEN = {
    "gpt_neox": (
        "gpt_neox.layers",
        [
            "attention.dense",
            "attention.query_key_value",
            "mlp.dense_4h_to_h",
            "mlp.dense_h_to_4h",
        ],
    ),
    "phi3": (
        "model.layers",
        ["mlp.down_proj", "mlp.gate_up_proj", "self_attn.o_proj", "self_attn.qkv_proj"],
    ),
}
"""Prefix and modules of a layer, by family; of all others those of Llama."""


def adapted(name: str, seed: int = 0, **changes):
    model = find(name).make(config_of(name, **changes))
    adapter = adapters.init(model, LORA, randomness.key(seed))
    random = np.random.default_rng(seed)
    moved = jax.tree.map(
        lambda x: x + jnp.asarray(0.1 * random.standard_normal(x.shape, np.float32)), adapter
    )
    return model, Adapted(random_params(model, seed), moved, LORA.scale)


@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_have_the_names_of_peft(name, tmp_path):
    model, params = adapted(name)
    peft.write(tmp_path, model, params, LORA, "some/base", "float32")
    prefix, modules = GOLDEN.get(name, ("model.layers", LLAMA))
    expected = {
        f"base_model.model.{prefix}.{layer}.{module}.lora_{matrix}.weight"
        for layer in range(model.config.num_layers)
        for module in modules
        for matrix in "AB"
    }
    arrays = load_file(str(tmp_path / peft.WEIGHTS))
    assert set(arrays) == expected
    stored = json.loads((tmp_path / peft.CONFIG).read_text())
    assert (stored["r"], stored["lora_alpha"], stored["peft_type"]) == (3, 6, "LORA")
    assert stored["target_modules"] == sorted({m.rpartition(".")[2] for m in modules})
    assert stored["base_model_name_or_path"] == "some/base"
    ranks = {"phi3": {"qkv_proj": 9, "gate_up_proj": 6}}.get(name, {})
    assert stored["rank_pattern"] == ranks
    assert stored["alpha_pattern"] == {module: 2 * rank for module, rank in ranks.items()}


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "phi3"])
def test_a_folder_is_read_as_it_was_written(name, tmp_path):
    model, params = adapted(name)
    peft.write(tmp_path, model, params, LORA, "", "float32")
    again = peft.read(tmp_path, model, LORA)
    assert jax.tree.structure(again) == jax.tree.structure(dict(params.adapter))
    jax.tree.map(np.testing.assert_array_equal, again, params.adapter)


def test_matrices_that_are_published_as_one_share_their_a(tmp_path):
    """A folder of PEFT's own for Phi 3: one A for queries, keys and values."""
    model, params = adapted("phi3")
    random, arrays = np.random.default_rng(0), {}
    for name, array in peft.published(model, params).items():
        rows, columns = array.shape
        shape = (3, columns) if name.endswith(peft.A) else (rows, 3)
        arrays[name] = random.standard_normal(shape, np.float32)
    save_file(arrays, str(tmp_path / peft.WEIGHTS))
    stored = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "bias": "none"}
    (tmp_path / peft.CONFIG).write_text(json.dumps(stored))
    layer = peft.read(tmp_path, model, LORA)["layer_0"]
    stem = "base_model.model.model.layers.0.self_attn.qkv_proj"
    rows = [layer[name]["b"].T for name in ("q_proj", "k_proj", "v_proj")]
    np.testing.assert_array_equal(np.concatenate(rows), arrays[stem + peft.B])
    for name in ("q_proj", "k_proj", "v_proj"):
        np.testing.assert_array_equal(layer[name]["a"].T, arrays[stem + peft.A])


def test_a_reward_model_has_its_head_in_the_folder(tmp_path):
    model, policy = adapted("llama")
    params = ValueModel(model).init_from(policy, jax.random.key(0))
    peft.write(tmp_path, model, params, LORA, "", "float32")
    arrays = load_file(str(tmp_path / peft.WEIGHTS))
    head = arrays["base_model.model.score.weight"]
    np.testing.assert_array_equal(head, params["value_head"]["kernel"].T)
    stored = json.loads((tmp_path / peft.CONFIG).read_text())
    assert (stored["task_type"], stored["modules_to_save"]) == ("SEQ_CLS", ["score"])


@pytest.fixture
def folder(tmp_path):
    model, params = adapted("llama")
    peft.write(tmp_path, model, params, LORA, "", "float32")
    return tmp_path, model


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"use_dora": True}, {}, "use_dora is True; accepted: False"),
        ({"bias": "all"}, {}, "bias is 'all'; accepted: 'none'"),
        ({"rank_pattern": {"q_proj": 4}}, {}, "rank_pattern is {'q_proj': 4}"),
        ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save is ['lm_head']"),
        ({"init_lora_weights": "pissa"}, {}, "init_lora_weights is 'pissa'"),
        ({"layers_to_transform": [0]}, {}, "layers_to_transform is [0]"),
        ({"peft_type": "IA3"}, {}, "peft_type is 'IA3'; accepted: 'LORA'"),
        ({}, {"rank": 4}, "r is 3, and lora.rank is 4; accepted: --config.lora.rank=3"),
        ({}, {"alpha": 7.0}, "scale is 2, and lora.alpha is 7; accepted: --config.lora.alpha=6"),
        ({"use_rslora": True}, {}, "accepted: --config.lora.alpha=10.3923"),
        ({}, {"targets": "q_proj"}, "which is no adapter of lora.targets = q_proj of llama"),
    ],
)
def test_more_than_a_plain_adapter_is_refused(folder, changes, settings, message):
    directory, model = folder
    stored = json.loads((directory / peft.CONFIG).read_text()) | changes
    (directory / peft.CONFIG).write_text(json.dumps(stored))
    with pytest.raises(Refusal, match=re.escape(message)):
        peft.read(directory, model, dataclasses.replace(LORA, **settings))


def test_tensors_without_the_prefix_are_refused(folder):
    """PEFT itself would load them with a warning, and B = 0."""
    directory, model = folder
    arrays = load_file(str(directory / peft.WEIGHTS))
    bare = {name.removeprefix(peft.PREFIX): array for name, array in arrays.items()}
    save_file(bare, str(directory / peft.WEIGHTS))
    with pytest.raises(Refusal, match=r"has no 'base_model\.model\.model\.layers\.0"):
        peft.read(directory, model, LORA)


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    model, _ = adapted("llama")
    with pytest.raises(MissingInput, match=r"no adapter_config\.json"):
        peft.read(tmp_path, model, LORA)


@pytest.mark.parametrize("name", ["gpt_neox", "llama", "phi3"])
def test_the_folder_computes_what_we_do_when_transformers_merges_it(name, tmp_path):
    """By hand, as PEFT does: W + alpha / r (B A) on the modules that the names say."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers import AutoModelForCausalLM

    from rlhf_jax.pretrained import export

    model, params = adapted(name)
    export.save(tmp_path / "base", model, params.base, token_ids={"pad_token_id": 0})
    (tmp_path / "adapter").mkdir()
    peft.write(tmp_path / "adapter", model, params, LORA, str(tmp_path / "base"), "float32")
    stored = json.loads((tmp_path / "adapter" / peft.CONFIG).read_text())
    arrays = load_file(str(tmp_path / "adapter" / peft.WEIGHTS))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base").float().eval()
    modules = dict(theirs.named_modules())
    with torch.no_grad():
        for key, a in arrays.items():
            if not key.endswith(peft.A):
                continue
            path = key.removeprefix("base_model.model.").removesuffix(peft.A)
            module = path.rpartition(".")[2]
            rank = stored["rank_pattern"].get(module, stored["r"])
            scale = stored["alpha_pattern"].get(module, stored["lora_alpha"]) / rank
            b = arrays[key.replace(peft.A, peft.B)]
            modules[path].weight += scale * torch.tensor(b @ a)
        tokens = np.array([[3, 5, 2, 7, 9], [1, 4, 6, 8, 10]])
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    mask = jnp.ones(tokens.shape, bool)
    hidden, _ = model.apply(params, jnp.asarray(tokens), positions_from_mask(mask), mask)
    np.testing.assert_allclose(model.head(params, hidden), expected, atol=2e-4)
    merged = adapters.merged(params)
    hidden, _ = model.apply(merged, jnp.asarray(tokens), positions_from_mask(mask), mask)
    np.testing.assert_allclose(model.head(merged, hidden), expected, atol=2e-4)
