"""Promises of every task in `tasks/`, and of those of `--component`.

Prompts by index, a clean split, references that tokenise, a sound judge.
"""

import hashlib
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from rlhf_jax import build, registry
from rlhf_jax.tasks import api
from rlhf_jax.tasks.common import reading
from rlhf_jax.text import tokenizers
from tests import components
from tests.tasks import published

SPLITS = ("train", "heldout")
PUBLISHED = {  # read files that somebody else publishes, one reference a prompt
    "gsm8k": published.write_gsm8k,
    "tldr": published.write_tldr,
    "no_robots": published.write_no_robots,
    "ultrafeedback": published.write_ultrafeedback,
}
EMBEDDED = [name for name in registry.names("tasks") if name not in {"jsonl", *PUBLISHED}]
OPTIONS = {"no_robots": {"eos_token": "<|end_of_text|>"}}
ENDLESS = {"gsm8k", "sentiment"}  # their judges ask for no EOS
SMALL = {"sentiment"}  # fewer prompts, of which more are held out
WITHOUT_REFERENCES = {"sentiment"}

# sha256 of the first 50 prompts and their references of both splits. Where one moves, every number
# ever measured on the task moves with it: change it in a commit that says why, and run the
# published experiments again.
GOLDEN = {
    "addition": "a57b33088c3bd8b1ff496852fe5b3f78cd5f4f291b58906649e5dde59558381f",
    "reviews": "723e5613ad1962d34d847fb864851e855b2fcc06a7aef42eb588238759b8a5cb",
    "running_sums": "3d61d77c487ccffbc38648216388dc0a431f8082ddb724a7121abf900abc1958",
    "sentiment": "7b17ef6873ae0f3919052b249a86a383c0f2dc56d4a7ee593398eed6571ca840",
}

DIGEST = """
import hashlib, sys
from rlhf_jax import registry
module = registry.find("tasks", sys.argv[1])
task = module.make(module.Config())
lines = [
    part for split in ("train", "heldout") for i in range(50) for part in (task.prompt(split, i), *task.references(split, i))
]
print(hashlib.sha256("\\n".join(lines).encode()).hexdigest())
"""


@pytest.fixture(scope="session")
def make(tmp_path_factory):
    """Builds a fresh task by name; `jsonl` reads a file of sums, a published task small files of
    its format.
    """
    path = tmp_path_factory.mktemp("jsonl") / "prompts.jsonl"
    folders = {name: str(write(tmp_path_factory.mktemp(name))) for name, write in PUBLISHED.items()}
    lines = [
        json.dumps({"prompt": f"{n} und {n + 1} ?", "references": ["ja"], "answer": str(2 * n + 1)})
        for n in range(211)
    ]
    path.write_text("\n".join(lines))

    def made(name):
        if components.is_own("tasks", name):
            return components.make("tasks", name)
        module = registry.find("tasks", name)
        if name in PUBLISHED:
            return module.make(module.Config(data_dir=folders[name], **OPTIONS.get(name, {})))
        return module.make(module.Config(prompts=str(path)) if name == "jsonl" else module.Config())

    return made


@pytest.fixture(scope="session", params=components.names("tasks"))
def name(request):
    return request.param


@pytest.fixture(scope="session")
def task(make, name):
    return make(name)


def test_has_all_that_a_task_has(name, task):
    build.check_task(task, name)


def spread(task, split, count=101):
    """Indices over the whole split, ends included."""
    return np.unique(np.linspace(0, task.num_prompts(split) - 1, count).astype(int)).tolist()


def test_two_instances_agree_in_any_order_of_asking(make, name, task):
    other = make(name)
    for split in SPLITS:
        assert other.num_prompts(split) == task.num_prompts(split) > 0
        for index in reversed(spread(task, split)):
            assert other.prompt(split, index) == task.prompt(split, index)
            assert other.references(split, index) == task.references(split, index)


