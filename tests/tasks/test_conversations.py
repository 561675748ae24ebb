"""No Robots and UltraFeedback: conversations to prompts and replies, comparisons, and what does not
fit.
"""

import dataclasses
import json
import re

import pytest

from rlhf_jax.config import fill
from rlhf_jax.tasks import no_robots, ultrafeedback
from rlhf_jax.text import chat
from tests.tasks import published

EOS = "</s>"


@pytest.fixture(scope="module")
def robots(tmp_path_factory):
    folder = published.write_no_robots(tmp_path_factory.mktemp("no_robots"))
    return no_robots.make(no_robots.Config(str(folder), eos_token=EOS))


@pytest.fixture(scope="module")
def feedback_folder(tmp_path_factory):
    return published.write_ultrafeedback(tmp_path_factory.mktemp("ultrafeedback"))


@pytest.fixture(scope="module")
def feedback(feedback_folder):
    return ultrafeedback.make(ultrafeedback.Config(str(feedback_folder)))


def test_the_last_reply_is_the_reference_and_the_rest_is_context(robots):
    assert (
        robots.prompt("train", 3)
        == "<|user|>\nHow many coins does Dan have? Hint 3.\n<|assistant|>\n"
    )
    assert robots.references("train", 3) == ("Dan has 3 coins.",)
    assert robots.prompt("train", 7) == (
        "<|system|>\nAda answers.\n<|user|>\nHow many eggs does Ada have? Hint "
        "7.\n<|assistant|>\nAda has 7 eggs.</s>\n"
        "<|user|>\nAnd tomorrow?\n\n<|assistant|>\n"
    )
    assert robots.references("train", 7) == ("8, I think 😀.",)
    assert [robots.num_prompts(split) for split in ("train", "heldout")] == [13, 11]
    assert "Hint 100." in robots.prompt("heldout", 0)
    assert not robots.comparisons("train")


@pytest.mark.parametrize("names", [("train_sft", "test_sft"), ("train", "test_sft")])
def test_older_names_of_the_splits(tmp_path, names):
    train, heldout = published.no_robots_rows(5), published.no_robots_rows(7, first=50)
    published.write_parquet(
        tmp_path / "data" / f"{names[0]}-00000-of-00001-0123456789abcdef.parquet", train
    )
    published.write_parquet(
        tmp_path / "data" / f"{names[1]}-00000-of-00001-0123456789abcdef.parquet", heldout
    )
    task = no_robots.make(no_robots.Config(str(tmp_path), eos_token=EOS))
    assert [task.num_prompts(split) for split in ("train", "heldout")] == [5, 7]


def test_another_template_makes_records_of_its_own(tmp_path):
    folder = published.write_no_robots(tmp_path / "data_set")
    template = tmp_path / "plain.jinja"
    told = []
    for text in (
        "{{ bos_token }}{{ messages[-1].content }}",
        "{{ messages[-1].content }}{{ bos_token }}",
    ):
        template.write_text(text)
        config = no_robots.Config(str(folder), chat_template=str(template), bos_token="<s>")
        told.append(no_robots.make(config).prompt("train", 0))
    assert told == [
        "<s>How many apples does Ada have? Hint 0.",
        "How many apples does Ada have? Hint 0.<s>",
    ]


USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("text", r":2: 'messages' is \"text\"; accepted: a list of messages"),
        (
            [USER, {"role": "assistant", "content": None}],
            r"message 2 of 'messages': 'content' is null",
        ),
        ([USER, {"role": "assistant"}], r"message 2 of 'messages': 'content' is null"),
        (
            [USER, {"role": "assistant", "content": "\ud83d"}],
            r"message 2 of 'messages': 'content' holds '.ud83d', half",
        ),
        ([USER, {"role": "assistant", "content": ""}], "the last reply of 'messages' is empty"),
        (
            [USER, ASSISTANT, USER, ASSISTANT],
            "'eos_token' is undefined; given: .*; task.bos_token and task.eos_token give",
        ),
    ],
)
def test_a_malformed_conversation_is_named(tmp_path, messages, message):
    rows = [{"messages": [USER, ASSISTANT]}, {"messages": messages}]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=message) as error:
        no_robots.make(no_robots.Config(str(tmp_path)))
    assert "train.jsonl:2" in str(error.value)
    assert "\n" not in str(error.value)


