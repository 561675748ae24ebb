"""Checkpoint folders: read as transformers reads them, in shards; what holds another model than it
seems is told.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.devices import sharding
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.pretrained import export, folders, layouts
from rlhf_jax.rewards import learned
from tests import tiny
from tests.pretrained import published
from tests.pretrained.published import (
    check_equal,
    configure,
    copied,
    load,
    ours,
    read_classifier,
    rewrite,
    theirs,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLASSIFIER = "AutoModelForSequenceClassification"


@pytest.fixture(scope="module")
def neox(tmp_path_factory):
    return published.write(tmp_path_factory.mktemp("neox") / "folder", "gpt_neox")


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return published.write(tmp_path_factory.mktemp("tied") / "folder", "qwen3")


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 2, 4)])
def test_sharded_reading_is_the_same_and_reads_only_the_shards(neox, shape, monkeypatch):
    model, params = load(neox)
    mesh, read = tiny.make_mesh(shape), []
    read_rows = folders._read_rows
    monkeypatch.setattr(
        folders, "_read_rows", lambda *args: read.append(read_rows(*args)) or read[-1]
    )
    layout = sharding.params_shardings(model, jax.eval_shape(model.init, jax.random.key(0)), mesh)
    sharded = folders.load(folders.Folder(neox), model, layout)
    check_equal(sharded, params)
    kernel = sharded["layer_0"]["dense_h_to_4h"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec("fsdp", "tensor")
    assert (
        max(array.size for array in read) <= 16 * 3 * 16 // 4
    )  # of query_key_value, the largest, a quarter or less


def test_sharded_reading_of_rows_of_a_larger_tensor(tmp_path):
    """Queries, keys and values of one published matrix, each cut over the same devices."""
    path = published.write(tmp_path / "phi", "phi3")
    model, params = load(path)
    layout = sharding.params_shardings(
        model, jax.eval_shape(model.init, jax.random.key(0)), tiny.make_mesh((1, 2, 4))
    )
    check_equal(folders.load(folders.Folder(path), model, layout), params)


def test_half_precision_is_widened_and_can_be_kept(neox, tmp_path):
    model, params = load(neox)
    export.save(tmp_path / "half", model, params, token_ids={}, dtype="bfloat16")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    _, wide = load(tmp_path / "half")
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {jnp.dtype("float32")}
    check_equal(wide, jax.tree.map(lambda x: x.astype(jnp.float32), rounded))
    check_equal(load(tmp_path / "half", "bfloat16")[1], rounded)


def own_head(tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"][::-1].copy()


def test_a_head_of_its_own_is_read_though_config_ties_it(tied, tmp_path):
    """Read as in transformers 5, and exported with a head and not tied."""
    path = copied(tied, tmp_path)
    rewrite(path, own_head)
    np.testing.assert_allclose(ours(path), theirs(path), atol=1e-4)
    assert np.abs(ours(path) - ours(tied)).max() > 0.1
    model, params = load(path)
    export.save(tmp_path / "out", model, params, token_ids={}, model_from=folders.Folder(path))
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    )
    np.testing.assert_array_equal(theirs(tmp_path / "out"), theirs(path))


def test_a_copy_of_the_embeddings_is_a_tied_head(tied, tmp_path):
    path = copied(tied, tmp_path)
    rewrite(
        path,
        lambda tensors: tensors.update(
            {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
        ),
    )
    assert folders.Folder(path).model_config.tie_embeddings
    check_equal(load(path)[1], load(tied)[1])


def test_a_head_is_compared_to_its_last_row_and_again_when_the_file_changes(
    tied, tmp_path, monkeypatch
):
    monkeypatch.setattr(folders, "ROWS_AT_ONCE", 4)
    path = copied(tied, tmp_path)
    rewrite(
        path,
        lambda tensors: tensors.update(
            {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
        ),
    )
    assert folders.Folder(path).model_config.tie_embeddings

    def change_the_last(tensors) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"].copy()
        tensors["lm_head.weight"][-1, -1] += 1

    rewrite(path, change_the_last)
    assert not folders.Folder(path).model_config.tie_embeddings


def test_a_head_that_is_missing_tells_of_the_key_that_ties_it(neox, tmp_path):
    path = copied(neox, tmp_path)
    rewrite(path, lambda tensors: tensors.pop("embed_out.weight"))
    with pytest.raises(
        ValueError,
        match=r"lacks 1 .*embed_out.weight; a head that is tied wants tie_word_embeddings",
    ):
        load(path)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A published reward model whose pad is no token of the rows below."""
    return published.write(
        tmp_path_factory.mktemp("classifier") / "folder", "gpt_neox", CLASSIFIER, num_labels=1
    )


