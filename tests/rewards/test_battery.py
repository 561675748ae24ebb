"""Every file of `rlhf_jax/rewards/`, and the rewards of `--component`: what a reward of its kind
promises.
"""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import registry
from rlhf_jax.refusal import RewardError
from rlhf_jax.rewards import exact_match, gold
from rlhf_jax.tasks.common import reading
from tests import components

from .examples import Digits, Graded, WeighedSum, fill_masked, samples_of

NAMES = registry.names("rewards")
KINDS = {name: registry.find("rewards", name).KIND for name in NAMES}
HOST = [name for name in NAMES if KINDS[name] == "host"]
MODEL = [name for name in NAMES if KINDS[name] == "model"]
PROMPTS, COMPLETIONS, FINISHED = ["ab", "abc", "abc"], ["2", "2", "3"], [True, True, False]


def test_the_folder_was_walked():
    assert {"gold", "exact_match"} <= set(HOST)
    assert "learned" in MODEL
    assert set(HOST) | set(MODEL) == set(NAMES), KINDS


@pytest.mark.parametrize("name", NAMES)
def test_has_a_config_of_defaults_and_a_factory(name):
    module = registry.find("rewards", name)
    assert module.Config() == module.Config()
    assert list(inspect.signature(module.make).parameters)[1] == "config"


@pytest.mark.parametrize("name", HOST)
def test_host_rewards_give_one_float32_a_row(name):
    reward = registry.find("rewards", name).make(Digits())
    raw_B = reward(PROMPTS, COMPLETIONS, FINISHED)
    assert isinstance(raw_B, np.ndarray)
    assert raw_B.dtype == np.float32
    # 2 letters and "2"; 3 letters and "2"; right, but not finished.
    np.testing.assert_array_equal(raw_B, [1.0, 0.0, 0.0])
    np.testing.assert_array_equal(
        reward(PROMPTS[::-1], COMPLETIONS[::-1], FINISHED[::-1]), raw_B[::-1]
    )
    assert reward([], [], []).shape == (0,)


@pytest.mark.parametrize("name", HOST)
def test_host_rewards_take_arrays_of_flags_and_refuse_ragged_rows(name):
    reward = registry.find("rewards", name).make(Digits())
    np.testing.assert_array_equal(reward(PROMPTS, COMPLETIONS, np.array(FINISHED)), [1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="zip"):
        reward(PROMPTS, COMPLETIONS[:2], FINISHED)


def test_gold_is_the_judge_in_its_own_unit():
    # Two letters finished: 2 + 0.1 · 2. None, not finished: −1 + 0.1 · 3.
    raw_B = gold.make(Graded())(["ab", "abc"], ["xy", ""], [True, False])
    np.testing.assert_allclose(raw_B, [2.2, -0.7], rtol=1e-6)


def test_exact_match_refuses_a_task_that_cannot_verify():
    with pytest.raises(ValueError, match="exact_match needs a verifiable task; Graded is not"):
        exact_match.make(Graded())


def test_exact_match_refuses_a_judge_that_grades():
    class Mixed(Graded):
        verifiable = True

    with pytest.raises(RewardError, match=r"Mixed\.judge gave 2\.2"):
        exact_match.make(Mixed())(["ab"], ["xy"], [True])


@pytest.mark.parametrize("name", MODEL)
def test_model_rewards_see_the_unmasked_text_only(name):
    reward, params = registry.find("rewards", name).make(WeighedSum()), {"scale": jnp.float32(1.0)}
    prompts, completions = [[5, 7], [4]], [[3, 2], [9, 9, 2]]
    raw_B = reward(params, samples_of(prompts, completions, 2, 3))
    assert raw_B.shape == (2,)
    assert raw_B.dtype == jnp.float32
    assert raw_B[0] != raw_B[1]
    for prompt_length, completion_length, pad in ((2, 3, 2), (3, 5, 0), (19, 3, 7)):
        padded = samples_of(prompts, completions, prompt_length, completion_length, pad)
        np.testing.assert_array_equal(reward(params, padded), raw_B)
        np.testing.assert_array_equal(reward(params, fill_masked(padded, 6)), raw_B)


@pytest.fixture(scope="module")
def rows():
    """A task for rewards of one's own, and of its held-out prompts texts, completions, ends and
    records: the first task of the command line, or one of letters.
    """
    named = components.own("tasks")
    task = components.make("tasks", named[0]) if named else Digits()
    indices = range(min(4, task.num_prompts("heldout")))
    texts = [
        (index, text)
        for index in indices
        for text in (*task.references("heldout", index), "", "no answer")
    ]
    prompts = [task.prompt("heldout", index) for index, _ in texts]
    records = [reading.record(task, "heldout", index) for index, _ in texts]
    return (
        task,
        prompts,
        [text for _, text in texts],
        [place % 2 == 0 for place in range(len(texts))],
        records,
    )


@pytest.mark.parametrize("name", components.own("rewards"))
def test_a_reward_of_ones_own_gives_one_finite_number_a_completion(name, rows):
    """Its settings have defaults; what it raises or gives otherwise is told in one line that names
    it.
    """
    task, *given = rows
    raw_B = components.reward_of(name, task)(*given, "")
    assert raw_B.dtype == np.float32
    assert raw_B.shape == (len(given[0]),)


@pytest.mark.parametrize("name", components.own("rewards"))
def test_a_reward_of_ones_own_is_a_function_of_its_inputs(name, rows):
    """Of each completion by itself, so that a run is repeated; or it says that it is none
    (`rewards.api.asked_once`).
    """
    task, *given = rows
    reward = components.reward_of(name, task)
    if reward.asked_once:
        pytest.skip("its answers are kept")
    raw_B = reward(*given, "")
    remedy = f"the reward {name} gives another score when it is asked again: mark it as rewards.api.asked_once"
    np.testing.assert_array_equal(reward(*given, ""), raw_B, err_msg=remedy)
    alone_B = [reward(*([column[row]] for column in given), "")[0] for row in range(len(raw_B))]
    beside = f"the score that the reward {name} gives a completion depends on those beside it"
    np.testing.assert_allclose(alone_B, raw_B, rtol=1e-5, atol=1e-6, err_msg=beside)
