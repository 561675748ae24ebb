"""A user's files: what is read, how it is split, and one clear line for everything that can be
wrong with them.
"""

import json

import pytest

from rlhf_jax.config import fill
from rlhf_jax.tasks import jsonl
from rlhf_jax.tasks.api import is_heldout
from rlhf_jax.text import chat


def write(path, lines):
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return str(path)


def entries(count, **more):
    return [
        {"prompt": f"question {number}", "references": [f"reply {number}", "another"], **more}
        for number in range(count)
    ]


def test_prompts_keep_the_order_of_the_file_and_fall_on_the_side_of_their_hash(tmp_path):
    task = jsonl.make(
        jsonl.Config(write(tmp_path / "prompts.jsonl", entries(97)), heldout_percent=30)
    )
    found = {
        split: [task.prompt(split, i) for i in range(task.num_prompts(split))]
        for split in ("train", "heldout")
    }
    every = [f"question {number}" for number in range(97)]
    assert found["heldout"] == [prompt for prompt in every if is_heldout(prompt, 30)]
    assert found["train"] == [prompt for prompt in every if not is_heldout(prompt, 30)]
    number = found["train"][5].removeprefix("question ")
    assert task.references("train", 5) == (f"reply {number}", "another")
    assert task.vocabulary is None


def test_comparisons_fall_on_the_side_of_their_prompt(tmp_path):
    lines = [{"prompt": f"question {n}", "chosen": f"yes {n}", "rejected": "no"} for n in range(31)]
    prompts, comparisons = (
        write(tmp_path / "prompts.jsonl", entries(31)),
        write(tmp_path / "comparisons.jsonl", lines),
    )
    task = jsonl.make(jsonl.Config(prompts, comparisons, heldout_percent=30))
    train, heldout = task.comparisons("train"), task.comparisons("heldout")
    assert len(train) + len(heldout) == 31
    assert heldout
    assert all(is_heldout(prompt, 30) for prompt, _, _ in heldout)
    assert not any(is_heldout(prompt, 30) for prompt, _, _ in train)
    assert train[0] == next(
        (e["prompt"], e["chosen"], "no") for e in lines if not is_heldout(e["prompt"], 30)
    )
    assert jsonl.make(jsonl.Config(prompts, heldout_percent=30)).comparisons("train") == []


def test_an_answer_is_judged_by_exact_match(tmp_path):
    lines = [{"prompt": f"{n} + 1", "answer": str(n + 1)} for n in range(31)]
    task = jsonl.make(jsonl.Config(write(tmp_path / "sums.jsonl", lines)))
    assert task.verifiable
    assert task.has_gold
    assert task.references("train", 0) == (task.references("train", 0)[0],)
    assert task.judge("4 + 1", "5", True) == 1.0
    assert task.judge("4 + 1", " 5\n", True) == 1.0
    assert task.judge("4 + 1", "5", False) == 0.0
    assert task.judge("4 + 1", "55", True) == 0.0
    with pytest.raises(ValueError, match=r"'40 \+ 1' is not a prompt of .*sums\.jsonl"):
        task.judge("40 + 1", "41", True)


def test_without_answers_there_is_no_gold(tmp_path):
    task = jsonl.make(jsonl.Config(write(tmp_path / "open.jsonl", entries(31))))
    assert not task.verifiable
    assert not task.has_gold
    with pytest.raises(ValueError, match="only a learned reward can judge"):
        task.judge("question 4", "reply 4", True)


def test_only_newlines_end_a_line(tmp_path):
    odd = "one\u2028two\x85three\x0cfour\rfive"
    lines = [
        *entries(30),
        json.dumps({"prompt": odd, "references": ["é"]}, ensure_ascii=False).replace(
            "\\r", "\\u000d"
        ),
    ]
    write(tmp_path / "odd.jsonl", lines)
    assert "\u2028" in (tmp_path / "odd.jsonl").read_text(encoding="utf-8")
    for newline in (b"\n", b"\r\n"):
        (tmp_path / "copy.jsonl").write_bytes(
            b"\xef\xbb\xbf" + (tmp_path / "odd.jsonl").read_bytes().replace(b"\n", newline)
        )
        task = jsonl.make(jsonl.Config(str(tmp_path / "copy.jsonl"), heldout_percent=0))
        assert task.num_prompts("train") == 31
        assert task.prompt("train", 30) == odd
        assert task.references("train", 30) == ("é",)


