"""Completions of given prompts by a kept version and by the SFT policy: the command, its table and
its errors.
"""

from pathlib import Path

import pytest

from rlhf_jax import build
from rlhf_jax.cli import generate as command
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.stages import rlhf
from rlhf_jax.stages.common import generate
from rlhf_jax.stages.common.generate import Request
from rlhf_jax.text import chat
from tests.stages import runs

PROMPT = "review of the old inn . the staff was"
OTHER = "review of the modern inn . the room was"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 updates that keeps its policies; its learning rate is large, so that they differ."""
    directory = tmp_path_factory.mktemp("generate") / "run"
    runs.run(
        directory,
        rlhf__optimizer__learning_rate=0.05,
        rlhf__lag=1,
        rlhf__total_prompts=16,
        best_of_n=(),
    )
    return directory


@pytest.fixture(scope="module")
def workspace(run: Path):
    return build.of_directory(run)[0]


def test_versions_answer_beside_the_sft_policy(workspace) -> None:
    newest = rlhf.versions(workspace)[-1]
    found = generate.side_by_side(workspace, None, Request((PROMPT, OTHER)))
    assert list(found) == ["SFT policy", f"version {newest}"]
    assert all(len(texts) == 2 for texts in found.values())
    assert found["SFT policy"] != found[f"version {newest}"]
    again = generate.side_by_side(workspace, 0, Request((PROMPT, OTHER)))
    assert again["version 0"] == found["SFT policy"]  # the same policy and random numbers
    older = generate.side_by_side(workspace, newest - 1, Request((PROMPT, OTHER)))
    assert older["SFT policy"] == found["SFT policy"]


def test_seed_temperature_and_length_are_as_asked_for(workspace) -> None:
    def sft(**settings) -> list[generate.Completion]:
        return generate.side_by_side(workspace, 0, Request((PROMPT,), **settings))["SFT policy"]

    assert sft(seed=workspace.seed) == sft()
    assert sft(seed=workspace.seed + 1) != sft()
    assert sft(temperature=0.0, seed=1) == sft(temperature=0.0, seed=2)
    assert [len(answer.text.split()) for answer in sft(max_tokens=3)] == [3]


def test_the_command_prints_a_row_for_each_prompt(run: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    arguments = [f"{run}@3", "--prompt", PROMPT, "--prompt", OTHER, "--temperature=0"]
    assert command.main(arguments) == 0
    out = capsys.readouterr().out
    head, *rows = [line for line in out.splitlines() if line.strip(" ─")]
    assert head.split() == ["prompt", "SFT", "policy", "version", "3"]
    assert [PROMPT in rows[0], OTHER in rows[1]] == [True, True]


def test_errors_name_the_kept_versions_and_what_is_accepted(run: Path, workspace, capsys) -> None:
    kept = ", ".join(map(str, rlhf.versions(workspace)))
    with pytest.raises(MissingInput, match=f"has no version 77; it has: 0, {kept}$"):
        generate.side_by_side(workspace, 77, Request((PROMPT,)))
    with pytest.raises(Refusal, match="word 'zebra' of the text 'the zebra'"):
        generate.side_by_side(workspace, None, Request(("the zebra",)))
    with pytest.raises(Refusal, match="a prompt has 0 tokens"):
        generate.side_by_side(workspace, None, Request(("",)))
    with pytest.raises(Refusal, match="--temperature is -1; accepted: 0"):
        generate.side_by_side(workspace, None, Request((PROMPT,), temperature=-1.0))
    with pytest.raises(Refusal, match="--max_tokens is 0; accepted: 1 to"):
        generate.side_by_side(workspace, None, Request((PROMPT,), max_tokens=0))
    with pytest.raises(Refusal, match="--seed is -1; accepted: 0 to"):
        generate.side_by_side(workspace, None, Request((PROMPT,), seed=-1))
    with pytest.raises(Refusal, match="--chat needs a chat template"):
        generate.side_by_side(workspace, None, Request((PROMPT,), is_chat=True))
    for wrong in (f"{run}@77", f"{run}_nowhere"):
        assert command.main([wrong, "--prompt", PROMPT]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")


def test_chat_puts_a_prompt_into_the_task_s_template(workspace, monkeypatch) -> None:
    monkeypatch.setattr(type(workspace.task), "template", chat.PYTHIA, raising=False)
    text = generate.rendered(workspace, "hello")
    assert text == "<|user|>hello<|endoftext|><|assistant|>"
    assert isinstance(text, chat.Rendered)  # no BOS is put before it