USERS_ONLY = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('System role "
    "not supported') }}"
    "{% endif %}<{{ message.role }}>{{ message.content }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (
            [],
            "'messages' has the roles none; accepted: system, user, assistant, with an assistant's "
            "reply at the end",
        ),
        ([USER], "'messages' has the roles user; accepted"),
        ([ASSISTANT], "'messages' has the roles assistant; accepted"),
        ([SYSTEM], "'messages' has the roles system; accepted"),
        (
            [USER, {"role": "tool", "content": "x"}, ASSISTANT],
            "'messages' has the roles user, tool, assistant; accepted",
        ),
        ([SYSTEM, USER, ASSISTANT], r"chat template .*users\.jinja: System role not supported"),
        ([SYSTEM, ASSISTANT], r"chat template .*users\.jinja: System role not supported"),
    ],
)
def test_a_conversation_without_use_is_left_out_and_told(tmp_path, messages, reason):
    """One such row does not end the run; where no row is left, the reason does."""
    template = tmp_path / "users.jinja"
    template.write_text(USERS_ONLY)
    rows = [
        {"messages": [USER, ASSISTANT]},
        {"messages": messages},
        {"messages": published.chat("r", "b")},
    ]
    for split in ("train", "test"):
        published.write_jsonl(
            tmp_path / f"{split}.jsonl",
            rows if split == "train" else [{"messages": published.chat("t", "c")}],
        )
    make = lambda: no_robots.make(no_robots.Config(str(tmp_path), chat_template=str(template)))  # noqa: E731
    task = make()
    assert [task.prompt("train", n) for n in range(task.num_prompts("train"))] == [
        "<user>q",
        "<user>r",
    ]
    assert re.search(
        rf"train: 2 of 3 rows \(9500 are published\), 1 left out: .*train\.jsonl:2: {reason}",
        task.description,
    )
    assert "heldout: 1 of 1 rows (500 are published)" in task.description
    published.write_jsonl(tmp_path / "train.jsonl", [{"messages": messages}] * 3)
    with pytest.raises(
        ValueError,
        match=rf"none of 3 rows is left for the split 'train'; 3 left out: .*:1: {reason}",
    ):
        make()


@pytest.mark.parametrize(
    "messages", [[SYSTEM, USER, ASSISTANT], [SYSTEM, ASSISTANT], [USER, SYSTEM, ASSISTANT]]
)
def test_a_system_message_is_the_template_s_to_place(tmp_path, messages):
    for split in ("train", "test"):
        other = [{"role": "user", "content": split}, ASSISTANT]
        published.write_jsonl(
            tmp_path / f"{split}.jsonl",
            [{"messages": other}, {"messages": messages}][: 1 + (split == "train")],
        )
    task = no_robots.make(no_robots.Config(str(tmp_path)))
    told = {"system": "<|system|>\ns\n", "user": "<|user|>\nq\n"}
    prompt = "".join(told[message["role"]] for message in messages[:-1]) + "<|assistant|>\n"
    assert task.prompt("train", 1) == prompt
    assert list(task.prompt("train", 1).messages) == messages[:-1]


def test_a_reply_that_is_an_eos_alone_is_empty(tmp_path):
    rows = [
        {"messages": published.chat("q", "fine</s>")},
        {"messages": published.chat("r", "</s></s>")},
    ]
    published.write_jsonl(tmp_path / "train.jsonl", rows)
    published.write_jsonl(tmp_path / "test.jsonl", [{"messages": published.chat("t", "c")}])
    with pytest.raises(ValueError, match=r"train\.jsonl:2: the last reply of 'messages' is empty"):
        no_robots.make(no_robots.Config(str(tmp_path), eos_token=EOS))
    published.write_jsonl(tmp_path / "train.jsonl", rows[:1])
    assert no_robots.make(no_robots.Config(str(tmp_path), eos_token=EOS)).references(
        "train", 0
    ) == ("fine",)


def test_a_template_s_date_is_part_of_the_records(tmp_path):
    folder = published.write_no_robots(tmp_path / "data_set")
    template = tmp_path / "dated.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}{{ messages[-1].content }}")
    config = no_robots.Config(str(folder), chat_template=str(template), date="2025-01-31")
    for date, told in (("2025-01-31", "31 Jan 2025"), ("2024-02-29", "29 Feb 2024")):
        task = no_robots.make(dataclasses.replace(config, date=date))
        assert task.prompt("train", 0).startswith(told)
        assert task.template.date == date
    for date, message in (
        ("", r"set task\.date"),
        ("soon", r"task\.date is 'soon'; accepted: a day"),
    ):
        with pytest.raises(ValueError, match=message):
            no_robots.make(dataclasses.replace(config, date=date))


def test_prompts_are_rendered_conversations_whatever_is_asked_of_them(feedback, robots):
    tasks = {"feedback": feedback, "robots": robots}
    tasks["fitted"] = feedback.fitted(lambda texts: [len(text) for text in texts], 100)
    for task in tasks.values():
        prompts = [task.prompt("train", 1), *(pair[0] for pair in task.comparisons("train")[:2])]
        assert all(isinstance(prompt, chat.Rendered) for prompt in prompts)
        for prompt in prompts:
            assert chat.render(task.template, prompt.messages, add_generation_prompt=True) == prompt