@pytest.mark.parametrize("name", EMBEDDED)
def test_another_process_agrees_and_nothing_moved(name):
    found = subprocess.run(
        [sys.executable, "-c", DIGEST, name], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert found == GOLDEN[name], (
        f"the corpus of {name} has changed; see GOLDEN above for what that means"
    )


def test_prompts_are_distinct_and_on_one_side_only(name, task):
    texts = {
        split: [task.prompt(split, i) for i in range(task.num_prompts(split))] for split in SPLITS
    }
    every = texts["train"] + texts["heldout"]
    assert len(set(every)) == len(every)
    if name in EMBEDDED and name not in SMALL:
        assert len(every) >= 10_000
        assert 0.09 < len(texts["heldout"]) / len(every) < 0.11


def test_references_are_several_where_the_task_has_no_one_answer(name, task):
    for split in SPLITS:
        for index in spread(task, split):
            references = task.references(split, index)
            assert all(references)
            if name in WITHOUT_REFERENCES:
                assert not references
                continue
            few = task.verifiable or name in PUBLISHED or components.is_own("tasks", name)
            assert len(references) >= (1 if few else 4)


def test_one_reference_is_that_of_all_of_them(name, task):
    """`reference`, where a task has it, and the door that calls it, which goes round."""
    for split in SPLITS:
        for index in spread(task, split):
            texts = task.references(split, index)
            for number in range(2 * len(texts) + 1):
                given = reading.reference(task, split, index, number)
                assert given == (texts[number % len(texts)] if texts else None), name


def test_prompts_and_references_come_back_from_their_tokens(name, task):
    if task.vocabulary is None:
        tokenizer = tokenizers.make(tokenizers.Config("bytes"), None)
    else:
        kind = "characters" if all(len(symbol) == 1 for symbol in task.vocabulary) else "words"
        tokenizer = tokenizers.make(tokenizers.Config(kind), task.vocabulary)
    for split in SPLITS:
        for index in spread(task, split):
            for text in (task.prompt(split, index), *task.references(split, index)):
                assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_judge_is_finite_steady_and_wants_an_end(name, task):
    if not task.has_gold:
        with pytest.raises(ValueError, match="only a learned reward can judge"):
            task.judge(task.prompt("train", 0), task.references("train", 0)[0], True)
        return
    for split in SPLITS:
        for index in spread(task, split):
            prompt, references = task.prompt(split, index), task.references(split, index)
            first = references[0] if references else " great, but not cheap."
            answers = [*references, "", " ", "\n", "zzz ?", first[::-1], first * 7]
            for completion in answers:
                ended, cut = (
                    task.judge(prompt, completion, finished) for finished in (True, False)
                )
                assert isinstance(ended, int | float if components.is_own("tasks", name) else float)
                assert math.isfinite(ended)
                assert math.isfinite(cut)
                assert ended == task.judge(prompt, completion, True)
                assert cut <= ended
            best = max(answers, key=lambda text: task.judge(prompt, text, True))
            if (
                name not in ENDLESS
                and not components.is_own("tasks", name)
                and task.judge(prompt, best, True) != task.judge(prompt, "zzz ?", True)
            ):
                assert task.judge(prompt, best, False) < task.judge(prompt, best, True)


def test_a_verifiable_judge_is_one_or_nought(task):
    if task.verifiable:
        prompt = task.prompt("train", 0)
        assert {
            task.judge(prompt, text, True)
            for text in ("", "0", "170", *task.references("train", 0))
        } <= {0.0, 1.0}


def test_a_reference_of_a_verifiable_task_is_right(name, task):
    if name == "jsonl" or name in WITHOUT_REFERENCES or not task.has_gold:
        return
    for index in spread(task, "heldout"):
        scores = [
            task.judge(task.prompt("heldout", index), text, True)
            for text in task.references("heldout", index)
        ]
        if task.verifiable:
            assert scores == [1.0]
        assert len(set(scores)) > (0 if task.verifiable or components.is_own("tasks", name) else 1)


def test_another_tasks_prompt_is_an_error(name, task):
    if components.is_own("tasks", name):
        pytest.skip("a task of one's own may judge any text")
    with pytest.raises(
        ValueError,
        match="is not a prompt of" if task.has_gold else "only a learned reward can judge",
    ):
        task.judge("which way ?", "good .", True)


def test_the_stream_is_seekable_and_a_permutation_each_epoch():
    whole = api.stream_indices(num_prompts=11, seed=3, start=0, count=33)
    for epoch in range(3):
        assert sorted(whole[11 * epoch : 11 * (epoch + 1)]) == list(range(11))
    assert not (whole[:11] == whole[11:22]).all()
    for start, count in ((0, 7), (5, 13), (10, 2), (32, 1), (11, 11)):
        assert (api.stream_indices(11, 3, start, count) == whole[start : start + count]).all()
    assert not (api.stream_indices(11, 4, 0, 11) == whole[:11]).all()


def test_the_split_is_a_function_of_the_text_alone():
    # sha256("a") begins ca978112ca1bbdca; as a number modulo 100 that is what decides.
    number = int(hashlib.sha256(b"a").hexdigest()[:16], 16) % 100
    assert [api.is_heldout("a", percent) for percent in (number, number + 1)] == [False, True]
    assert not any(api.is_heldout(f"{n}", 0) for n in range(97))
