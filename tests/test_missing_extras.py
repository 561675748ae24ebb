"""A package of an extra that is not installed is one line with the command that installs it;
TensorBoard is done without.
"""

import sys

import pytest

from rlhf_jax.cli import run
from rlhf_jax.extras import needed
from rlhf_jax.pretrained import weight_files
from rlhf_jax.records import tracking
from rlhf_jax.refusal import Refusal
from rlhf_jax.tasks.corpora import row_files
from rlhf_jax.text import file_tokenizers


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a_file"
    path.write_bytes(b"{}")
    return path


def tensors(file):
    path = file.rename(file.parent / weight_files.SINGLE)
    weight_files.WeightFiles(path.parent).file(path)


READERS = {
    "tokenizers": lambda file: file_tokenizers.hugging_face(str(file)),
    "safetensors": tensors,
    "pyarrow": lambda file: list(
        row_files.read(file.rename(file.with_suffix(".parquet")), ["prompt"])
    ),
}


@pytest.mark.parametrize("package", READERS)
def test_a_missing_package_is_named_with_the_file_and_the_command(monkeypatch, file, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Refusal) as refused:
        READERS[package](file)
    (message,) = refused.value.messages
    assert str(file.parent) in message
    assert message.endswith(f" needs {package}: pip install 'rlhf_jax[hub]'")


def test_a_command_prints_the_line(monkeypatch, capsys, file):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(SystemExit) as left:
        run.main(
            ["run", "quickstart", "--config.tokenizer.kind=hf", f"--config.tokenizer.path={file}"]
        )
    assert left.value.code == 2
    assert (
        capsys.readouterr().err == f"error: {file} needs tokenizers: pip install 'rlhf_jax[hub]'\n"
    )


def test_another_failure_of_an_import_keeps_its_traceback():
    def broken():
        raise ImportError("a shared library is missing")

    with pytest.raises(ImportError, match="a shared library"), needed("hub", "a file"):
        broken()


@pytest.mark.parametrize(
    ("track", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")]
)
def test_a_tracker_that_is_named_and_not_installed_is_refused(monkeypatch, capsys, track, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as left:
        run.main(["run", "quickstart", f"--config.track={track}"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said == f"error: track={track!r} needs {package}: pip install 'rlhf_jax[track]'\n"


def test_without_tensorboard_a_run_notes_it_once_and_goes_on(monkeypatch, capsys):
    tracking.has_tensorboard.cache_clear()
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    for _ in range(2):
        tracking.check("auto")
        assert tracking.makers("auto") == {}
    tracking.has_tensorboard.cache_clear()
    said = (
        "note: no TensorBoard events, only metrics.jsonl; for both: pip install 'rlhf_jax[track]'\n"
    )
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("track", ["", "tensorboard,,wandb", "wandb,wandb", "auto,wandb", "nosuch"])
def test_a_tracker_that_nobody_knows_is_refused_with_those_that_there_are(track):
    with pytest.raises(Refusal, match="tensorboard, wandb"):
        tracking.check(track)
