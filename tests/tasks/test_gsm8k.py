"""GSM8K: the published grader, by hand, and the text of prompts and solutions."""

import pytest

from rlhf_jax.tasks import gsm8k
from tests.tasks import published


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return published.write_gsm8k(tmp_path_factory.mktemp("gsm8k"))


@pytest.fixture(scope="module")
def task(folder):
    return gsm8k.make(gsm8k.Config(data_dir=str(folder)))


def test_the_text_of_a_prompt_and_of_a_solution(task, folder):
    assert task.prompt("train", 2) == (
        "[MATH_TASK] Problem:\nCleo has 989 eggs and buys 7 more.\u2028How many eggs are "
        "there?\n\nSolution:"
    )
    assert task.references("train", 2) == ("\nThere are 989+7 = 996\n#### 996\n",)
    assert task.references("train", 4) == ("\nThere are 991+11 = 1002\n#### 1,002\n",)
    marked = gsm8k.make(gsm8k.Config(data_dir=str(folder), calculator=True, before=" ", after=""))
    assert marked.references("train", 2) == (" There are 989+7 = <<989+7=996>>996\n#### 996",)


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("#### 1002", 1.0),
        ("so #### 1,002\nand #### 7", 1.0),  # the first counts
        ("so #### 7 #### 1002", 0.0),
        ("#### 1002.", 0.0),  # compared as text
        ("#### 1002.0", 0.0),
        ("#### $1002", 0.0),  # the pattern wants a digit
        ("####1002", 0.0),
        ("### 1002", 0.0),
        ("#### -1002", 0.0),
        ("1002", 0.0),
        ("#### 10022", 0.0),
        ("#### 1,0,0,2 dollars", 1.0),  # every comma is dropped
        ("", 0.0),
    ],
)
def test_the_first_number_is_judged_as_text_and_no_end_is_asked_for(task, completion, score):
    for finished in (True, False):
        assert task.judge(task.prompt("train", 4), completion, finished) == score


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("1,234", "1234"),
        ("-5", "-5"),
        ("18.5", "18.5"),
        (".5", ".5"),
        ("12 dollars", "12"),
        ("12%", "12"),
        ("12, so 3 are left", "12"),
        ("12, as before", "12"),
        ("12**", "12"),
        ("12\n500", "12"),
        ("1/2", ""),
        ("1 1/2", ""),
        ("12 500", ""),
        ("12\u00a0500", ""),
        ("12\u202f500", ""),
        ("12'500", ""),
        ("12_500", ""),
        ("1.234,50", ""),
        ("1.2.3", ""),
        ("12-15", ""),
        ("5\u22123", ""),
        ("\u22125", ""),
        ("12:30", ""),
        ("1e5", ""),
        ("12k", ""),
        ("3 x 4", "3"),
        ("3*4", ""),
        ("\u0661\u0662", ""),
        ("12\u0663", ""),
        ("1\u00bd", ""),
        ("12\u00b2", ""),
        ("$12", ""),
        (",", ""),
        ("-", ""),
    ],
)
def test_a_number_is_read_whole_or_not_at_all(text, whole):
    assert gsm8k.number(f"so\n#### {text}") == whole


@pytest.mark.parametrize("text", ["1,234", "-5", "18.5", "1,234,567.25", "7 ", "12,34567"])
def test_a_reference_is_a_number_alone(tmp_path, text):
    folder = published.write_gsm8k(tmp_path)
    published.write_jsonl(folder / "test.jsonl", [{"question": "q", "answer": f"so\n#### {text}"}])
    task = gsm8k.make(gsm8k.Config(data_dir=str(folder)))
    assert task.judge(task.prompt("heldout", 0), f"#### {text.replace(',', '')}", True) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "1/2",
        "12 500",
        "1.234,50",
        "1,5",
        "12,50",
        "12 dollars",
        "12%",
        "12.",
        "7 or 8",
        "\u0661",
        "7\n#### 8",
        "7 ####",
    ],
)
def test_a_reference_that_is_more_than_a_number_is_named(tmp_path, text):
    folder = published.write_gsm8k(tmp_path)
    rows = [*published.gsm8k_rows(1, 100), {"question": "q", "answer": f"so\n#### {text}"}]
    published.write_jsonl(folder / "test.jsonl", rows)
    with pytest.raises(
        ValueError,
        match=r"test\.jsonl:2: 'answer' has no '#### number': .*; accepted: one such line",
    ) as error:
        gsm8k.make(gsm8k.Config(data_dir=str(folder)))
    assert "\n" not in str(error.value)


def test_a_prompt_is_known_by_its_problem(task):
    prompt = task.prompt("heldout", 3)
    (reference,) = task.references("heldout", 3)
    for told in (prompt, f"<s> {prompt}", prompt + " "):
        assert task.judge(told, reference, False) == 1.0
        assert task.judge(told, task.references("heldout", 4)[0], True) == 0.0
    for other in (
        "which way ?",
        prompt.replace("buys", "sells"),
        prompt.removeprefix("[MATH_TASK] "),
    ):
        with pytest.raises(ValueError, match="is not a prompt of gsm8k"):
            task.judge(other, reference, True)


def test_negative_numbers(tmp_path):
    folder = published.write_gsm8k(tmp_path)
    published.write_jsonl(folder / "test.jsonl", [{"question": "q", "answer": "#### -12"}])
    task = gsm8k.make(gsm8k.Config(data_dir=str(folder)))
    assert [
        task.judge(task.prompt("heldout", 0), text, True) for text in ("#### -12", "#### 12")
    ] == [1.0, 0.0]


def test_prompts_that_do_not_fit_are_left_out(task):
    longest = max(
        len(task.prompt("heldout", index)) for index in range(task.num_prompts("heldout"))
    )
    lengths = []

    def count(texts):
        lengths.append(len(texts))
        return [len(text) for text in texts]

    fitted = task.fitted(count, longest - 1)
    kept = [fitted.prompt("heldout", index) for index in range(fitted.num_prompts("heldout"))]
    every = [task.prompt("heldout", index) for index in range(task.num_prompts("heldout"))]
    assert kept == [prompt for prompt in every if len(prompt) < longest] != every
    assert all(
        fitted.judge(prompt, fitted.references("heldout", n)[0], True)
        for n, prompt in enumerate(kept)
    )
    assert lengths == [published.NUM_TRAIN, published.NUM_HELDOUT]
    assert task.num_prompts("heldout") == published.NUM_HELDOUT
    with pytest.raises(
        ValueError, match=r"none of 13 train prompts is left with max_prompt_tokens = 5; raise it"
    ):
        task.fitted(count, 5)
