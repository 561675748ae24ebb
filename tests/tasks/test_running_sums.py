"""Running sums: texts by hand, the judge's rule, and lengths that are spread."""

import pytest

from rlhf_jax.refusal import Refusal
from rlhf_jax.tasks import running_sums


@pytest.fixture(scope="module")
def task():
    return running_sums.make(running_sums.Config(draws=60))


def test_totals_are_written_after_the_letters_of_their_terms():
    """3 + 5 = 8, 8 + 8 = 16; the largest total, 12 * 8 = 96, has two digits."""
    task = running_sums.make(running_sums.Config(draws=20))
    task._sums["train"][0] = (3, 5, 8)
    assert task.prompt("train", 0) == "a3b5c8="
    assert task.references("train", 0) == ("b08c16",)


def test_reversed_references_have_the_same_lengths_and_are_not_the_answer():
    """Half of the training prompts have them, and no held-out one."""
    plain = running_sums.make(running_sums.Config(draws=60))
    task = running_sums.make(running_sums.Config(draws=60, reversed_percent=50))
    changed = 0
    for index in range(task.num_prompts("train")):
        (right,), (given,) = plain.references("train", index), task.references("train", index)
        entries = [right[place : place + 3] for place in range(0, len(right), 3)]
        assert given in (right, "".join(letter + high + low for letter, low, high in entries))
        changed += given != right
    assert 0.4 < changed / task.num_prompts("train") < 0.6
    assert task.references("heldout", 3) == plain.references("heldout", 3)
    assert task.judge("a3b5c8=", "b80c61", True) == 0.0


@pytest.mark.parametrize(
    ("completion", "finished", "score"),
    [
        ("b08c16", True, 1.0),
        ("b07c16", True, 1.0),  # the totals on the way are not judged
        ("b08c16", False, 0.0),
        ("b08c17", True, 0.0),
        ("b08c160", True, 0.0),
        ("b16", True, 0.0),
        ("16", True, 0.0),
        ("", True, 0.0),
    ],
)
def test_the_last_total_is_judged(task, completion, finished, score):
    assert task.judge("a3b5c8=", completion, finished) == score


@pytest.mark.parametrize("prompt", ["a3=", "b3a5=", "a3b5", "a3b5c=", "17+58=", "a3b5c8=d"])
def test_another_prompt_is_refused(task, prompt):
    with pytest.raises(Refusal, match="is not a prompt of running_sums"):
        task.judge(prompt, "b08", True)


def test_lengths_are_spread_and_sums_are_there_once():
    task = running_sums.make(running_sums.Config(draws=60, heldout_percent=0))
    terms = [task.prompt("train", i).count("=") for i in range(task.num_prompts("train"))]
    assert set(terms) == {1}
    lengths = [len(task.references("train", i)[0]) for i in range(task.num_prompts("train"))]
    assert {length: lengths.count(length) for length in range(12, 34, 3)} == dict.fromkeys(
        range(12, 34, 3), 60
    )
    assert lengths.count(3) < 60  # of 8 * 8 sums of two terms some are drawn twice


def test_settings_that_give_no_prompt_are_refused():
    with pytest.raises(Refusal, match=r"task\.least_terms is 5; accepted: at most"):
        running_sums.Config(least_terms=5, most_terms=4)
    with pytest.raises(Refusal, match=r"no heldout prompt with task\.draws=1"):
        running_sums.make(running_sums.Config(most_terms=2, draws=1, heldout_percent=1))
