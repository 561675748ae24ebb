"""The door of rewards on text: what a user's function takes and gives, and who is named when it is
at fault.
"""

import asyncio
import fractions
from dataclasses import dataclass
from decimal import Decimal

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import registry
from rlhf_jax.refusal import ComponentError, Refusal, RewardError
from rlhf_jax.rewards.common import host_rewards
from rlhf_jax.tasks.api import Task

from .examples import Digits, Graded

PROMPTS, COMPLETIONS = ["p0", "p1", "p2"], ["c0", "c1", "c2"]
FINISHED, RECORDS = [True, False, True], [{"answer": str(i)} for i in range(3)]


def judge_of(function, config=None, name: str = "mine") -> host_rewards.HostJudge:
    return host_rewards.HostJudge(name, function, host_rewards.parameters(name, function), config)


def score(function, config=None):
    return judge_of(function, config)(PROMPTS, COMPLETIONS, FINISHED, RECORDS, " in round 3")


GIVEN = [
    [1, 2, 3],
    (1.0, 2, True),
    [True, False, True],
    range(3),
    np.array([1, 2, 3]),
    np.array([1, 2, 3], np.float16),
    np.array([1, 2, 3], object),
    np.arange(3) > 1,
    jnp.ones(3),
    jnp.ones(3, jnp.bfloat16),
    [jnp.float32(1)] * 3,
    [np.array(2.0)] * 3,
    [fractions.Fraction(1, 4)] * 3,
    np.ma.array([1, 2, 3], mask=False),
]


@pytest.mark.parametrize("values", GIVEN, ids=lambda values: f"{type(values).__name__}")
def test_one_number_a_completion_in_any_container(values):
    scores = score(lambda prompts, completions, finished: values)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, [float(value) for value in values])


def test_a_generator_is_read_once():
    np.testing.assert_array_equal(
        score(lambda completions: (len(text) for text in completions)), [2, 2, 2]
    )


WRONG = [
    (None, "gave None for 3 completions in round 3"),
    ("123", "gave a str for 3"),
    ({0: 1.0, 1: 1.0, 2: 1.0}, "gave a dict for 3"),
    ({1, 2, 3}, "gave a set for 3"),
    (1.0, r"gave one value \(float\) for 3"),
    (np.float32(1), r"gave one value \(float32\) for 3"),
    ([1, 2], r"gave 2 values \(shape \(2,\)\) for 3"),
    ([1, 2, 3, 4], "gave 4 values"),
    (np.ones(1), r"gave 1 values \(shape \(1,\)\)"),
    (np.ones((3, 1)), r"gave an array of shape \(3, 1\)"),
    ([[1], [2], [3]], r"gave an array of shape \(3, 1\)"),
    ([np.ones(1)] * 3, r"gave an array of shape \(3, 1\)"),
    ([[1], [2, 3], [4]], "gave a list that is no rectangle of numbers"),
    (np.array(["1", "2", "3"]), "gave an array of <U1"),
    (np.ones(3) * 1j, "gave an array of complex128"),
    (np.array(["2020-01-01"] * 3, "M8[D]"), "gave an array of datetime64"),
    (
        [1, None, None],
        r'gave None for completion 1 of 3 in round 3 \(2 in all .*: prompt "p1", completion "c1"',
    ),
    ([1, "2", 3], "gave '2' for completion 1"),
    ([1, 2j, 3], "gave 2j for completion 1"),
    ([{}, 1, 2], "gave {} for completion 0"),
    ([Decimal(1)] * 3, "gave Decimal.* for completion 0"),
    ([1, np.nan, 3], "gave nan for completion 1"),
    (jnp.array([1, 2, jnp.inf]), 'gave inf for completion 2 .* prompt "p2", completion "c2"'),
    ([-np.inf, 1, 2], "gave -inf for completion 0"),
    ([0, 1e39, 0], r"gave 1e\+39 for completion 1"),
    ([10**400, 1, 2], "gave 10000.* for completion 0"),
    (np.ma.array([1, 2, 3], mask=[0, 1, 0]), "gave None for completion 1"),
]


