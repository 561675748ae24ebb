"""Checkpoint folders: read as published, in shards, written so that transformers reads them; what is broken is told."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from rlhf_jax.hub import export, folders, layouts
from rlhf_jax.jobs import _hub
from rlhf_jax.models.value_head import ValueModel
from rlhf_jax.ops.masked import positions_from_mask
from rlhf_jax.rewards import learned
from rlhf_jax.runtime import sharding
from tests import tiny

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPE = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
CONFIGS = {
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SHAPE, bos_token_id=0, eos_token_id=1),
    "llama": lambda: transformers.LlamaConfig(**SHAPE, num_key_value_heads=1, bos_token_id=0, eos_token_id=1),
    "gemma2": lambda: transformers.Gemma2Config(
        **SHAPE, num_key_value_heads=1, head_dim=8, bos_token_id=0, eos_token_id=1, pad_token_id=2
    ),
}


def random_torch(model):
    """The model with every parameter drawn anew, norms and biases too."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1)
    return model.eval()


@pytest.fixture(scope="module", params=CONFIGS)
def published(request, tmp_path_factory):
    """A published folder of a decoder: its path and transformers' model."""
    path = tmp_path_factory.mktemp(request.param)
    model = random_torch(transformers.AutoModelForCausalLM.from_config(CONFIGS[request.param]()))
    model.save_pretrained(path)
    return path, model


@pytest.fixture(scope="module")
def neox(tmp_path_factory):
    path = tmp_path_factory.mktemp("neox")
    random_torch(transformers.AutoModelForCausalLM.from_config(CONFIGS["gpt_neox"]())).save_pretrained(path)
    return path


def one_device(model):
    return sharding.params_shardings(model, jax.eval_shape(model.init, jax.random.key(0)), tiny.make_mesh((1, 1, 1)))


def load(path, dtype="float32"):
    folder = folders.Folder(path)
    model = _hub.model_of(folder)
    return model, folders.load(folder, model, one_device(model), dtype)


def check_equal(one, other):
    one, other = flatten_dict(one), flatten_dict(other)
    assert one.keys() == other.keys()
    for path, array in one.items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(other[path]), err_msg="/".join(path))


def test_logits_are_those_of_transformers(published):
    path, theirs = published
    model, params = load(path)
    tokens_BL = np.array([[3, 4, 5, 6, 7], [3, 9, 10, 2, 8]])
    mask_BL = jnp.ones((2, 5), bool)
    hidden, _ = jax.jit(model.apply)(params, jnp.asarray(tokens_BL), positions_from_mask(mask_BL), mask_BL)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens_BL)).logits.numpy()
    np.testing.assert_allclose(np.asarray(model.head(params, hidden)), expected, atol=1e-4, rtol=1e-4)


def test_exported_then_read_by_transformers_then_imported_is_bitwise(published, tmp_path):
    path, theirs = published
    model, params = load(path)
    export.save(tmp_path / "out", model, params, token_ids={"eos_token_id": 1, "pad_token_id": 2})
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(again) is type(theirs)
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name].numpy(), tensor.numpy(), err_msg=name)
    again.save_pretrained(tmp_path / "again")
    check_equal(load(tmp_path / "again")[1], params)


def test_several_files_are_written_and_read(neox, tmp_path):
    model, params = load(neox)
    export.save(tmp_path / "out", model, params, token_ids={}, max_file_bytes=4000)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    assert not (tmp_path / "out" / folders.SINGLE).exists()
    check_equal(load(tmp_path / "out")[1], params)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 2, 4)])
