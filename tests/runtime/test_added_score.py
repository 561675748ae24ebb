"""One entry of `dataflow.SCORES` adds a score: it is placed, planned, executed and reported, and
nothing else names it. Stored scores are no call, and are looked up by the prompts' ordinals.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from rlhf_jax import dataflow, scoring
from rlhf_jax.algorithms import online_dpo
from rlhf_jax.dataflow import Score, calls_of
from rlhf_jax.devices.placement import parse
from rlhf_jax.planner.search.search import search
from rlhf_jax.refusal import ComponentError, Refusal
from rlhf_jax.runtime.program import Program
from rlhf_jax.runtime.spec import FrozenRole
from tests.planner.tables import Table, work
from tests.stages import runs

from . import rounds

ALGORITHM = online_dpo.online_dpo(online_dpo.Config())


def always(algorithm, learned_reward):
    return True


def twice(params, samples):
    """A second reward model, whose params are one number."""
    return params["factor"] * rounds.token_reward({}, samples)


@pytest.fixture(autouse=True)
def shared() -> Program:
    """The program that all tests share, made before a score is added."""
    return rounds.make_program()


@pytest.fixture
def second_reward(monkeypatch, shared):
    """A second reward model, of a role of its own."""
    entry = Score("second", "second_reward_B", dataflow.raw_reward, when=always)
    monkeypatch.setitem(dataflow.SCORES, "second_reward", entry)


@pytest.fixture
def again(monkeypatch, shared):
    """The reference's log-probabilities once more."""
    monkeypatch.setitem(
        dataflow.SCORES,
        "again",
        Score("reference", "again_BC", scoring.sample_logprobs, when=always),
    )


def make_program(shared: Program, plan: str) -> Program:
    frozen = {"second": FrozenRole(twice, {"factor": np.float32(2.0)})}
    return Program(
        dataclasses.replace(shared.spec, frozen=frozen, plan=parse(plan)), shared.reference_params
    )


def test_a_second_reward_is_placed_and_executed(shared, second_reward, again, compiled):
    program = make_program(shared, "second_reward: 5; again: 3")
    assert [call.name for call in program.calls][1:-1] == [
        "reference",
        "reward",
        "second_reward",
        "again",
    ]
    meshes = {
        name: score.mesh.device_ids.ravel().tolist() for name, score in program.scores.items()
    }
    assert (meshes["second_reward"], meshes["again"]) == ([5], [3])
    compiled.clear()
    program.compile()
    ahead = set(compiled)
    states = program.init(program.reference_params)
    samples = program.generate(program.publish(states), 0, 0)
    compiled.clear()
    scores, batch = program.score(states, samples)
    later = set(compiled)
    assert scores.extra.keys() == {"second_reward_B", "again_BC"}
    np.testing.assert_array_equal(scores.extra["second_reward_B"], 2 * np.asarray(scores.raw_B))
    np.testing.assert_allclose(scores.extra["again_BC"], scores.reference_logprob_BC, atol=1e-5)
    assert scores.extra["again_BC"].devices() == batch.tokens_RC.devices(), (
        "scores are where the policy trains"
    )
    assert {"jit(raw_reward)", "jit(sample_logprobs)"} <= ahead
    assert not ahead & later, "compiled ahead, as it is called"


def test_a_score_without_its_role_is_refused(shared, second_reward):
    with pytest.raises(
        ValueError, match="second_reward needs a model of the role second; this run has policy, "
    ):
        Program(shared.spec, shared.reference_params)


def test_an_output_of_another_shape_than_its_name_is_refused(monkeypatch, shared):
    wrong = Score("reference", "wrong_B", scoring.sample_logprobs, when=always)
    monkeypatch.setitem(dataflow.SCORES, "wrong", wrong)
    program = Program(shared.spec, shared.reference_params)
    program.sampler = shared.sampler
    states = program.init(program.reference_params)
    with pytest.raises(AssertionError, match="the score wrong_B"):
        program.score(states, program.generate(program.publish(states), 0, 0))