GOOD = {"prompt": "p", "references": ["r"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"not JSON .*; accepted: a JSON object a line"),
        ("", "not JSON"),
        ("[1]", r"found \[1\]; accepted: a JSON object a line"),
        (
            {"references": ["r"]},
            "'prompt' is missing; found 'references'; accepted: 'prompt', 'references', 'answer'",
        ),
        (
            {"prompt": "q"},
            "'references' is missing; found 'prompt'; accepted: a list of one or more texts",
        ),
        ({"prompt": 3, "references": ["r"]}, "'prompt' is 3; accepted: a text that is not empty"),
        ({"prompt": "", "references": ["r"]}, "'prompt' is \"\"; accepted"),
        (
            {"prompt": "q", "references": "r"},
            "'references' is \"r\"; accepted: a list of one or more texts",
        ),
        ({"prompt": "q", "references": []}, r"'references' is \[\]; accepted"),
        ({"prompt": "q", "references": ["r", None]}, r"'references\[1\]' is null; accepted"),
        (
            {"prompt": "q", "reference": ["r"]},
            "'references' is missing; found 'prompt', 'reference'; accepted: a list",
        ),
        (GOOD, r"the prompt \"p\" was given before, at .*:1"),
        (
            {"prompt": "x\ud83d", "references": ["r"]},
            r"'prompt' holds '.ud83d', half of a character",
        ),
        (
            {"prompt": "q", "references": ["r", "b\ude00"]},
            r"'references\[1\]' holds '.ude00', half of a character",
        ),
        (
            '{"prompt": "q", "prompt": "x", "references": ["r"]}',
            'the key "prompt" has two values, "q" and "x"',
        ),
        (
            {"prompt": "q", "references": ["r"], "answer": "a"},
            r"either every line has an \"answer\" or none",
        ),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "bad.jsonl", [GOOD, line])
    with pytest.raises(ValueError, match=message) as error:
        jsonl.make(jsonl.Config(path, heldout_percent=0))
    assert str(error.value).startswith(f"{path}:2: ")
    assert "\n" not in str(error.value)


def test_other_columns_are_the_rows_record(tmp_path):
    """A reward may ask for whatever a row holds; a comparison's other columns are not read."""
    rows = [
        {**GOOD, "answer": "a", "level": 3, "tests": ["x", {"y": 1}]},
        {"prompt": "q", "answer": "b"},
    ]
    pairs = [{"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1}]
    files = write(tmp_path / "prompts.jsonl", rows), write(tmp_path / "pairs.jsonl", pairs)
    task = jsonl.make(jsonl.Config(*files, heldout_percent=0))
    assert task.record("train", 0) == rows[0] | {"references": ("r",)}
    assert task.record("train", 1) == {"prompt": "q", "answer": "b", "references": ("b",)}
    assert task.comparisons("train") == [("p", "a", "b")]


def test_an_answer_that_is_missing_later_is_named_too(tmp_path):
    path = write(
        tmp_path / "bad.jsonl", [{**GOOD, "answer": "a"}, {"prompt": "q", "references": ["r"]}]
    )
    with pytest.raises(ValueError, match=r":2: either every line has an \"answer\" or none"):
        jsonl.make(jsonl.Config(path, heldout_percent=0))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "p", "chosen": "a"}, "'rejected' is missing; found 'prompt', 'chosen'"),
        ({"prompt": "p", "chosen": "a", "rejected": 0}, "'rejected' is 0; accepted"),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b\ud83d"},
            "'rejected' holds '.ud83d', half of a character",
        ),
        (
            {"prompt": "p", "chosen": "a", "rejected": "a"},
            r"chosen and rejected are the same text, \"a\"",
        ),
    ],
)
def test_a_malformed_comparison_is_named(tmp_path, line, message):
    prompts = write(tmp_path / "prompts.jsonl", [GOOD])
    path = write(tmp_path / "comparisons.jsonl", [line])
    with pytest.raises(ValueError, match=message) as error:
        jsonl.make(jsonl.Config(prompts, path, heldout_percent=0))
    assert str(error.value).startswith(f"{path}:1: ")


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "latin.jsonl").write_bytes(
        b'{"prompt": "p", "references": ["r"]}\n{"prompt": "caf\xe9"}\n'
    )
    for path, message in [
        ("", "task.prompts '' is not there; it should name a file"),
        (str(tmp_path / "none.jsonl"), "is not there"),
        (str(tmp_path), "is not there; it should name a file"),
        (str(tmp_path / "empty.jsonl"), r"empty\.jsonl is empty"),
        (str(tmp_path / "latin.jsonl"), r"latin\.jsonl:2: found a byte 0xe9 that is not UTF-8"),
    ]:
        with pytest.raises(ValueError, match=message):
            jsonl.make(jsonl.Config(path))
    with pytest.raises(ValueError, match=r"task\.comparisons .*none\.jsonl' is not there"):
        jsonl.make(
            jsonl.Config(
                write(tmp_path / "p.jsonl", [GOOD]), str(tmp_path / "none.jsonl"), heldout_percent=0
            )
        )


def test_a_side_without_prompts_is_an_error_unless_it_was_asked_for(tmp_path):
    path = write(tmp_path / "prompts.jsonl", [GOOD])
    with pytest.raises(
        ValueError,
        match=r"none of the 1 prompts of .* falls on the heldout side .*heldout_percent=1;",
    ):
        jsonl.make(jsonl.Config(path, heldout_percent=1))
    assert jsonl.make(jsonl.Config(path, heldout_percent=0)).num_prompts("heldout") == 0
    with pytest.raises(ValueError, match="heldout_percent is 100; accepted: 0 to 99"):
        fill(jsonl.Config, {"prompts": path, "heldout_percent": 100}, "task")


def test_prompts_that_are_rendered_already_get_no_bos(tmp_path):
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    paths = write(tmp_path / "prompts.jsonl", [GOOD]), pairs
    for rendered in (False, True):
        task = jsonl.make(jsonl.Config(*paths, heldout_percent=0, rendered=rendered))
        for prompt in (task.prompt("train", 0), task.comparisons("train")[0][0]):
            assert isinstance(prompt, chat.Rendered) == rendered
            assert prompt == "p"
        assert task.references("train", 0) == ("r",)