def test_sharded_reading_is_the_same_and_reads_only_the_shards(neox, shape, monkeypatch):
    model, params = load(neox)
    mesh, read = tiny.make_mesh(shape), []
    part = folders._part
    monkeypatch.setattr(folders, "_part", lambda *args: read.append(part(*args)) or read[-1])
    layout = sharding.params_shardings(model, jax.eval_shape(model.init, jax.random.key(0)), mesh)
    sharded = folders.load(folders.Folder(neox), model, layout)
    check_equal(sharded, params)
    kernel = sharded["layer_0"]["dense_h_to_4h"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec("fsdp", "tensor")
    assert max(array.size for array in read) <= 16 * 3 * 16 // 4  # of query_key_value, the largest, a quarter or less


def test_half_precision_is_widened_and_can_be_kept(neox, tmp_path):
    model, params = load(neox)
    export.save(tmp_path / "half", model, params, token_ids={}, dtype="bfloat16")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    _, wide = load(tmp_path / "half")
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {jnp.dtype("float32")}
    check_equal(wide, jax.tree.map(lambda x: x.astype(jnp.float32), rounded))
    check_equal(load(tmp_path / "half", "bfloat16")[1], rounded)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A published reward model: its path and transformers' model, whose pad is no token of the rows below."""
    path = tmp_path_factory.mktemp("classifier")
    config = CONFIGS["gpt_neox"]()
    config.num_labels, config.pad_token_id = 1, 2
    model = random_torch(transformers.AutoModelForSequenceClassification.from_config(config))
    model.save_pretrained(path)
    return path, model


def read_classifier(path):
    model = _hub.classifier(str(path))
    return model, _hub.load_classifier(str(path), model, tiny.make_mesh((1, 1, 1)))


def test_scores_are_those_of_the_sequence_classifier(classifier):
    path, theirs = classifier
    model, params = read_classifier(path)
    assert isinstance(model, ValueModel)
    tokens_BL = np.array([[3, 4, 5, 1, 2], [3, 9, 1, 2, 2], [5, 6, 7, 8, 9]])
    mask_BL = tokens_BL != 2
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens_BL), attention_mask=torch.tensor(mask_BL)).logits[:, 0].numpy()
    score_B = learned.score_tokens(model, params, jnp.asarray(tokens_BL), jnp.asarray(mask_BL))
    np.testing.assert_allclose(np.asarray(score_B), expected, atol=1e-5)


def test_an_exported_reward_model_is_read_by_transformers(classifier, tmp_path):
    path, theirs = classifier
    model, params = read_classifier(path)
    export.save(tmp_path / "out", model.backbone, params, token_ids={"pad_token_id": 2})
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert again.config.num_labels == 1
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name].numpy(), tensor.numpy(), err_msg=name)
    check_equal(read_classifier(tmp_path / "out")[1], params)


