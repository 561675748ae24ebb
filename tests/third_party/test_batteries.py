"""`pytest --component=NAME`: components that are not of the package in the battery of their kind."""

import subprocess
import sys

import pytest

from tests import components
from tests.third_party.conftest import HERE

ROOT = HERE.parents[1]
GOOD = (
    "my_lab.leave_out",
    "my_lab.tasks",
    "my_lab.rewards:brevity",
    "my_lab.rewards:whim",
    "reward=my_lab.rewards.overlap",
    "my_lab.decoder",
)


def battery(*named, only="", more=()):
    """The exit status of pytest with these components, and what it printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "--tb=short", "-p", "no:cacheprovider"]
    command += (
        [f"--component={name}" for name in named] + (["-k", only] if only else []) + list(more)
    )
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
    )
    return done.returncode, done.stdout + done.stderr


def test_components_of_a_third_party_pass():
    """Each in its own battery, and nothing else is run."""
    status, said = battery(*GOOD)
    assert status == 0, said
    passed = [line.split(" ", 1)[1] for line in said.splitlines() if line.startswith("PASSED ")]
    assert all(
        line.startswith(("tests/algorithms/", "tests/tasks/", "tests/rewards/", "tests/models/"))
        for line in passed
    )
    assert all("my_lab." in line for line in passed)
    for expected in (
        "test_battery[my_lab.leave_out-micro_batches_add_up]",
        "test_battery[my_lab.leave_out-lifts_the_toy_reward]",
        "test_prompts_are_distinct_and_on_one_side_only[my_lab.tasks]",
        "test_a_reward_of_ones_own_is_a_function_of_its_inputs[my_lab.rewards:brevity]",
        "test_a_reward_of_ones_own_gives_one_finite_number_a_completion[my_lab.rewards.overlap]",
        "test_a_reward_of_ones_own_gives_one_finite_number_a_completion[my_lab.rewards:whim]",
        "test_decoding_a_token_at_a_time_is_the_full_forward[my_lab.decoder-1]",
        "test_presets_have_shapes[my_lab.decoder-micro]",
    ):
        assert any(line.endswith(expected) for line in passed), expected


def test_broken_components_fail_with_their_names_and_what_they_break():
    status, said = battery(
        "broken_lab.mean_loss",
        "task=broken_lab.tasks:leaking",
        "task=broken_lab.tasks:silent",
        *(f"broken_lab.rewards:{name}" for name in ("noise", "ranked", "short", "not_a_number")),
        "model=broken_lab.decoder",
        only="micro_batches or tasks or rewards or garbage_under or function_of_its or one_finite "
        "or has_all",
    )
    assert status == 1, said
    for words in (
        "the algorithm broken_lab.mean_loss does not keep a promise of every algorithm: Losses, "
        "gradients and metrics of any",
        "the task broken_lab.tasks:silent is a Silent without verifiable, has_gold, vocabulary, "
        "prompt, references, judge",
        "the reward broken_lab.rewards:noise gives another score when it is asked again: mark it "
        "as rewards.api.asked_once",
        "the score that the reward broken_lab.rewards:ranked gives a completion depends on those "
        "beside it",
        "the reward broken_lab.rewards:short gave 11 values (shape (11,)) for 12 completions",
        "the reward broken_lab.rewards:not_a_number gave nan for completion 0 of 12",
    ):
        assert words in said, f"{words}\n\n{said}"
    failed = [line for line in said.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    for expected in (
        "test_prompts_are_distinct_and_on_one_side_only[broken_lab.tasks:leaking]",
        "test_garbage_under_the_mask_changes_nothing[broken_lab.decoder-left]",
    ):
        assert any(expected in line for line in failed), expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.mine", "--component=nowhere.mine: no 'nowhere.mine' in rlhf_jax/"),
        ("recipe=my_lab.leave_out", "no kind 'recipe'; accepted: algorithm, task, reward, model"),
        (
            "my_lab.units",
            "what my_lab.units is cannot be told; accepted: KIND=my_lab.units with a kind of",
        ),
        ("algorithm=my_lab.rewards", "has no function rewards or make"),
        ("model=my_lab.units", "has no function make"),
    ],
)
def test_a_name_that_means_nothing_is_one_line(name, words):
    with pytest.raises(pytest.UsageError) as raised:
        components.add(name)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not components.every_own()
