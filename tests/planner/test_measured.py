"""Costs measured on the devices at hand: what is measured, how it is extrapolated, kept, scaled,
and used for a plan.
"""

import dataclasses

import pytest

from rlhf_jax.dataflow import calls_of
from rlhf_jax.devices.placement import parse
from rlhf_jax.planner.api import Workload
from rlhf_jax.planner.costs import measure
from rlhf_jax.planner.costs.analytic import AnalyticCostModel
from rlhf_jax.planner.costs.hardware import find
from rlhf_jax.planner.costs.measured import MeasuredCostModel, call_key, move_key
from rlhf_jax.planner.costs.shapes import model_shape
from rlhf_jax.types import Placement, Plan
from tests import tiny
from tests.runtime import rounds

WORK = Workload(rounds.PROMPTS, 2, tiny.Q, tiny.C, num_minibatches=2)
PLAN = parse(
    "generate: 0-1 tensor=2; reference: 2; value: 2; reward: 3; train_policy: 0; train_critic: 1"
)
TWO = Placement((0, 1), (2, 1, 1))


def make(path=None, work=WORK):
    """PPO on a model of one layer, whose reward is no network: an array program of its own."""
    spec = rounds.make_critic_program().spec
    assert spec.critic is not None
    shape, values = model_shape(spec.model), model_shape(spec.critic.model)
    shapes = {"policy": shape, "reference": shape, "critic": values, "reward": values}
    return calls_of(spec.algorithm, True), MeasuredCostModel(
        spec, AnalyticCostModel(find("cpu"), 8, shapes, work), path
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "deep" / "profile.json"
    calls, profile = make(path)
    assert len(profile.missing(calls, PLAN)) == 6
    profile.measure(calls, PLAN)
    return path, calls, profile


@pytest.mark.parametrize(
    ("values", "num_layers", "expected"),
    [([3.0], 2, 3.0), ([3.0, 5.0], 9, 19.0), ([3.0, 2.0], 9, 3.0)],
)
def test_time_of_a_deep_model_from_one_layer_and_two(values, num_layers, expected):
    """T(9) = 3 + 8 (5 - 3); noise that makes two layers faster than one is no gain of a hundred."""
    assert measure.extrapolated(values, num_layers) == expected
    assert len(measure.depths(num_layers)) == len(values)


def test_every_call_and_move_of_a_plan_is_measured(measured):
    _, calls, profile = measured
    assert profile.missing(calls, PLAN) == []
    for call in calls:
        assert 0 < profile.seconds(call, PLAN.placements[call.name]) < 10
        assert profile.working_bytes(call, PLAN.placements[call.name]) > 0
    at = PLAN.placements
    assert move_key("policy", at["train_policy"], at["generate"]) in profile.known
    assert profile.reallocate_seconds("critic", at["train_critic"], at["value"]) > 0
    assert profile.transfer_seconds(calls[0], at["generate"], at["reward"]) > 0


def test_a_round_is_so_many_updates_and_rows_that_are_cut_once(measured):
    _, calls, profile = measured
    (train,) = (call for call in calls if call.name == "train_critic")
    key = call_key(train, PLAN.placements["train_critic"])
    assert profile.seconds(train, PLAN.placements["train_critic"]) == 2 * profile.known[key]


def test_lengths_shorten_decoding_alone(measured):
    path, calls, profile = measured
    short = make(path, dataclasses.replace(WORK, completion_lengths=(1,)))[1]
    generate, at = calls[0], PLAN.placements["generate"]
    prefill = profile.known[f"{call_key(generate, at)} prefill"]
    assert short.seconds(generate, at) == pytest.approx(prefill)
    half = make(path, dataclasses.replace(WORK, completion_lengths=(1 + (tiny.C - 1) // 2,)))[1]
    assert half.seconds(generate, at) == pytest.approx(
        (prefill + profile.seconds(generate, at)) / 2
    )


def test_figures_are_found_again_and_those_of_another_work_are_not(measured):
    path, calls, profile = measured
    assert make(path)[1].known == profile.known
    assert (
        make(path, dataclasses.replace(WORK, lag=1, loop="asynchronous"))[1].missing(calls, PLAN)
        == []
    )
    assert len(make(path, dataclasses.replace(WORK, num_prompts=8))[1].missing(calls, PLAN)) == 6


def test_devices_of_a_host_are_alike(measured):
    _, calls, profile = measured
    elsewhere = dataclasses.replace(PLAN.placements["reference"], devices=(7,))
    reference = next(call for call in calls if call.name == "reference")
    assert profile.missing([reference], Plan({"reference": elsewhere})) == []
    assert profile.seconds(reference, elsewhere) == profile.seconds(
        reference, PLAN.placements["reference"]
    )


def test_what_was_not_measured_is_scaled_to_what_was(measured):
    _, calls, profile = measured
    reference = next(call for call in calls if call.name == "reference")
    ratio = profile.seconds(reference, PLAN.placements["reference"]) / profile.formulas.seconds(
        reference, PLAN.placements["reference"]
    )
    assert profile.seconds(reference, TWO) == pytest.approx(
        ratio * profile.formulas.seconds(reference, TWO)
    )
    assert make()[1].seconds(reference, TWO) == profile.formulas.seconds(reference, TWO)


def test_measuring_again_measures_nothing(measured, monkeypatch):
    path, calls, _ = measured
    monkeypatch.setattr(measure, "time_call", lambda *_: pytest.fail("it was measured before"))
    monkeypatch.setattr(measure, "time_move", lambda *_: pytest.fail("it was moved before"))
    make(path)[1].measure(calls, PLAN)
