"""A reward model, and an SFT policy, whose newest checkpoints are gone or damaged: never taken for
the finished ones.
"""

import json
import shutil

import jax
import pytest

from rlhf_jax import build
from rlhf_jax.cli import export as export_command
from rlhf_jax.records.checkpoints import Checkpoints
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.stages import reward_model, sft
from tests.stages import runs

SETTINGS = {"reward": "learned", "rlhf__total_prompts": 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A pipeline whose reward model and SFT policy have checkpoints of versions 2 and 4, the last."""
    directory = tmp_path_factory.mktemp("reward_model") / "whole"
    runs.run(directory, **SETTINGS)
    assert runs.steps(directory, "sft") == runs.steps(directory, "reward_model") == [2, 4]
    return directory


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(whole, tmp_path / "run")


def remove(run, stage):
    shutil.rmtree(run / "checkpoints" / stage / "4")


def damage(run, stage):
    (run / "checkpoints" / stage / "4" / "default" / "manifest.ocdbt").unlink()


def spoil(run, stage):
    """Damage that no list of files tells of."""
    (run / "checkpoints" / stage / ".files.json").unlink()
    for path in (run / "checkpoints" / stage / "4").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:50])


def other_unit(run):
    (run / "reward_model.json").write_text(json.dumps({"mean": 40.0, "std": 3.0}))


LOST = pytest.mark.parametrize("lose", [remove, damage, spoil])


def test_only_params_of_a_finished_stage_are_read(run, monkeypatch):
    """Of one that has updates left the optimizer is read, too."""
    read: dict[str, set[str]] = {}
    for name in ("restore", "restore_part"):
        monkeypatch.setattr(Checkpoints, name, recording(getattr(Checkpoints, name), read))
    for stage in ("sft", "reward_model"):
        read.clear()
        runs.run(run, job=stage, **SETTINGS)
        assert read[stage] == {"step", "params"}
        remove(run, stage)
        read.clear()
        runs.run(run, job=stage, **SETTINGS)
        assert read[stage] == {"step", "params", "opt_state"}


def recording(restore, read):
    """A function that restores, and notes the parts of the state that it is asked for by stage."""

    def asked(checkpoints, step, abstract):
        parts = {jax.tree_util.keystr(path[:1]).strip(".[']") for path in paths(abstract)}
        read.setdefault(checkpoints.directory.name, set()).update(parts)
        return restore(checkpoints, step, abstract)

    return asked


def paths(tree):
    return [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


@LOST
def test_it_is_trained_on_and_its_unit_measured_again(whole, run, lose):
    """The unit that is there was measured on other params."""
    lose(run, "reward_model")
    other_unit(run)
    runs.run(run, **SETTINGS)
    assert runs.same(runs.state(whole, "reward_model"), runs.state(run, "reward_model"))
    assert (run / "reward_model.json").read_bytes() == (whole / "reward_model.json").read_bytes()
    assert runs.lines(run, "metrics.jsonl", "reward_model") == runs.lines(
        whole, "metrics.jsonl", "reward_model"
    )
    assert not (run / "set_aside").exists()


def test_the_unit_of_other_params_is_not_taken_after_a_kill(whole, run, monkeypatch):
    """Between the last checkpoint and the measuring of its unit."""
    remove(run, "reward_model")
    other_unit(run)

    def killed(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(reward_model, "heldout_accuracy", killed)
        with pytest.raises(ZeroDivisionError):
            runs.run(run, job="reward_model", **SETTINGS)
    assert runs.steps(run, "reward_model") == [2, 4]
    runs.run(run, job="reward_model", **SETTINGS)
    assert (run / "reward_model.json").read_bytes() == (whole / "reward_model.json").read_bytes()


@LOST
@pytest.mark.parametrize("stage", ["sft", "reward_model"])
def test_it_is_not_begun_from(run, tmp_path, lose, stage):
    lose(run, stage)
    words = (
        r"damaged.+--config\.job="
        if lose is spoil
        else rf"begin is .+the stage .{stage}. of .+ has not ended"
    )
    with pytest.raises(Refusal, match=words) as refused:
        runs.run(tmp_path / "new", begin=str(run), **SETTINGS)
    assert "\n" not in str(refused.value)
    assert lose is spoil or not (tmp_path / "new").exists()


def test_another_reward_begins_without_it(run, tmp_path):
    remove(run, "reward_model")
    build.prepare(runs.config(tmp_path / "new", begin=str(run), reward="gold"))


@LOST
@pytest.mark.parametrize("stage", ["sft", "reward_model"])
def test_it_is_not_exported(run, tmp_path, capsys, lose, stage):
    lose(run, stage)
    assert (
        export_command.main([f"--directory={run}", f"--stage={stage}", f"--to={tmp_path / 'out'}"])
        == 2
    )
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"--config.job={stage}" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", ["sft", "reward_model"])
def test_a_later_stage_alone_does_not_take_it(run, stage):
    remove(run, stage)
    shutil.rmtree(run / "checkpoints" / "rlhf")
    before = runs.tree(run)
    with pytest.raises(MissingInput, match=rf"has 2 of 4 updates.+--config\.job={stage}"):
        runs.run(run, job="rlhf", **SETTINGS)
    assert runs.tree(run) == before
    workspace, *_ = build.of_directory(run)
    with pytest.raises(MissingInput, match=r"has 2 of 4 updates"):
        (sft if stage == "sft" else reward_model).load(workspace)