def test_a_bias_of_the_score_survives(classifier, tmp_path):
    model, params = read_classifier(classifier[0])
    params["value_head"]["bias"] = jnp.array([0.25])
    export.save(tmp_path / "out", model.backbone, params, token_ids={"pad_token_id": 2})
    assert read_classifier(tmp_path / "out")[1]["value_head"]["bias"] == 0.25


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def rewrite(path, change):
    """The folder with its tensors changed."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path / folders.SINGLE)
    change(tensors)
    save_file(tensors, path / folders.SINGLE)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint folder '.*nowhere'; it should hold config.json"):
        folders.Folder(tmp_path / "nowhere")


def test_a_folder_without_config(tmp_path):
    with pytest.raises(ValueError, match=r"config.json is missing"):
        folders.Folder(tmp_path)


def test_a_config_that_is_not_json(neox, tmp_path):
    path = copied(neox, tmp_path)
    (path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        folders.Folder(path)


def test_an_architecture_that_is_unknown(neox, tmp_path):
    path = copied(neox, tmp_path)
    (path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"config.json: .*bert"):
        folders.Folder(path)


def test_missing_weights_tell_what_lies_there_instead(neox, tmp_path):
    path = copied(neox, tmp_path)
    (path / folders.SINGLE).rename(path / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"model.safetensors is missing; there is pytorch_model.bin, which is not read"
    ):
        folders.Folder(path)


def test_a_truncated_file(neox, tmp_path):
    path = copied(neox, tmp_path)
    whole = (path / folders.SINGLE).read_bytes()
    (path / folders.SINGLE).write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"model.safetensors is not a whole safetensors file .*: download it again"):
        folders.Folder(path)


def test_a_file_of_several_that_is_missing(neox, tmp_path):
    model, params = load(neox)
    export.save(tmp_path / "out", model, params, token_ids={}, max_file_bytes=4000)
    sorted((tmp_path / "out").glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(ValueError, match=r"safetensors is missing: download"):
        folders.Folder(tmp_path / "out")


def test_an_index_that_puts_a_tensor_where_it_is_not(neox, tmp_path):
    path = copied(neox, tmp_path)
    (path / folders.INDEX).write_text(json.dumps({"weight_map": {"no.such.tensor": folders.SINGLE}}))
    with pytest.raises(ValueError, match=r"lacks the tensor 'no.such.tensor'"):
        folders.Folder(path)


def test_a_missing_tensor(neox, tmp_path):
    path = copied(neox, tmp_path)
    rewrite(path, lambda tensors: tensors.pop("gpt_neox.layers.1.mlp.dense_4h_to_h.bias"))
    with pytest.raises(ValueError, match=r"lacks 1 tensor\(s\) of gpt_neox: gpt_neox.layers.1.mlp.dense_4h_to_h.bias"):
        load(path)


def test_an_unknown_tensor(neox, tmp_path):
    path = copied(neox, tmp_path)
    rewrite(path, lambda tensors: tensors.update({"gpt_neox.layers.0.adapter.weight": np.ones(3, np.float32)}))
    with pytest.raises(
        ValueError, match=r"holds 1 tensor\(s\) that gpt_neox has not: gpt_neox.layers.0.adapter.weight"
    ):
        load(path)


def test_computed_tensors_of_older_files_are_passed_over(neox, tmp_path):
    path = copied(neox, tmp_path)
    junk = {"gpt_neox.layers.0.attention.masked_bias": np.float32(-1e9).reshape(1)}
    rewrite(
        path, lambda tensors: tensors.update(junk | {"gpt_neox.layers.0.attention.bias": np.ones((1, 1, 4, 4), bool)})
    )
    check_equal(load(path)[1], load(neox)[1])


def test_a_shape_that_is_not_the_config_s(neox, tmp_path):
    path = copied(neox, tmp_path)
    rewrite(path, lambda tensors: tensors.update({"embed_out.weight": np.ones((13, 16), np.float32)}))
    with pytest.raises(ValueError, match=r"embed_out.weight has shape \(13, 16\), but config.json says \(11, 16\)"):
        load(path)


def test_numbers_that_are_not_floating(neox, tmp_path):
    path = copied(neox, tmp_path)
    rewrite(path, lambda tensors: tensors.update({"embed_out.weight": np.ones((11, 16), np.int8)}))
    with pytest.raises(ValueError, match=r"'embed_out.weight' has dtype I8; accepted: F64, F32, F16, BF16"):
        load(path)


def test_a_decoder_is_no_reward_model(neox):
    with pytest.raises(ValueError, match=r"has no tensor 'score.weight': it is no reward model"):
        read_classifier(neox)


def test_an_export_never_looks_finished_before_it_is(neox, tmp_path, monkeypatch):
    model, params = load(neox)

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(export, "_write_tensors", fail)
    with pytest.raises(OSError, match="No space left"):
        export.save(tmp_path / "out", model, params, token_ids={})
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="is missing"):
        folders.Folder(tmp_path / "out.partial")


def test_an_export_does_not_write_over_anything(neox, tmp_path):
    model, params = load(neox)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="is there already"):
        export.save(tmp_path / "out", model, params, token_ids={})


def test_every_param_has_one_published_tensor(neox):
    folder = folders.Folder(neox)
    names = [tensor.name for tensor in layouts.tensors(folder.family, folder.model_config).values()]
    assert sorted(names) == sorted(folder.weight_map)
