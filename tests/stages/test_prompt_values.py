"""The pass that stores scores of the reference policy's samples, and A*-PO on them: killed, grown,
begun from, in threads and resumed; what another pass is refused with.
"""

import json
import shutil
from typing import Any

import numpy as np
import pytest

from rlhf_jax import build, registry
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.stages import prompt_values
from rlhf_jax.stages.api import Lengths, Workspace
from rlhf_jax.stages.prompt_scores.stored import Pass
from rlhf_jax.stages.settings.prompt_values import PromptValuesConfig
from rlhf_jax.stages.settings.rlhf import Config

from . import runs

CHANGED = {
    "algorithm": "a2po",
    "rlhf__optimizer__schedule": "constant",
    "rlhf__prompt_values__num_samples": 3,
    "rlhf__prompt_values__prompts_per_batch": 8,
    "rlhf__samples_per_prompt": 1,
    "rlhf__total_prompts": 16,
    "rlhf__evaluate_every": 0,
    "best_of_n": (),
    "algorithm__failed_prompts": "keep",
}
FOLDER = "prompt_values"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A pipeline of four rounds, two behind, on one sample of each prompt."""
    directory = tmp_path_factory.mktemp("prompt_values") / "whole"
    runs.run(directory, **CHANGED)
    return directory


def files(directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((directory / FOLDER).glob("*.npz"))}


def started(whole, directory):
    """A copy of the run with its SFT policy and its pass alone."""
    shutil.copytree(whole / "checkpoints" / "sft", directory / "checkpoints" / "sft")
    shutil.copytree(whole / FOLDER, directory / FOLDER)
    return directory


def test_the_pass_is_part_of_the_run(whole):
    """Every prompt has its three scores, which rounds train on; the figures and the time of the stage
    are in the metrics.
    """
    assert list(files(whole)) == ["00000000.npz", "00000008.npz"]
    text = (whole / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    lines = [line for line in lines if FOLDER in (line["stage"], line.get("of"))]
    assert [line.get("kind") or line["stage"] for line in lines] == ["evaluate", "timing"]
    assert lines[0]["score"] <= lines[0]["best_score"]
    updates = [line for line in runs.lines(whole, "metrics.jsonl") if "prompt_value" in line]
    assert len(updates) == 4
    workspace, stages, _ = build.parts(runs.config(whole, **CHANGED))
    table_TS = Pass(workspace, stages.rlhf).table()
    value_T = 0.5 * np.log(np.mean(np.exp(table_TS / 0.5), axis=1))
    for index, line in enumerate(updates):
        np.testing.assert_allclose(line["prompt_value"], value_T[4 * index :][:4].mean(), rtol=1e-5)
    assert len(set(value_T.tolist())) > 1


def test_a_pass_that_was_killed_is_bitwise_the_whole_one(whole, tmp_path, monkeypatch):
    directory, written = started(whole, tmp_path / "killed"), []
    shutil.rmtree(directory / FOLDER)
    write = Pass.write

    def dying(self, ordinal, score_PS):
        if written:
            raise KeyboardInterrupt
        write(self, ordinal, score_PS)
        written.append(ordinal)

    monkeypatch.setattr(Pass, "write", dying)
    with pytest.raises(KeyboardInterrupt):
        runs.run(directory, **CHANGED, job=FOLDER)
    assert list(files(directory)) == ["00000000.npz"]
    monkeypatch.undo()
    runs.run(directory, **CHANGED, job=FOLDER)
    assert files(directory) == files(whole)
    monkeypatch.setattr(prompt_values, "_make", None)  # a whole pass is not made again
    runs.run(directory, **CHANGED, job=FOLDER)


def test_threads_and_a_kill_give_the_same_run(whole, tmp_path):
    """Asynchronous, and resumed from version 2, beside the synchronous run."""
    threaded = started(whole, tmp_path / "threaded")
    runs.run(threaded, **CHANGED, rlhf__loop="asynchronous")
    assert not runs.differences(whole, threaded)
    resumed = tmp_path / "resumed"
    shutil.copytree(whole, resumed)
    for version in (3, 4):
        shutil.rmtree(resumed / "checkpoints" / "rlhf" / str(version))
    runs.run(resumed, **CHANGED)
    assert not runs.differences(whole, resumed)


def test_a_run_that_begins_from_it_takes_its_scores(whole, tmp_path, capsys):
    """Another β₁ needs no other samples; another temperature of sampling does, and RLHF alone is
    refused.
    """
    forked = tmp_path / "forked"
    changed = CHANGED | {"begin": str(whole), "job": "rlhf"}
    runs.run(forked, **changed, algorithm__baseline_temperature=2.0)
    assert not (forked / FOLDER).exists()
    values = [
        [
            line["prompt_value"]
            for line in runs.lines(run, "metrics.jsonl")
            if "prompt_value" in line
        ]
        for run in (whole, forked)
    ]
    assert values[0] != values[1]
    with pytest.raises(
        MissingInput,
        match=r"of other samples than this run's: rlhf\.temperature \(1\.0 there, 0\.5 now\); accepted: "
        r".*--config\.job=prompt_values",
    ):
        runs.run(tmp_path / "colder", **changed, rlhf__temperature=0.5)
    own = tmp_path / "own"
    runs.run(own, **changed | {"job": FOLDER}, rlhf__temperature=0.5)
    assert "rlhf.temperature (1.0 there, 0.5 now)): its own are made" in capsys.readouterr().err
    assert files(own).keys() == files(whole).keys()
    assert files(own) != files(whole)


@pytest.mark.parametrize(
    "changed",
    [
        {"rlhf__prompt_values__num_samples": 2},
        {"rlhf__temperature": 0.5},
        {"lengths__max_completion_tokens": 7},
        {"rlhf__scoring__missing_eos_score": -3.0},
        {"seed": 1},
        {"reward": "learned"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_pass_of_other_samples_is_refused(whole, tmp_path, changed):
    """In the directory of the pass, before anything is run; the key is named."""
    key = next(iter(changed)).replace("__", r"\.")
    directory = started(whole, tmp_path / "changed")
    with pytest.raises(Refusal, match=rf"{key} \(.* there, .* now\)"):
        runs.run(directory, **CHANGED | changed)


def test_what_is_missing_or_damaged_is_named(whole, tmp_path):
    """A pass that has not ended, one of more prompts than there are scores of, and files that were
    changed.
    """
    directory = started(whole, tmp_path / "part")
    (directory / FOLDER / "00000008.npz").unlink()
    with pytest.raises(MissingInput, match=r"scores of 8 of the 16 prompts .*job=prompt_values"):
        runs.run(directory, **CHANGED, job="rlhf")
    runs.run(directory, **CHANGED | {"rlhf__total_prompts": 20}, job=FOLDER)
    assert list(files(directory)) == [*files(whole), "00000016.npz"]
    assert files(whole).items() <= files(directory).items()
    path = directory / FOLDER / "00000008.npz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(Refusal, match=r"00000008\.npz is damaged .*remove the file"):
        runs.run(directory, **CHANGED, job="rlhf")
    shutil.copyfile(directory / FOLDER / "00000000.npz", path)
    with pytest.raises(Refusal, match=r"00000008\.npz has scores of other prompts"):
        runs.run(directory, **CHANGED, job="rlhf")


def test_prompts_of_later_epochs_have_the_scores_of_the_first(tmp_path):
    """A split of few prompts is sampled once, and every later place of the stream finds its own
    prompt's scores, in files of any sizes.
    """
    task = registry.make("tasks", "addition", registry.settings("tasks", "addition")(limit=12))
    missing: Any = None
    workspace = Workspace(tmp_path, 0, task, missing, missing, missing, Lengths())
    sizes = PromptValuesConfig(prompts_per_batch=128)
    own = Pass(workspace, Config(total_prompts=200, prompts_per_update=4, prompt_values=sizes))
    count = task.num_prompts("train")
    assert own.num_prompts == count < 200
    assert own.missing() == [0]
    prompt_P = own.stream.indices(0, count)
    own.write(0, np.repeat(prompt_P[:, None] + 0.5, 8, axis=1)[:3])
    assert own.missing() == [3]
    with pytest.raises(MissingInput, match=rf"scores of 3 of the {count} prompts"):
        own.table()
    own.write(3, np.repeat(prompt_P[:, None] + 0.5, 8, axis=1)[3:])
    expected_T = own.stream.indices(0, 200) + 0.5
    np.testing.assert_array_equal(own.table(), np.repeat(expected_T[:, None], 8, axis=1))
