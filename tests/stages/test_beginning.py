"""Runs that begin from another run: its SFT policy, its reward model, and the policy of one of its
versions.
"""

import json
import shutil

import jax
import numpy as np
import pytest

from rlhf_jax import build
from rlhf_jax.cli import evaluate, report
from rlhf_jax.cli import export as export_command
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.run_directory import history, stage_records
from rlhf_jax.stages import reward_model, rlhf, sft
from tests.stages import runs

STILL = {"rlhf__optimizer__learning_rate": 1e-30}
"""A learning rate at which no float32 number changes."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A pipeline of 8 updates with a learned reward."""
    directory = tmp_path_factory.mktemp("begin") / "base"
    runs.run(directory, reward="learned")
    return directory


@pytest.fixture(scope="module")
def fork(base):
    """A run of 4 updates from its version 4, at which params stay as they are."""
    directory = base.parent / "fork"
    runs.run(directory, reward="learned", begin=f"{base}@4", rlhf__total_prompts=16, **STILL)
    return directory


def leaves(params):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def test_from_the_sft_policy_the_same_run_comes_again(base, tmp_path):
    """With the same settings: SFT policy and reward model are taken as they are, and no stage is
    run again.
    """
    again = tmp_path / "again"
    runs.run(again, reward="learned", begin=str(base))
    assert not runs.differences(base, again)
    (start,) = map(json.loads, (again / "starts.jsonl").read_text().splitlines())
    assert start["origins"] == {"sft": str(base), "reward_model": str(base)}
    assert sorted(path.name for path in (again / "checkpoints").iterdir()) == ["rlhf"]
    assert not (again / "comparisons").exists()
    stages = {
        line["stage"]
        for line in map(json.loads, (again / "metrics.jsonl").read_text().splitlines())
    }
    assert stages == {"rlhf", "evaluate", "best_of_n"}
    of = [
        line.get("of")
        for line in map(json.loads, (again / "metrics.jsonl").read_text().splitlines())
    ]
    assert "reward_model" not in of


def test_what_is_taken_is_bitwise_that_runs(base, fork):
    workspace, *_ = build.of_directory(fork)
    assert runs.same(leaves(sft.load(workspace)), runs.policy(base, "sft"))
    params, standard = reward_model.load(workspace)
    assert runs.same(leaves(params), runs.policy(base, "reward_model"))
    assert standard.__dict__ == json.loads((base / "reward_model.json").read_text())
    first = rlhf.first_policy(workspace, sft.load(workspace))
    assert runs.same(leaves(first), runs.policy(base, step=4))
    assert not runs.same(leaves(first), runs.policy(base, "sft"))


def test_a_version_is_where_the_policy_begins(base, fork):
    """As version 0, with a fresh optimizer; nothing has moved it since."""
    assert runs.steps(fork) == [1, 2, 3, 4]
    assert runs.same(runs.policy(fork, step=1), runs.policy(base, step=4))


def test_version_0_is_evaluated_as_that_version_was(base, fork):
    """With its KL to the SFT policy, which stays the reference."""
    before = next(
        line
        for line in runs.lines(base, "metrics.jsonl")
        if line["stage"] == "evaluate" and line["update"] == 4
    )
    after = next(
        line
        for line in runs.lines(fork, "metrics.jsonl")
        if line["stage"] == "evaluate" and line["update"] == 0
    )
    assert after["kl"] > 0
    assert before | {"update": 0} == after


def test_the_ratio_of_the_first_update_is_to_the_version(base, fork):
    """Its samples are its own, and the reference's log-probabilities are the SFT policy's."""
    rows = [json.loads(line) for line in (fork / "ledger.jsonl").read_text().splitlines()]
    first = [row for row in rows if row["round"] == 0]
    assert all(row["version"] == 0 for row in first)
    assert any(abs(row["behavior_logprob"] - row["reference_logprob"]) > 1e-3 for row in first)


def test_both_are_in_the_config_and_on_the_page(base, fork):
    assert json.loads((fork / "config.json").read_text())["begin"] == f"{base}@4"
    assert runs.last_start(fork)["begin"] == f"{base}@4"
    assert report.main([f"--directory={fork}"]) == 0
    page = (fork / "report.html").read_text()
    assert f"<dd>{base}@4" in page
    assert "stage sft has not begun" not in page