def test_prompts_and_pairs(feedback):
    prompt = "<|user|>Name 2 eggs, please.<|endoftext|><|assistant|>"
    assert feedback.prompt("train", 2) == prompt
    assert feedback.references("train", 2) == ("Here are 2 of them, Cleo.",)
    assert feedback.comparisons("train")[2] == (prompt, "Here are 2 of them, Cleo.", "No.")
    # Rows 3 and 8 of 13 are ties, and 103 and 108 of those held out.
    assert [len(feedback.comparisons(split)) for split in ("train", "heldout")] == [11, 9]
    assert [feedback.num_prompts(split) for split in ("train", "heldout")] == [13, 11]
    assert not any("Name 3 " in prompt for prompt, _, _ in feedback.comparisons("train"))


def test_ties_may_be_kept(feedback_folder):
    task = ultrafeedback.make(ultrafeedback.Config(str(feedback_folder), ties=True))
    assert [len(task.comparisons(split)) for split in ("train", "heldout")] == [13, 11]


def pair(n, chosen="yes", rejected="no", scores=(2.0, 1.0), other=None):
    ask = f"question {n}"
    both = {
        "chosen": published.chat(ask, chosen),
        "rejected": published.chat(other or ask, rejected),
    }
    return both | {"score_chosen": scores[0], "score_rejected": scores[1]}


def write(folder, *rows):
    published.write_jsonl(folder / "train_prefs.jsonl", [pair(0), *rows])
    published.write_jsonl(folder / "test_prefs.jsonl", [pair(100)])
    return ultrafeedback.make(ultrafeedback.Config(str(folder)))


def test_rows_that_compare_nothing(tmp_path):
    task = write(
        tmp_path,
        pair(1, rejected="N/A", scores=(3.0, -100.0)),
        pair(2, chosen="no"),
        pair(3, chosen=""),
        pair(4, rejected=""),
        pair(5),
        pair(5, rejected="never"),
    )
    told = [
        (prompt.split("<|")[1][-1], chosen, rejected)
        for prompt, chosen, rejected in task.comparisons("train")
    ]
    assert told == [("0", "yes", "no"), ("4", "yes", ""), ("5", "yes", "no"), ("5", "yes", "never")]
    prompts = [task.prompt("train", n).split("<|")[1][-1] for n in range(task.num_prompts("train"))]
    assert prompts == ["0", "1", "2", "4", "5"]
    assert task.description == (
        "ultrafeedback, prompts: train: 5 of 7 rows (61135 are published); heldout: 1 of 1 rows "
        "(2000 are published)\n"
        "ultrafeedback, comparisons: train: 4 of 7 rows (61135 are published); heldout: 1 of 1 "
        "rows (2000 are published)"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            pair(1, other="q"),
            r"train_prefs\.jsonl:2: 'chosen' and 'rejected' are replies to different prompts",
        ),
        (pair(1, scores=(None, 1.0)), r":2: 'score_chosen' is null; accepted: a number"),
        (pair(1, scores=(float("nan"), 1.0)), r":2: 'score_chosen' is NaN; accepted: a number"),
        (pair(1, scores=(1.0, "5")), r":2: 'score_rejected' is \"5\"; accepted: a number"),
        (pair(1) | {"rejected": "no"}, r":2: 'rejected' is \"no\"; accepted: a list of messages"),
    ],
)
def test_a_malformed_pair_is_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, row)


def test_unpaired_replies_are_refused(tmp_path):
    published.write_jsonl(
        tmp_path / "evol_instruct.jsonl", [{"instruction": "q", "completions": []}]
    )
    with pytest.raises(
        ValueError, match=r"found evol_instruct\.jsonl; .*openbmb/UltraFeedback hold single replies"
    ):
        ultrafeedback.make(ultrafeedback.Config(str(tmp_path)))
    with pytest.raises(ValueError, match=r"task\.max_reply_tokens is -1; accepted: 0"):
        fill(ultrafeedback.Config, {"max_reply_tokens": -1}, "task")


@pytest.mark.parametrize(
    ("limit", "expected"), [(11, ["0"]), (13, ["0", "1"]), (0, ["0", "1", "2"])]
)
def test_rows_with_a_long_prompt_or_reply_are_left_out(tmp_path, limit, expected):
    rows = [pair(1, chosen="y" * 13), pair(2, rejected="n" * 17), pair("of many words")]
    write(tmp_path, *rows)
    task = ultrafeedback.make(ultrafeedback.Config(str(tmp_path), max_reply_tokens=limit))
    longest = len("<|user|>question 100<|endoftext|><|assistant|>")
    fitted = task.fitted(lambda texts: [len(text) for text in texts], longest)
    prompts = [
        fitted.prompt("train", n).split("<|")[1][-1] for n in range(fitted.num_prompts("train"))
    ]
    assert prompts == expected
    assert [prompt.split("<|")[1][-1] for prompt, _, _ in fitted.comparisons("train")] == expected
    assert fitted.references("train", 0) == ("yes",)