@pytest.mark.parametrize(
    ("values", "message"), WRONG, ids=[str(place) for place in range(len(WRONG))]
)
def test_anything_else_is_refused_by_name(values, message):
    with pytest.raises(RewardError, match=message) as raised:
        score(lambda prompts, completions, finished: values)
    assert str(raised.value).startswith("the reward mine gave ")
    assert "accepted: 3 finite numbers, one for each completion" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_long_texts_are_shortened_and_stay_on_one_line():
    assert host_rewards.short("a\nb") == '"a\\nb"'
    assert len(host_rewards.short("x" * 1000)) == host_rewards.TEXT_SHOWN


@pytest.mark.parametrize(
    "error",
    [
        ValueError("could not convert string to float: 'n/a'"),
        FileNotFoundError(2, "no"),
        ZeroDivisionError(),
        OSError(5),
    ],
)
def test_what_a_reward_raises_names_it_with_its_line_and_traceback(error):
    """Whatever class it has: not a config that cannot run, nor a disk that failed."""

    def broken(completions):
        raise error

    with pytest.raises(RewardError, match=r"^the reward mine raised in round 3: ") as raised:
        score(broken)
    assert raised.value.__cause__ is error
    assert not isinstance(raised.value, (Refusal, ValueError, OSError))
    assert f"(test_host.py, line {broken.__code__.co_firstlineno + 1})" in str(
        raised.value
    ).replace(__file__, "test_host.py")
    assert type(error).__name__ in str(raised.value)


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit(), asyncio.CancelledError()])
def test_a_reward_that_ends_the_program_is_at_fault(error):
    """`sys.exit()` in a reward would end the run with the status of one that is done."""

    def leaving(completions):
        raise error

    with pytest.raises(
        RewardError, match=rf"^the reward mine raised in round 3: {type(error).__name__}"
    ):
        score(leaving)


def test_an_interruption_in_a_reward_is_no_fault_of_it():
    def slow(completions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(slow)


@pytest.mark.filterwarnings("error")
def test_an_asynchronous_reward_is_refused_with_the_remedy():
    async def asks(completions):
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=r"gave a coroutine for 3 .*call asyncio\.run in it"):
        score(asks)


def test_a_reward_that_changes_its_arguments_changes_nothing_else():
    """Neither the texts of the next reward, nor the record of the prompt's other samples, nor what
    the task keeps of a row for the next round.
    """
    prompts, completions, finished = list(PROMPTS), list(COMPLETIONS), list(FINISHED)
    row = {"answer": "1", "choices": ["1", "2"]}
    records = [row, row, dict(row)]  # two samples of a prompt, and a task's next view of its row

    def greedy(prompts, completions, finished, records):
        scores = [len(record["choices"]) for record in records]
        for record in records:
            record["choices"].pop()
        for record in records:
            del record["answer"]
        for column in (prompts, completions, finished):
            column.clear()
        return scores

    for _ in range(2):
        scores = judge_of(greedy)(prompts, completions, finished, records, " in round 3")
        np.testing.assert_array_equal(scores, [2, 2, 2])
    assert (prompts, completions, finished) == (PROMPTS, COMPLETIONS, FINISHED)
    assert row == {"answer": "1", "choices": ["1", "2"]}

    def positional(a, b, c):
        b.sort(reverse=True)
        return [0.0] * 3

    judge_of(positional)(prompts, completions, finished, [], "")
    assert completions == COMPLETIONS


def test_the_line_is_the_users_and_not_a_librarys():
    def broken(completions):
        return [np.linalg.inv(np.zeros((2, 2))) for _ in completions]

    with pytest.raises(
        RewardError,
        match=rf"\(.*test_host_rewards\.py, line {broken.__code__.co_firstlineno + 1}\)",
    ):
        score(broken)


@dataclass(frozen=True)
class Settings:
    weight: float = 2.0


def test_parameters_are_chosen_by_name():
    taken = {}

    def everything(records, completions, finished, prompts, config, threshold=0.5):
        taken.update(
            prompts=prompts,
            completions=completions,
            finished=finished,
            records=records,
            config=config,
        )
        taken.update(threshold=threshold)
        return [1] * 3

    score(everything, Settings())
    assert taken == {
        "prompts": PROMPTS,
        "completions": COMPLETIONS,
        "finished": FINISHED,
        "records": RECORDS,
        "config": Settings(),
        "threshold": 0.5,
    }
    np.testing.assert_array_equal(
        score(lambda completions, records: [float(row["answer"]) for row in records]), [0, 1, 2]
    )
    np.testing.assert_array_equal(score(lambda a, b, c: [int(end) for end in c]), [1, 0, 1])
    np.testing.assert_array_equal(score(lambda completions, **rest: [len(rest)] * 3), [3, 3, 3])