def test_a_fork_is_evaluated_and_exported(fork, tmp_path, capsys):
    copy = shutil.copytree(fork, tmp_path / "copy")
    assert evaluate.main([f"--directory={copy}"]) == 0
    lines = [json.loads(line) for line in (copy / evaluate.FILE).read_text().splitlines()]
    assert [line["version"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[0]["kl"] == lines[1]["kl"] > 0
    for stage in ("sft", "rlhf", "reward_model"):
        assert (
            export_command.main(
                [f"--directory={copy}", f"--stage={stage}", f"--to={tmp_path / stage}"]
            )
            == 0
        )


def test_a_fork_is_gone_on_with_where_that_version_is_gone(base, fork, tmp_path, capsys):
    """Once it has a checkpoint of its own it needs the SFT policy and the reward model alone."""
    parent = shutil.copytree(base, tmp_path / "parent")
    settings = {"reward": "learned", "begin": f"{parent}@4", "rlhf__total_prompts": 16} | STILL
    run = tmp_path / "run"
    runs.run(run, **settings)
    for step in (3, 4):
        shutil.rmtree(run / "checkpoints" / "rlhf" / str(step))
    shutil.rmtree(parent / "checkpoints" / "rlhf" / "4")
    runs.run(run, **settings)
    assert not runs.differences(fork, run)
    assert evaluate.main([f"--directory={run}"]) == 0
    assert "version 0 is not evaluated" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints" / "rlhf")
    with pytest.raises(MissingInput, match="has no version 4; it has: 1, 2, 3, 5"):
        runs.run(run, **settings)


def test_a_fork_of_a_fork(base, fork, tmp_path):
    """The reference is the first run's SFT policy, and version 0 what the fork began from."""
    for name, version in (("of_first", 0), ("of_last", 4)):
        run = tmp_path / name
        runs.run(run, reward="learned", begin=f"{fork}@{version}", rlhf__total_prompts=4, **STILL)
        assert runs.same(runs.policy(run), runs.policy(base, step=4))
        workspace, *_ = build.of_directory(run)
        assert runs.same(leaves(sft.load(workspace)), runs.policy(base, "sft"))
        assert runs.same(leaves(reward_model.load(workspace)[0]), runs.policy(base, "reward_model"))


def test_a_run_without_a_reward_model_leaves_it_to_be_trained(base, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(base / "checkpoints" / "sft", bare / "checkpoints" / "sft")
    runs.run(bare, job="sft", reward="gold")
    run = tmp_path / "run"
    runs.run(run, reward="learned", begin=str(bare), rlhf__total_prompts=4)
    assert runs.same(runs.policy(run, "reward_model"), runs.policy(base, "reward_model"))
    assert (run / "reward_model.json").read_bytes() == (base / "reward_model.json").read_bytes()
    assert not (bare / "reward_model.json").exists(), "nothing is written there"


def test_nothing_is_written_to_the_run_that_is_begun_from(base, tmp_path):
    before = runs.tree(base)
    runs.run(tmp_path / "run", reward="learned", begin=f"{base}@8", rlhf__total_prompts=4)
    assert runs.tree(base) == before


def test_other_settings_may_be_chosen(base, tmp_path):
    """Another algorithm with a critic, another seed and other lengths."""
    run = tmp_path / "run"
    changed = {
        "seed": 5,
        "lengths__max_completion_tokens": 6,
        "rlhf__total_prompts": 4,
        "rlhf__lag": 0,
    }
    runs.run(run, algorithm="ppo", reward="learned", begin=f"{base}@8", **changed)
    assert runs.steps(run) == [1]


REFUSED = [
    ({"begin": "{base}@9"}, r"has no version 9; it has: 1, 2, 3, 4, 5, 6, 7, 8"),
    ({"begin": "{base}/checkpoints"}, r"checkpoints/config\.json is missing"),
    ({"begin": "nowhere@3"}, r"begin is 'nowhere@3': nowhere/config\.json is missing"),
    ({"begin": "{run}"}, r"the run itself"),
    (
        {"model__width": 32},
        r"a run of another kind: model\.width \(16 there, 32 now\); accepted: a run of the same "
        r"model",
    ),
    ({"tokenizer__kind": "characters"}, r"word|alphabet|tokenizer\.kind"),
    ({"task__max_words": 20}, r"task\.max_words \(26 there, 20 now\)"),
    ({"pretrained__sft": "{folder}", "model__family": "pretrained"}, r"pretrained\.sft"),
]


@pytest.mark.parametrize(
    ("changed", "words"), REFUSED, ids=[next(iter(changed)) for changed, _ in REFUSED]
)
def test_what_does_not_fit_is_refused_before_anything_is_written(base, tmp_path, changed, words):
    run, folder = tmp_path / "run", tmp_path / "folder"
    if "pretrained__sft" in changed:
        assert export_command.main([f"--directory={base}", "--stage=sft", f"--to={folder}"]) == 0
    given = {"begin": f"{base}@4", "reward": "learned"} | changed
    given = {
        key: value.format(base=base, run=run, folder=folder) if isinstance(value, str) else value
        for key, value in given.items()
    }
    with pytest.raises(Refusal, match=words) as refused:
        runs.run(run, **given)
    assert "\n" not in str(refused.value)
    assert not run.exists()


def test_sft_that_has_not_ended_is_refused(base, tmp_path):
    half = shutil.copytree(base, tmp_path / "half")
    shutil.rmtree(half / "checkpoints" / "sft" / "4")
    with pytest.raises(MissingInput, match=r"the stage .sft. of .+half has not ended"):
        runs.run(tmp_path / "run", begin=str(half))


def test_a_run_that_was_trained_anew_is_another(base, tmp_path):
    """The fork's reference would be another policy than the one that it was trained against."""
    parent = shutil.copytree(base, tmp_path / "parent")
    run = tmp_path / "run"
    settings = {"begin": str(parent), "rlhf__total_prompts": 8}
    runs.run(run, **settings)
    shutil.rmtree(run / "checkpoints" / "rlhf" / "2")
    moved = parent.rename(tmp_path / "moved")
    runs.run(run, **settings | {"begin": str(moved)})
    shutil.rmtree(run / "checkpoints" / "rlhf" / "2")
    shutil.rmtree(moved / "checkpoints" / "sft" / "4")
    shutil.copytree(moved / "checkpoints" / "sft" / "2", moved / "checkpoints" / "sft" / "4")
    (
        moved / "checkpoints" / "sft" / ".files.json"
    ).unlink()  # which would tell that these are not the files of version 4
    with pytest.raises(Refusal, match=r"begin \(other content than there\)"):
        runs.run(run, **settings | {"begin": str(moved)})


def test_a_run_of_an_older_version_is_begun_from_by_its_own_keys(base, tmp_path, monkeypatch):
    old = shutil.copytree(base, tmp_path / "old")
    for path in old.rglob(stage_records.FILE):
        path.unlink()
    values = json.loads((old / "config.json").read_text())
    values["task"]["most_words"] = values["task"].pop("max_words")
    del values["digests"], values["begin"]
    (old / "config.json").write_text(json.dumps(values))
    with pytest.raises(
        Refusal, match=r"begin is .+task\.most_words=26: this version of the code has no such key"
    ):
        build.prepare(runs.config(tmp_path / "run", begin=str(old)))
    monkeypatch.setitem(history.RENAMED, "task.most_words", "task.max_words")
    build.prepare(runs.config(tmp_path / "run", begin=str(old)))
    with pytest.raises(Refusal, match=r"task\.max_words \(26 there, 20 now\)"):
        build.prepare(runs.config(tmp_path / "other", begin=str(old), task__max_words=20))


def test_the_fork_that_a_refusal_names_works(base, tmp_path):
    """As it is written: the directory of the run and of the new one."""
    run = shutil.copytree(base, tmp_path / "run")
    changed = {"reward": "learned", "algorithm__beta": 0.25, "rlhf__total_prompts": 4}
    with pytest.raises(Refusal, match=r"algorithm\.beta") as refused:
        runs.run(run, **changed)
    words = str(refused.value).split()
    named = dict(
        word.removeprefix("--config.").split("=") for word in words if word.startswith("--config.")
    )
    assert named == {"begin": f"{run}@8", "directory": f"{run}_fork"}
    runs.run(tmp_path / "run_fork", begin=named["begin"], **changed)
    assert runs.steps(tmp_path / "run_fork") == [1]
