"""The door of tasks: what a user's task gives is looked at where it enters, and its faults name it."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhf_jax import registry
from rlhf_jax.refusal import ComponentError, Refusal, RewardError
from rlhf_jax.stages import sft
from rlhf_jax.stages.api import Lengths, Workspace
from rlhf_jax.tasks.common import reading
from rlhf_jax.text import tokenizers


class Own:
    """A sound task; a test changes one method."""

    verifiable = False
    has_gold = True
    vocabulary = None

    def num_prompts(self, split):
        return 3

    def prompt(self, split, index):
        return f"prompt {index}"

    def references(self, split, index):
        return ["one", "two"]

    def judge(self, prompt, completion, finished):
        return 1.0


def workspace_of(task, directory: Path = Path("nowhere")) -> Workspace:
    tokenizer = tokenizers.make(tokenizers.Config(kind="bytes"), None)
    model = tiny.make_model(num_layers=1, vocab_size=tokenizer.vocab_size)
    return Workspace(
        directory, 0, task, tokenizer, model, tiny.make_mesh((1, 1, 1)), Lengths(12, 3)
    )


def stream_of(**methods):
    task = Own()
    for name, function in methods.items():
        setattr(task, name, function)
    return workspace_of(task).stream("train", "rlhf")


def test_a_sound_task_passes():
    stream = stream_of()
    assert sorted(stream.texts(0, 3)) == ["prompt 0", "prompt 1", "prompt 2"]
    assert stream.references(0, 1) == [("one", "two")]


@pytest.mark.parametrize("gives", ["", None, 3, b"bytes", ["text"], np.str_("")])
def test_a_prompt_is_a_text(gives):
    with pytest.raises(
        ComponentError,
        match=r"the task Own: prompt\('train', \d\) gave .*; accepted: a text that is not",
    ):
        stream_of(prompt=lambda split, index: gives).prompts(0, 2)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda index: "", r"prompt\('train', 2\) gave ''; accepted: a text that is not empty"),
        (
            lambda index: 1 / (index - 2),
            r"raised in prompt\('train', 2\): ZeroDivisionError: .*_tasks",
        ),
    ],
)
def test_of_all_prompts_the_one_at_fault_is_named(broken, said):
    task = Own()
    task.num_prompts = lambda split: 4  # type: ignore[method-assign]
    assert list(reading.prompts(task, "train")) == [f"prompt {index}" for index in range(4)]  # type: ignore[arg-type]
    task.prompt = lambda split, index: f"prompt {index}" if index != 2 else broken(index)  # type: ignore[method-assign]
    read = reading.prompts(task, "train")  # type: ignore[arg-type]
    assert [next(read), next(read)] == ["prompt 0", "prompt 1"]
    with pytest.raises(ComponentError, match=f"the task Own:? {said}"):
        next(read)


@pytest.mark.parametrize("gives", [None, "3", 2.5, -1, True])
def test_a_number_of_prompts_is_one(gives):
    with pytest.raises(
        ComponentError,
        match=r"the task Own: num_prompts\('train'\) gave .*; accepted: a whole number",
    ):
        stream_of(num_prompts=lambda split: gives).texts(0, 1)


@pytest.mark.parametrize("gives", [None, "one", 3, ("one", None), [b"one"], {"one": 1}])
def test_references_are_texts(gives):
    with pytest.raises(
        ComponentError,
        match=r"the task Own: references\('train', \d\) gave .*; accepted: a tuple of texts",
    ):
        stream_of(references=lambda split, index: gives).references(0, 2)


def test_sft_needs_a_reference_of_every_prompt():
    stream = stream_of(references=lambda split, index: () if index == 1 else ("one",))
    with pytest.raises(
        ComponentError,
        match="the task Own gives no reference for prompt 'prompt 1', which SFT is to learn",
    ):
        sft.rows(stream.workspace, stream, sft.Config(rows_per_update=3), 0)


@pytest.mark.parametrize("method", ["prompt", "num_prompts"])
def test_what_a_task_raises_names_the_call(method):
    def broken(*arguments):
        raise OSError("the disk")

    with pytest.raises(
        ComponentError,
        match=rf"the task Own raised in {method}\('train'.*\): OSError: the disk \(.*test_tasks",
    ):
        stream_of(**{method: broken}).texts(0, 1)


def test_a_task_that_refuses_is_believed():
    def refuses(split, index):
        raise Refusal("task.prompts names no file")

    with pytest.raises(Refusal, match=r"^task\.prompts names no file"):
        stream_of(prompt=refuses).texts(0, 1)


@pytest.mark.parametrize(
    "gives",
    [
        ["abc"],
        [("p", "chosen")],
        [("p", "chosen", None)],
        [("p", "c", "r"), {"prompt": "p"}],
        [("p", "c", 3)],
    ],
)
def test_comparisons_are_three_texts(gives):
    task = Own()
    task.comparisons = lambda split: gives  # type: ignore[attr-defined]
    with pytest.raises(
        ComponentError,
        match=r"the task Own: comparisons\('train'\) gave .*; accepted: \(prompt, .* \(entry \d\)",
    ):
        reading.comparisons(task, "train")  # type: ignore[arg-type]


def test_the_gold_of_a_run_is_checked():
    task = Own()
    task.judge = lambda prompt, completion, finished: None  # type: ignore[method-assign, assignment]
    with pytest.raises(
        RewardError, match="the gold judge of the task Own gave None for completion 0 of 2"
    ):
        workspace_of(task).gold(["p", "q"], ["a", "b"], [True, True])


def test_a_gold_reward_model_is_checked(monkeypatch):
    workspace = workspace_of(Own())
    monkeypatch.setattr(Workspace, "_gold_model", lambda self, *_: np.array([1.0, np.nan]))
    object.__setattr__(workspace.pretrained, "gold", "folder")
    with pytest.raises(
        RewardError, match=r'the gold reward model folder gave nan for completion 1 of 2 .*"q"'
    ):
        workspace.gold(["p", "q"], ["a", "b"], [True, True])


def ordinals(*values: int):
    """Samples of which only the places of their prompts are read."""
    drawn = tiny.draw(tiny.make_model(num_layers=1), tiny.law(2), tiny.make_prompts(2))
    return drawn.replace(ordinal_B=jnp.array(values, jnp.int32))  # type: ignore[attr-defined]


def test_records_are_the_rows_of_the_prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"prompt {n}", "answer": f"{n}", "level": n} for n in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = registry.find("tasks", "jsonl")
    stream = workspace_of(module.make(module.Config(str(path), heldout_percent=0))).stream(
        "train", "rlhf"
    )
    samples = ordinals(5, 5, 4, 4)
    texts, records = stream.texts_of(samples), stream.records_of(samples)
    assert [record["prompt"] for record in records] == texts
    assert [f"prompt {record['level']}" for record in records] == texts
    assert records[0]["references"] == (records[0]["answer"],)
    assert texts[0] == texts[1] != texts[2]


def test_a_task_without_records_has_its_references():
    assert stream_of().records_of(ordinals(0, 0, 1, 1)) == [{"references": ("one", "two")}] * 4
    with pytest.raises(
        ComponentError, match=r"the task Own: record\('train', \d\) gave None; accepted: a mapping"
    ):
        stream_of(record=lambda split, index: None).records_of(ordinals(0, 0, 1, 1))
