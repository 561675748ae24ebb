"""Sums: every pair once, both orders on one side, and a judge that wants each digit and an end."""

import pytest

from rlhf_jax.tasks import addition


@pytest.fixture(scope="module")
def task():
    return addition.make(addition.Config())


def pairs(task, split):
    return [
        tuple(map(int, task.prompt(split, i)[:-1].split("+")))
        for i in range(task.num_prompts(split))
    ]


def test_every_pair_below_the_limit_is_there_once(task):
    # a from 0 to 199 leaves 200 - a values of b: 200 * 201 / 2 pairs.
    found = pairs(task, "train") + pairs(task, "heldout")
    assert len(found) == len(set(found)) == 20_100
    assert all(a >= 0 and b >= 0 and a + b < 200 for a, b in found)


def test_both_orders_of_a_sum_fall_on_one_side(task):
    heldout = set(pairs(task, "heldout"))
    assert {(b, a) for a, b in heldout} == heldout


@pytest.mark.parametrize(
    ("padded", "prompt", "answer"), [(True, "017+058=", "075"), (False, "17+58=", "75")]
)
def test_the_judge_wants_each_digit_and_an_end(padded, prompt, answer):
    task = addition.make(addition.Config(padded=padded))
    assert task.judge(prompt, answer, True) == 1.0
    for completion in (
        "076",
        "76",
        "7",
        "0075",
        answer[:-1],
        answer + " ",
        answer + "=",
        "",
        "7+5",
    ):
        assert task.judge(prompt, completion, True) == 0.0
    assert task.judge(prompt, "75" if padded else "075", True) == 0.0
    assert task.judge(prompt, answer, False) == 0.0


@pytest.mark.parametrize(("limit", "width"), [(200, 3), (100, 2), (11, 2)])
def test_padded_numbers_have_the_digits_of_the_largest(limit, width):
    task = addition.make(addition.Config(limit=limit))
    for index in range(0, task.num_prompts("train"), 7):
        prompt, (answer,) = task.prompt("train", index), task.references("train", index)
        assert len(prompt) == 2 * width + 2
        assert len(answer) == width
        assert int(answer) == sum(int(number) for number in prompt[:-1].split("+"))


@pytest.mark.parametrize("prompt", ["17+58", "17-58=", "+58=", "17+=", "1+7+58=", "=", ""])
def test_other_prompts_are_errors(task, prompt):
    with pytest.raises(ValueError, match=r"is not a prompt of addition: they read like 017\+058="):
        task.judge(prompt, "75", True)


@pytest.mark.parametrize(
    "config",
    [addition.Config(limit=1), addition.Config(limit=0), addition.Config(heldout_percent=100)],
)
def test_a_side_without_pairs_is_an_error(config):
    with pytest.raises(ValueError, match=r"addition has no .* pair with limit="):
        addition.make(config)


def test_nothing_is_held_out_where_nothing_was_asked_for():
    assert addition.make(addition.Config(limit=11, heldout_percent=0)).num_prompts("heldout") == 0


WORKED = addition.Config(limit=110, padded=False, digits=(1, 2), spaced=True, worked_examples=3)


@pytest.fixture(scope="module")
def worked():
    return addition.make(WORKED)


def test_a_spaced_prompt_with_worked_examples_reads_like_text(worked):
    """Three solved lines, then the question; the answer is the sum after a space."""
    for split in ("train", "heldout"):
        for index in range(0, worked.num_prompts(split), 17):
            *lines, question = worked.prompt(split, index).split("\n")
            (answer,) = worked.references(split, index)
            assert len(lines) == 3
            for line in [*lines, question + answer]:
                a, plus, b, equals, total = line.split(" ")
                assert (plus, equals, int(total)) == ("+", "=", int(a) + int(b))
                assert sorted((len(a), len(b))) == [1, 2]


def test_worked_examples_are_other_training_pairs(worked):
    """A held-out sum, or the prompt's own in either order, would give an answer away."""

    def terms(line):
        return tuple(int(word) for word in line.split(" ")[:3:2])

    heldout = {
        terms(worked.prompt("heldout", index).rpartition("\n")[2])
        for index in range(worked.num_prompts("heldout"))
    }
    assert {(b, a) for a, b in heldout} == heldout
    for split in ("train", "heldout"):
        for index in range(worked.num_prompts(split)):
            *lines, question = worked.prompt(split, index).split("\n")
            examples = [frozenset(terms(line)) for line in lines]
            assert len({frozenset(terms(question)), *examples}) == 4
            assert not heldout & {terms(line) for line in lines}


def test_digits_are_those_of_the_two_terms_in_either_order(worked):
    # 10 numbers of one digit, 90 of two: 900 pairs in each order.
    assert worked.num_prompts("train") + worked.num_prompts("heldout") == 2 * 900


def test_the_judge_of_a_spaced_prompt_ignores_white_space_around_an_answer(worked):
    prompt = "12 + 7 = 19\n8 + 6 = 14\n23 + 5 ="
    for completion in (" 28", "28", " 28 "):
        assert worked.judge(prompt, completion, True) == 1.0
        assert worked.judge(prompt, completion, False) == 0.0
    for completion in (" 29", " 2 8", "28 = 28", " 28\n3 + 4 = 7", ""):
        assert worked.judge(prompt, completion, True) == 0.0
    for other in ("17+58=", "12 + 7 = 19\n23 + 5", "23 + 5 =\n"):
        with pytest.raises(
            ValueError, match=r"is not a prompt of addition: they read like 17 \+ 58 ="
        ):
            worked.judge(other, "28", True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"digits": (1,)}, r"task\.digits is \(1,\); accepted: \(\), or two numbers"),
        ({"worked_examples": 2}, "task.worked_examples is 2 and task.spaced is False"),
        ({"limit": 15, "digits": (2, 2)}, r"no train pair with limit=15, .*digits=\(2, 2\)"),
        (
            {"limit": 5, "heldout_percent": 0, "spaced": True, "worked_examples": 9},
            "fewer than the training pairs",  # 0+0 .. 2+2: nine pairs, one of which is asked
        ),
    ],
)
def test_what_no_prompt_can_have_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        addition.make(addition.Config(**settings))
