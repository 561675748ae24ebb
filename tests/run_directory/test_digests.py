"""Digests tell contents apart, and do not change where nothing has."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from rlhf_jax.run_directory import digests
from rlhf_jax.tasks import jsonl


def weights(changed: str = "") -> dict[str, np.ndarray]:
    """Tensors of which each is larger than a block; one of them may be changed in its last number."""
    found = {name: np.arange(3000, dtype=np.float32) for name in ("embed", "layer", "head")}
    if changed:
        found[changed][-1] += 1
    return found


@pytest.fixture
def folder(tmp_path):
    """A pretrained folder."""
    place = tmp_path / "folder"
    place.mkdir()
    (place / "config.json").write_text("{}")
    save_file(weights(), place / "model.safetensors")
    return place


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("changed", ["embed", "layer", "head"])
def test_any_tensor_of_a_folder_counts(folder, monkeypatch, whole, changed):
    """Two fine-tunings have one header and one size: a digest of those would be the same."""
    if not whole:
        monkeypatch.setattr(digests, "WHOLE_BYTES", 100)
        monkeypatch.setattr(digests, "BLOCK_BYTES", 64)
    before = digests.digest_path(str(folder))
    save_file(weights(changed), folder / "model.safetensors")
    assert digests.digest_path(str(folder)) != before


def test_a_large_file_that_is_no_tensors_is_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "WHOLE_BYTES", 100)
    monkeypatch.setattr(digests, "BLOCK_BYTES", 64)
    monkeypatch.setattr(digests, "NUM_BLOCKS", 4)
    path = tmp_path / "data"
    path.write_bytes(bytes(1000))
    before = digests.digest_file(path)
    for place in (0, 330, 640, 999):
        path.write_bytes(bytes(place) + b"\1" + bytes(999 - place))
        assert digests.digest_file(path) != before, place
    path.write_bytes(bytes(1001))
    assert digests.digest_file(path) != before, "its size counts"


def test_a_moved_folder_is_the_same_and_a_readme_is_no_content(folder, tmp_path):
    before = digests.digest_path(str(folder))
    (folder / "README.md").write_text("hello")
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert digests.digest_path(str(tmp_path / "elsewhere")) == before
    (folder / "tokenizer.json").write_text("{}")
    assert digests.digest_path(str(folder)) != before


def test_weights_say_nothing_of_a_tokenizer(folder):
    before = digests.digest_path(str(folder), weights=False)
    save_file(weights("head"), folder / "model.safetensors")
    assert digests.digest_path(str(folder), weights=False) == before
    (folder / "config.json").write_text("[]")
    assert digests.digest_path(str(folder), weights=False) != before


def test_no_path_has_no_digest():
    assert digests.digest_path("") == ""


def rows(count: int, word: str = "answer") -> str:
    return "".join(f'{{"prompt": "question {n}", "answer": "{word} {n}"}}\n' for n in range(count))


def test_the_data_of_files_count_and_not_their_names(tmp_path):
    for name, text in (("a", rows(30)), ("b", rows(30)), ("c", rows(30, "other")), ("d", rows(31))):
        (tmp_path / name).write_text(text)
    a, b, c, d = (
        digests.digest_task(jsonl.make(jsonl.Config(prompts=str(tmp_path / name))))
        for name in "abcd"
    )
    assert a == b
    assert len({a, c, d}) == 3


class Own:
    """A task of somebody else, without a digest of its own."""

    def __init__(self, prompts, references, comparisons=()):
        self.texts, self.given, self.pairs = prompts, references, comparisons

    def num_prompts(self, split):
        return len(self.texts)

    def prompt(self, split, index):
        return self.texts[index]

    def references(self, split, index):
        return (self.given[index],)

    def comparisons(self, split):
        return list(self.pairs)


def test_every_text_of_a_task_without_a_digest_is_read():
    tasks = [
        Own(["a", "b"], ["x", "y"]),
        Own(["a", "c"], ["x", "y"]),
        Own(["a", "b"], ["x", "z"]),
        Own(["a", "b"], ["x", "y"], [("a", "1", "2")]),
        Own(["a\ud800", "b"], ["x", "y"]),
        Own(["a", "b"], ["xy", ""]),
    ]
    assert len({digests.digest_task(task) for task in tasks}) == len(tasks)  # type: ignore[arg-type]


def test_comments_and_docstrings_are_no_code(tmp_path):
    path, found = tmp_path / "m.py", []
    for text in (
        'def f(x):\n    """Doubles."""\n    return 2 * x\n',
        'def f(x):\n    """Gives twice\n    the number."""\n\n    return 2 * x  # twice\n',
        "def f(x):\n    return 3 * x\n",
    ):
        path.write_text(text)
        found.append(digests.digest_source(path))
    assert found[0] == found[1] != found[2]


def test_values_have_one_digest_in_any_order():
    assert digests.digest_values({"a": (1, 2), "b": 3}) == digests.digest_values(
        {"b": 3, "a": [1, 2]}
    )
    assert digests.digest_values({"a": 1}) != digests.digest_values({"a": 2})