def test_an_added_score_is_planned(second_reward):
    calls = calls_of(ALGORITHM, learned_reward=True)
    (added,) = [call for call in calls if call.name == "second_reward"]
    assert (added.role, added.produces, added.per_token) == ("second", ("second_reward",), False)
    assert all("second_reward" in call.consumes for call in calls if call.kind == "train")
    edges = dataflow.edges(calls, 1, "asynchronous")
    assert {"generate"} == {
        edge.source for edge in edges if edge.target == "second_reward" and edge.what == "data"
    }
    found = search(calls, Table(0), work(), 4, 4).best.plan
    assert found.placements["second_reward"].devices


def test_an_algorithm_may_need_an_added_score_by_name(monkeypatch):
    monkeypatch.setitem(
        dataflow.SCORES, "again", Score("reference", "again_BC", scoring.sample_logprobs)
    )
    needing = dataclasses.replace(ALGORITHM, needs=frozenset({"again"}))
    assert [call.name for call in calls_of(needing, False)] == ["generate", "again", "train_policy"]
    assert "again" not in {call.name for call in calls_of(ALGORITHM, False)}
    unknown = dataclasses.replace(ALGORITHM, needs=frozenset({"agian"}))
    with pytest.raises(
        ValueError,
        match="online_dpo needs agian; accepted: reference, proximal, value, gradient_energy, reward, "
        "again",
    ):
        calls_of(unknown, False)


def test_a_run_places_and_reports_an_added_score(again, tmp_path):
    """A whole run with a plan of its own search: the plan names the score, and each round's line
    has its mean.
    """
    sizes = {
        "rlhf__total_prompts": 16,
        "rlhf__prompts_per_update": 8,
        "rlhf__lag": 0,
        "rlhf__evaluate_every": 0,
    }
    runs.run(tmp_path / "run", plan="search", rlhf__checkpoint_every=0, **sizes)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["plan"]
    assert "again" in parse(stored).placements
    lines = [
        line
        for line in runs.lines(tmp_path / "run", "metrics.jsonl")
        if line["stage"] == "rlhf" and "loss" in line
    ]
    assert len(lines) == 2
    assert all(-20 < line["score_again"] < 0 for line in lines)


def test_stored_scores_are_those_of_each_samples_prompt():
    """Of a later round, and of prompts in any order; a prompt without scores is never trained on."""
    program = rounds.algorithm_program("a2po")
    states, table_TS = program.init(program.reference_params), program.spec.reference_scores
    samples = program.generate(program.publish(states), 2, 0)
    assert isinstance(table_TS, np.ndarray)
    for shift in (0, 5):
        moved = dataclasses.replace(samples, ordinal_B=samples.ordinal_B[::-1] + shift)
        scores, _ = program.score(states, moved)
        ordinal_B = np.asarray(samples.ordinal_B)[::-1] + shift
        np.testing.assert_array_equal(scores.extra["reference_score_BS"], table_TS[ordinal_B])
    beyond = dataclasses.replace(samples, ordinal_B=samples.ordinal_B + len(table_TS))
    with pytest.raises(ComponentError, match=r"a2po: credit gave advantage_RC that is not finite"):
        program.score(states, beyond)


def test_a_program_without_stored_scores_is_refused():
    """None: at once. Their shape alone compiles, and does not score."""
    program = rounds.algorithm_program("a2po")
    none = dataclasses.replace(program.spec, reference_scores=None)
    with pytest.raises(Refusal, match=r"a2po needs stored scores .*job=prompt_values"):
        Program(none, program.reference_params)
    shape = jax.ShapeDtypeStruct((1, 3), np.float32)
    only_shape = Program(
        dataclasses.replace(program.spec, reference_scores=shape), program.reference_params
    )
    only_shape.sampler = program.sampler
    assert only_shape.minibatch_shapes().advantage_RC is not None
    states = only_shape.init(only_shape.reference_params)
    samples = only_shape.generate(only_shape.publish(states), 0, 0)
    with pytest.raises(Refusal, match="has no reference_score_BS, only its shape"):
        only_shape.score(states, samples)