def scores(path, tokens_BL, mask_BL) -> np.ndarray:
    model, params = read_classifier(path)
    score = jax.jit(lambda *inputs: learned.score_tokens(model, *inputs))
    return np.asarray(score(params, jnp.asarray(tokens_BL), jnp.asarray(mask_BL)))


def test_scores_are_those_of_the_sequence_classifier(classifier):
    assert isinstance(read_classifier(classifier)[0], ValueModel)
    tokens_BL = np.array([[3, 4, 5, 1, 2], [3, 9, 1, 2, 2], [5, 6, 7, 8, 9]])
    expected = theirs(classifier, tokens_BL, CLASSIFIER)[:, 0]
    np.testing.assert_allclose(scores(classifier, tokens_BL, tokens_BL != 2), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3"])
@pytest.mark.parametrize(
    "changes", [{"pad_token_id": 1}, {}], ids=["pad is the EOS", "a pad of its own"]
)
def test_scores_are_read_where_the_trainer_read_them(name, changes, tmp_path):
    """transformers reads the last token that is not pad_token_id, of which our mask knows nothing."""
    path = published.write(tmp_path / "in", name, CLASSIFIER, num_labels=1, **changes)
    rows = np.array([[5, 6, 7, 8, 1], [5, 1, 7, 1, 1], [5, 6, 7, 8, 9]])
    expected = theirs(path, rows, CLASSIFIER)[:, 0]
    np.testing.assert_allclose(scores(path, rows, np.ones(rows.shape, bool)), expected, atol=1e-5)


def test_an_absent_padding_is_the_family_s_and_null_is_none(tmp_path):
    path = published.write(tmp_path / "in", "gemma3", CLASSIFIER, num_labels=1)
    assert folders.Folder(path).model_config.padding_id == 2
    for pad, expected in ((None, 0), (1, 1), (-1, -1)):
        assert folders.Folder(configure(path, pad_token_id=pad)).model_config.padding_id == expected
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    assert folders.Folder(path).model_config.padding_id == -1
    with pytest.raises(
        ValueError, match=r"config.json: pad_token_id is '0'; accepted: an id or null"
    ):
        folders.Folder(configure(path, pad_token_id="0"))


def test_a_decoder_is_read_at_any_token(neox):
    assert folders.Folder(neox).model_config.padding_id == -1


def test_a_decoder_is_no_reward_model(neox):
    with pytest.raises(ValueError, match=r"has no tensor 'score.weight': it is no reward model"):
        read_classifier(neox)


@pytest.mark.parametrize(
    "changes", [{}, {"architectures": ["GPTNeoXForCausalLM"]}, {"architectures": None}]
)
def test_a_reward_model_is_no_policy(classifier, tmp_path, changes):
    path = configure(copied(classifier, tmp_path), **changes)
    with pytest.raises(
        ValueError,
        match=r"is a reward model .*, and no policy; accepted: a folder of GPTNeoXForCausalLM",
    ):
        load(path)


def test_a_reward_model_of_several_labels(classifier, tmp_path):
    path = copied(classifier, tmp_path)
    rewrite(path, lambda tensors: tensors.update({"score.weight": np.ones((2, 16), np.float32)}))
    with pytest.raises(
        ValueError, match=r"score.weight has shape \[2, 16\]; accepted: one label, \[1, 16\]"
    ):
        read_classifier(path)


def test_a_classifier_of_tokens_is_refused_when_it_is_opened(classifier, tmp_path):
    path = configure(copied(classifier, tmp_path), architectures=["GPTNeoXForTokenClassification"])
    rewrite(path, lambda tensors: tensors.update({"score.bias": np.zeros(1, np.float32)}))
    with pytest.raises(ValueError, match=r"a token classifier \(a process reward model\)"):
        folders.Folder(path)


def test_a_config_that_is_not_json(neox, tmp_path):
    path = copied(neox, tmp_path)
    (path / "config.json").write_text("{")
    with pytest.raises(
        ValueError, match=r"config.json: .* is not JSON .*; accepted: a JSON object"
    ):
        folders.Folder(path)


def test_an_architecture_that_is_unknown(neox, tmp_path):
    path = copied(neox, tmp_path)
    (path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(
        ValueError,
        match=r"config.json: model_type is 'bert': an encoder, no causal decoder; accepted",
    ):
        folders.Folder(path)


def test_a_missing_tensor(neox, tmp_path):
    path = copied(neox, tmp_path)
    rewrite(path, lambda tensors: tensors.pop("gpt_neox.layers.1.mlp.dense_4h_to_h.bias"))
    with pytest.raises(
        ValueError,
        match=r"lacks 1 tensor\(s\) of gpt_neox: gpt_neox.layers.1.mlp.dense_4h_to_h.bias",
    ):
        load(path)


def test_tensors_under_other_names(neox, tmp_path):
    """Names that a compiled or a wrapped model saves."""
    path = copied(neox, tmp_path)

    def prefix(tensors) -> None:
        for name in list(tensors):
            tensors[f"_orig_mod.{name}"] = tensors.pop(name)

    rewrite(path, prefix)
    with pytest.raises(
        ValueError, match=r"lacks 28 tensor\(s\) .*\.\.\., and holds _orig_mod.embed_out.weight, "
    ):
        load(path)


def test_an_unknown_tensor(neox, tmp_path):
    path = copied(neox, tmp_path)
    rewrite(
        path,
        lambda tensors: tensors.update(
            {"gpt_neox.layers.0.adapter.weight": np.ones(3, np.float32)}
        ),
    )
    with pytest.raises(
        ValueError,
        match=r"holds 1 tensor\(s\) that gpt_neox has not: gpt_neox.layers.0.adapter.weight",
    ):
        load(path)


def test_computed_tensors_of_older_files_are_passed_over(neox, tmp_path):
    path = copied(neox, tmp_path)
    junk = {"gpt_neox.layers.0.attention.masked_bias": np.float32(-1e9).reshape(1)}
    rewrite(
        path,
        lambda tensors: tensors.update(
            junk | {"gpt_neox.layers.0.attention.bias": np.ones((1, 1, 4, 4), bool)}
        ),
    )
    check_equal(load(path)[1], load(neox)[1])


def test_a_shape_that_is_not_the_config_s(neox, tmp_path):
    path = copied(neox, tmp_path)
    rewrite(
        path, lambda tensors: tensors.update({"embed_out.weight": np.ones((13, 16), np.float32)})
    )
    with pytest.raises(
        ValueError, match=r"embed_out.weight has shape \(13, 16\), but config.json says \(11, 16\)"
    ):
        load(path)


def test_numbers_that_are_not_floating(neox, tmp_path):
    path = copied(neox, tmp_path)
    rewrite(path, lambda tensors: tensors.update({"embed_out.weight": np.ones((11, 16), np.int8)}))
    with pytest.raises(
        ValueError,
        match=r"'embed_out.weight' has dtype I8; accepted: F64, F32, F16, BF16: a quantised",
    ):
        load(path)


def test_what_cannot_be_loaded_is_told_without_reading_a_tensor(
    neox, classifier, tmp_path, monkeypatch
):
    monkeypatch.setattr(folders, "_read_rows", lambda *_: pytest.fail("a tensor was read"))
    path = copied(neox, tmp_path)
    rewrite(path, lambda tensors: tensors.pop("embed_out.weight"))
    folders.check_decoder(folders.Folder(neox))
    folders.check_classifier(folders.Folder(classifier))
    with pytest.raises(ValueError, match=r"lacks 1 tensor"):
        folders.check_decoder(folders.Folder(path))
    with pytest.raises(ValueError, match=r"no reward model"):
        folders.check_classifier(folders.Folder(neox))


def test_every_param_has_one_published_tensor(neox):
    folder = folders.Folder(neox)
    names = [tensor.name for tensor in layouts.tensors(folder.family, folder.model_config).values()]
    assert sorted(names) == sorted(folder.weight_map)