def test_records_are_asked_for_by_those_that_take_them_alone():
    assert judge_of(lambda completions, records: 0).wants_records
    assert judge_of(lambda completions, **rest: 0).wants_records
    assert not judge_of(lambda prompts, completions, finished: 0).wants_records


@pytest.mark.parametrize(
    "function",
    [lambda: 0, lambda text: 0, lambda a, b: 0, lambda prompts, answers: 0, lambda a, b, c, d: 0],
)
def test_other_parameters_are_refused(function):
    with pytest.raises(
        Refusal, match=r"the reward mine takes \(.*\); accepted: completions and any of prompts"
    ):
        judge_of(function)


FILE = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Config:
    weight: float = 2.0

class Weighed:
    def __init__(self, task, config):
        self.task, self.config = task, config

    def __call__(self, completions, records):
        return [self.config.weight * len(text) for text in completions]

def make(task, config):
    def reward(prompts, completions, finished):
        return [config.weight * task.judge(*row) for row in zip(prompts, completions, finished)]

    return reward

def without_settings(task):
    return lambda completions: [1.0 for _ in completions]

def plain(completions, config: Config):
    return [config.weight for _ in completions]

def no_reward(task):
    return 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return str(path)


@pytest.mark.parametrize(
    ("attribute", "weight", "scores"),
    [
        ("", 3.0, [3, 0, 0]),
        (":Weighed", 3.0, [3, 3, 3]),
        (":plain", 3.0, [3, 3, 3]),
        (":without_settings", None, [1, 1, 1]),
    ],
)
def test_a_file_gives_a_reward_a_factory_or_a_class(file, attribute, weight, scores):
    kind = registry.settings("rewards", file + attribute)
    config = kind() if weight is None else kind(weight=weight)
    made = host_rewards.make(file + attribute, Digits(), config)  # type: ignore[arg-type]
    np.testing.assert_array_equal(
        made(["ab", "ab", "ab"], ["2", "3", "4"], FINISHED, [], ""), scores
    )


def test_a_factory_that_makes_no_function(file):
    with pytest.raises(Refusal, match="makes a int; accepted: a function"):
        host_rewards.make(f"{file}:no_reward", Digits(), None)  # type: ignore[arg-type]


class Judge(Graded):
    def __init__(self, gives):
        self.gives = gives

    def judge(self, prompt, completion, finished):
        if isinstance(self.gives, Exception):
            raise self.gives
        return self.gives


@pytest.mark.parametrize("gives", [None, "1", float("nan"), float("inf"), np.ones(1), [1.0], {}])
def test_a_gold_judge_gives_a_finite_number(gives):
    task: Task = Judge(gives)  # type: ignore[assignment]
    with pytest.raises(
        RewardError,
        match=r"^the gold judge of the task Judge gave .* for completion 0 of 3 .*\"p0\"",
    ):
        host_rewards.judge(task, PROMPTS, COMPLETIONS, FINISHED)


def test_a_gold_judge_that_raises_names_the_texts_and_the_reward_that_asked():
    task: Task = Judge(KeyError("answer"))  # type: ignore[assignment]
    said = 'the gold judge of the task Judge raised on prompt "p0" and completion "c0": KeyError'
    with pytest.raises(RewardError, match=said):
        host_rewards.judge(task, PROMPTS, COMPLETIONS, FINISHED)
    made = host_rewards.make("gold", task, registry.settings("rewards", "gold")())
    with pytest.raises(RewardError, match=rf"{said}.* \(reward gold in round 3\)"):
        made(PROMPTS, COMPLETIONS, FINISHED, [], " in round 3")


def test_a_judge_that_says_that_the_config_cannot_run_is_believed():
    task: Task = Judge(Refusal("no answers"))  # type: ignore[assignment]
    with pytest.raises(Refusal, match="no answers"):
        host_rewards.judge(task, PROMPTS, COMPLETIONS, FINISHED)
    assert not issubclass(Refusal, ComponentError)
