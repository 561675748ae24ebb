"""Exports: the family, the numbers and the files that came in; the same logits in transformers;
nothing half-written.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import registry
from rlhf_jax.models import llama
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.pretrained import export, folders, published_families
from rlhf_jax.rewards import learned
from tests.models.families import FAMILIES, config_of, random_params
from tests.pretrained import published

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=published.FOLDERS)
def folder(request, tmp_path_factory):
    """A published folder of a decoder, of every family."""
    return published.write(tmp_path_factory.mktemp("published") / "folder", request.param)


@pytest.fixture(scope="module")
def neox(tmp_path_factory):
    return published.write(tmp_path_factory.mktemp("neox") / "folder", "gpt_neox")


def test_every_family_has_a_folder_here():
    names = {published.FOLDERS[name][0] for name in published.FOLDERS}
    assert names == {
        published_families.model_type(family) for family in published_families.FAMILIES
    }


@pytest.mark.parametrize(
    "taken_over", [True, False], ids=["config taken over", "config of our own"]
)
def test_what_came_in_goes_out(folder, taken_over, tmp_path):
    """The same class with the same logits in transformers, and every number that transformers reads
    of either config.
    """
    model, params = published.load(folder)
    came = json.loads((folder / "config.json").read_text())
    source = folders.Folder(folder) if taken_over else None
    out = tmp_path / "out"
    export.save(out, model, params, token_ids=published.IDS, model_from=source)
    written = json.loads((out / "config.json").read_text())
    assert (written["model_type"], written["architectures"]) == (
        came["model_type"],
        came["architectures"],
    )
    if taken_over:
        assert written == came | {"dtype": "float32", "torch_dtype": "float32"} | {
            "tie_word_embeddings": model.config.tie_embeddings
        }
    np.testing.assert_array_equal(published.theirs(out), published.theirs(folder))
    np.testing.assert_allclose(published.ours(out), published.theirs(folder), atol=1e-4, rtol=1e-4)
    again_model, again = published.load(out)
    assert again_model.family == model.family
    published.check_equal(again, params)


def test_a_model_from_scratch_is_exported_as_its_own_family(tmp_path):
    """Without any folder: the token ids of another vocabulary, which an absent key would mean, are
    not taken.
    """
    for family in FAMILIES:
        model = registry.find("models", family).make(config_of(family))
        export.save(
            tmp_path / family, model, random_params(model, 0), token_ids={"eos_token_id": 1}
        )
        config = transformers.AutoConfig.from_pretrained(tmp_path / family)
        assert config.model_type == published_families.model_type(family)
        assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == (1, None, None)
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / family)


def test_a_config_that_would_read_as_another_model_is_not_written(neox, tmp_path):
    folder = folders.Folder(neox)
    other = llama.make(llama.Config(11, 16, 1, 2, 1, 24))
    with pytest.raises(ValueError, match=r"is of the family gpt_neox, but the model is llama"):
        export.save(
            tmp_path / "out", other, random_params(other, 0), token_ids={}, model_from=folder
        )
    other = published.load(neox)[0].with_config(rope_theta=51.0)
    with pytest.raises(
        ValueError, match=r"config.json would read as gpt_neox .*50.0, .*, but the model is .*51.0"
    ):
        export.save(
            tmp_path / "out", other, random_params(other, 0), token_ids={}, model_from=folder
        )
    assert not list(tmp_path.iterdir())


def test_several_files_are_written_and_read(neox, tmp_path):
    model, params = published.load(neox)
    export.save(tmp_path / "out", model, params, token_ids={}, max_file_bytes=4000)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    assert not (tmp_path / "out" / folders.SINGLE).exists()
    published.check_equal(published.load(tmp_path / "out")[1], params)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_half_precision_is_written(neox, tmp_path):
    model, params = published.load(neox)
    export.save(tmp_path / "half", model, params, token_ids={}, dtype="bfloat16")
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")


@pytest.mark.parametrize("name", ["gpt_neox", "gemma3", "phi3", "olmo2"])
def test_an_exported_reward_model_is_read_by_transformers(name, tmp_path):
    """With its padding: transformers finds the token to read by it."""
    path = published.write(
        tmp_path / "in", name, "AutoModelForSequenceClassification", num_labels=1
    )
    model, params = published.read_classifier(path)
    out = tmp_path / "out"
    export.save(out, model.backbone, params, token_ids={"eos_token_id": 1, "pad_token_id": 2})
    config = json.loads((out / "config.json").read_text())
    assert (
        config["architectures"] == json.loads((path / "config.json").read_text())["architectures"]
    )
    tokens_BL = np.array([[3, 4, 5, 1, 2], [3, 9, 1, 2, 2], [5, 6, 7, 8, 9]])
    auto = "AutoModelForSequenceClassification"
    np.testing.assert_array_equal(
        published.theirs(out, tokens_BL, auto), published.theirs(path, tokens_BL, auto)
    )
    published.check_equal(published.read_classifier(out)[1], params)


def test_a_reward_model_that_is_read_at_its_eos_has_no_eos_for_padding(neox, tmp_path):
    """transformers would read it at the token before.

    Without a padding it reads the last token, of one row at a time.
    """
    model, params = published.load(neox)
    value = ValueModel(model)
    params = value.init_from(params, jax.random.key(0))
    ids = {"eos_token_id": 1, "pad_token_id": 1}
    export.save(tmp_path / "out", model, params, token_ids=ids, model_from=folders.Folder(neox))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["pad_token_id"] is None
    row = np.array([[5, 6, 7, 8, 1]])
    expected = published.theirs(tmp_path / "out", row, "AutoModelForSequenceClassification")
    mask = jnp.ones(row.shape, bool)
    score = learned.score_tokens(value, params, jnp.asarray(row), mask)
    np.testing.assert_allclose(np.asarray(score), expected[:, 0], atol=1e-5)


def test_a_published_padding_that_is_the_eos_stays(tmp_path):
    """Such a model was trained to be read before its EOS, and is."""
    path = published.write(
        tmp_path / "in", "llama", "AutoModelForSequenceClassification", num_labels=1, pad_token_id=1
    )
    model, params = published.read_classifier(path)
    export.save(
        tmp_path / "out", model.backbone, params, token_ids={"eos_token_id": 1, "pad_token_id": 2}
    )
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] == 1


def test_a_bias_of_the_score_survives(tmp_path):
    path = published.write(
        tmp_path / "in", "gpt_neox", "AutoModelForSequenceClassification", num_labels=1
    )
    model, params = published.read_classifier(path)
    params["value_head"]["bias"] = jnp.array([0.25])
    export.save(tmp_path / "out", model.backbone, params, token_ids={"pad_token_id": 2})
    assert published.read_classifier(tmp_path / "out")[1]["value_head"]["bias"] == 0.25


def test_ends_of_texts_are_all_of_them(neox, tmp_path):
    """The run's EOS ends texts beside those of generation_config.json, and config.json says the
    same.
    """
    path = published.copied(neox, tmp_path)
    (path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [5, 6], "temperature": 0.6})
    )
    model, params = published.load(path)
    for eos, expected in ((5, [5, 6]), (7, [7, 5, 6]), ([6, 8], [5, 6, 8])):
        out = tmp_path / str(eos)
        export.save(
            out, model, params, token_ids={"eos_token_id": eos}, model_from=folders.Folder(path)
        )
        assert json.loads((out / "config.json").read_text())["eos_token_id"] == expected
        generation = json.loads((out / "generation_config.json").read_text())
        assert generation == {"eos_token_id": expected, "temperature": 0.6}
        assert transformers.GenerationConfig.from_pretrained(out).eos_token_id == expected


def test_an_export_never_looks_finished_before_it_is(neox, tmp_path, monkeypatch):
    model, params = published.load(neox)

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(export, "_write_tensors", fail)
    with pytest.raises(OSError, match="No space left"):
        export.save(tmp_path / "out", model, params, token_ids={})
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="is missing"):
        folders.Folder(tmp_path / "out.partial")


def test_an_export_does_not_write_over_anything(neox, tmp_path):
    model, params = published.load(neox)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="is there already"):
        export.save(tmp_path / "out", model, params, token_ids={})
