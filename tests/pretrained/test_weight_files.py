"""Folders that hold too little, too much or something else: one line that names the file and what
to do.
"""

import json
import shutil
from pathlib import Path

import pytest

from rlhf_jax.pretrained import folders
from rlhf_jax.pretrained.weight_files import INDEX, SINGLE
from tests.pretrained import published
from tests.pretrained.published import check_equal, copied, load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with one file of weights."""
    return published.write(tmp_path_factory.mktemp("whole") / "folder", "llama")


@pytest.fixture(scope="module")
def shards(whole, tmp_path_factory):
    """The same weights in shards with an index."""
    path = tmp_path_factory.mktemp("shards") / "folder"
    model = transformers.AutoModelForCausalLM.from_pretrained(whole)
    model.save_pretrained(path, max_shard_size="4KB")
    shutil.copy(whole / "config.json", path)
    assert not (path / SINGLE).exists()
    return path


def files_of(path) -> list:
    return sorted(path.glob("model-*.safetensors"))


def index_of(path) -> dict:
    return json.loads((path / INDEX).read_text())


def test_shards_are_read(whole, shards):
    check_equal(load(shards)[1], load(whole)[1])


def test_two_sets_of_weights_are_refused(whole, shards, tmp_path):
    """transformers would read the single file, other libraries the shards: nobody knows which is
    the newer.
    """
    path = copied(shards, tmp_path)
    shutil.copy(whole / SINGLE, path)
    with pytest.raises(
        ValueError,
        match=r"two sets of weights, model.safetensors and the shards of .*: delete the older",
    ):
        folders.Folder(path)


def test_an_index_without_its_shards_is_no_second_set(whole, shards, tmp_path):
    path = copied(whole, tmp_path)
    shutil.copy(shards / INDEX, path)
    check_equal(load(path)[1], load(whole)[1])
    (path / INDEX).write_text(
        json.dumps({"weight_map": dict.fromkeys(index_of(shards)["weight_map"], SINGLE)})
    )
    check_equal(load(path)[1], load(whole)[1])


def test_a_tensor_that_the_index_does_not_name_is_seen(shards, tmp_path):
    """transformers reads it too: here a head, which an untied model must have."""
    path = copied(shards, tmp_path)
    index = index_of(path)
    del index["weight_map"]["lm_head.weight"]
    (path / INDEX).write_text(json.dumps(index))
    check_equal(load(path)[1], load(shards)[1])


def test_an_index_that_puts_a_tensor_where_it_is_not(shards, tmp_path):
    path = copied(shards, tmp_path)
    index = index_of(path)
    index["weight_map"]["no.such.tensor"] = files_of(path)[0].name
    (path / INDEX).write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match=r"lacks the tensor 'no.such.tensor' that .*: download it again"
    ):
        folders.Folder(path)


def test_an_index_that_puts_a_tensor_into_another_shard(shards, tmp_path):
    path = copied(shards, tmp_path)
    index = index_of(path)
    others = [
        file.name for file in files_of(path) if file.name != index["weight_map"]["lm_head.weight"]
    ]
    index["weight_map"]["lm_head.weight"] = others[0]
    (path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"lacks the tensor 'lm_head.weight'"):
        folders.Folder(path)


def test_a_tensor_in_two_shards(shards, tmp_path):
    path = copied(shards, tmp_path)
    index, first = index_of(path), files_of(path)[0]
    shutil.copy(first, path / "model-00099.safetensors")
    index["weight_map"]["one.more"] = "model-00099.safetensors"
    (path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"both hold the tensor .*: download the folder again"):
        folders.Folder(path)


@pytest.mark.parametrize(
    "content", ["{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', '{"weight_map": []}']
)
def test_an_index_without_a_map(shards, tmp_path, content):
    path = copied(shards, tmp_path)
    (path / INDEX).write_text(content)
    with pytest.raises(
        ValueError, match=r"index.json has no weight_map of file names: download it again"
    ):
        folders.Folder(path)


def test_a_shard_that_is_missing(shards, tmp_path):
    path = copied(shards, tmp_path)
    files_of(path)[1].unlink()
    with pytest.raises(
        ValueError, match=r"safetensors is missing: download the folder's safetensors files"
    ):
        folders.Folder(path)


def test_an_index_that_is_missing(shards, tmp_path):
    path = copied(shards, tmp_path)
    (path / INDEX).unlink()
    with pytest.raises(
        ValueError,
        match=r"is missing, and so is model.safetensors.index.json for model-0.*: download",
    ):
        folders.Folder(path)


@pytest.mark.parametrize(
    "other", ["pytorch_model.bin", "consolidated.00.pth", "model-q4_k_m.gguf", "tf_model.h5"]
)
def test_weights_of_another_format(whole, tmp_path, other):
    path = copied(whole, tmp_path)
    (path / SINGLE).rename(path / other)
    (path / "training_args.bin").touch()
    with pytest.raises(
        ValueError,
        match=rf"model.safetensors is missing; there is {other}, which is not read: convert it",
    ):
        folders.Folder(path)


def test_no_weights_at_all(whole, tmp_path):
    path = copied(whole, tmp_path)
    (path / SINGLE).unlink()
    (path / "training_args.bin").touch()
    with pytest.raises(
        ValueError, match=r"model.safetensors is missing: download the folder's safetensors files"
    ):
        folders.Folder(path)


@pytest.mark.parametrize("cut", [-10, 100, 4, 0])
def test_a_truncated_file(whole, tmp_path, cut):
    path = copied(whole, tmp_path)
    (path / SINGLE).write_bytes((path / SINGLE).read_bytes()[:cut])
    with pytest.raises(
        ValueError, match=r"model.safetensors is not a whole safetensors file .*: download it again"
    ):
        folders.Folder(path)


def test_a_pointer_of_git_lfs(whole, tmp_path):
    path = copied(whole, tmp_path)
    (path / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(
        ValueError, match=r"model.safetensors is a pointer of Git LFS .*: run `git lfs pull`"
    ):
        folders.Folder(path)


@pytest.mark.parametrize("with_model", [False, True])
def test_an_adapter(whole, tmp_path, with_model):
    """transformers would load the base that it names, even where there are weights beside it."""
    path = copied(whole, tmp_path)
    (path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "some/base"})
    )
    (path / "adapter_model.safetensors").touch()
    if not with_model:
        (path / SINGLE).unlink()
        (path / "config.json").unlink()
    with pytest.raises(
        ValueError, match=r"holds an adapter .*: merge it into its base 'some/base' first"
    ) as raised:
        folders.Folder(path)
    assert ("or delete the file if the weights beside it" in str(raised.value)) == with_model


def test_a_file_in_place_of_its_folder(whole):
    with pytest.raises(
        ValueError, match=rf"is a file, and no checkpoint folder; accepted: its folder, '{whole}'"
    ):
        folders.Folder(whole / SINGLE)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(
        ValueError, match=r"no checkpoint folder '.*nowhere'; it should hold config.json"
    ):
        folders.Folder(tmp_path / "nowhere")


def test_a_name_of_the_hub_and_a_home_that_is_not_spelled_out(tmp_path, monkeypatch):
    with pytest.raises(
        ValueError,
        match=r"no checkpoint folder 'org/name'; .*: hf download org/name --local-dir FOLDER",
    ):
        folders.Folder(Path("org/name"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    with pytest.raises(
        ValueError, match=rf"no checkpoint folder '~/model'; .*; it is there as '{tmp_path}/model'"
    ):
        folders.Folder(Path("~/model"))


def test_a_folder_without_config(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"^\S*config.json is missing: this is no checkpoint folder, or only part of one$",
    ):
        folders.Folder(tmp_path)


@pytest.fixture
def cache(shards, tmp_path):
    """The hub's cache of a folder: links in a snapshot to blobs. Its path, and the snapshot's."""
    model = tmp_path / "models--some--model"
    snapshot = model / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for index, file in enumerate(sorted(shards.iterdir())):
        shutil.copy(file, model / "blobs" / str(index))
        (snapshot / file.name).symlink_to(f"../../blobs/{index}")
    return model, snapshot


def test_a_snapshot_of_the_hub_s_cache_is_read(cache, shards):
    check_equal(load(cache[1])[1], load(shards)[1])


def test_the_cache_around_it_names_it(cache):
    with pytest.raises(
        ValueError,
        match=rf"is a folder of the hub's cache; accepted: one of its snapshots: {cache[1]}",
    ):
        folders.Folder(cache[0])


def test_a_link_to_a_file_that_is_gone(cache):
    files_of(cache[1])[0].resolve().unlink()
    with pytest.raises(
        ValueError, match=r"is missing; it is a link to a file that is gone: download"
    ):
        folders.Folder(cache[1])
