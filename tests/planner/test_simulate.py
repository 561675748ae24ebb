"""Rounds by hand; the arithmetic of the steady state against rounds that are played event by event."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from rlhf_jax.clock import Clock
from rlhf_jax.planner.options import options
from rlhf_jax.planner.simulation import schedule, steady_state
from rlhf_jax.planner.simulation.graph import Dataflow
from rlhf_jax.planner.simulation.simulate import simulate

from .tables import ONLINE_DPO, PPO, Given, Table, place, plan, work

BOTH_LOOPS = [
    (0, "synchronous"),
    (2, "synchronous"),
    (0, "asynchronous"),
    (1, "asynchronous"),
    (3, "asynchronous"),
]
DPO_COSTS = Given({"generate": 4.0, "reference": 2.0, "reward": 3.0, "train_policy": 5.0})
TOGETHER = {call.name: place(0, 1) for call in ONLINE_DPO}
SIDE_BY_SIDE = {**TOGETHER, "reference": place(0), "reward": place(1)}


def run(
    placements,
    costs=DPO_COSTS,
    calls=ONLINE_DPO,
    lag=0,
    loop="synchronous",
    num_devices=2,
    num_rounds=None,
    **clock,
):
    of = work(lag, loop, **clock)
    return simulate(calls, plan(**placements), costs, of, num_devices, num_rounds)


def spans(found, name):
    return {node.round_index: (node.start, node.end) for node in found.nodes if node.name == name}


@pytest.mark.parametrize("lag", [0, 2])
def test_one_after_the_other(lag):
    assert run(TOGETHER, lag=lag).seconds_per_round == pytest.approx(4 + 2 + 3 + 5)


@pytest.mark.parametrize("lag", [0, 2])
def test_scores_on_devices_of_their_own_overlap(lag):
    found = run(SIDE_BY_SIDE, lag=lag)
    assert found.seconds_per_round == pytest.approx(4 + 3 + 5)
    assert found.idle_share == pytest.approx((1 / 12, 0))
    sampling = 4 * (lag + 1)  # before round 0 is scored
    assert spans(found, "reference")[0] == pytest.approx((sampling, sampling + 2))
    assert spans(found, "reward")[1] == pytest.approx((sampling + 12, sampling + 15))
    assert spans(found, "train_policy")[1] == pytest.approx((sampling + 15, sampling + 20))
    assert sorted(spans(found, "generate")) == list(
        range(5 + 2 * lag)
    )  # 5 + lag rounds are trained


def test_shared_cores_take_the_overlap_back():
    found = run(SIDE_BY_SIDE, replace(DPO_COSTS, shared_throughput=True))
    # 2 s and 3 s at half the speed each: the first ends after 4 s, the second is alone with its
    # last second
    assert spans(found, "reference")[0] == pytest.approx((4, 8))
    assert spans(found, "reward")[0] == pytest.approx((4, 9))
    assert found.seconds_per_round == pytest.approx(4 + 2 + 3 + 5)


def test_data_take_time_and_occupy_nothing():
    found = run(SIDE_BY_SIDE, replace(DPO_COSTS, transfer=0.25))
    assert spans(found, "reward")[0] == pytest.approx((4.25, 7.25))
    assert spans(found, "train_policy")[0] == pytest.approx((7.5, 12.5))
    assert found.seconds_per_round == pytest.approx(12.5)
    assert spans(found, "reward to train_policy")[0] == pytest.approx((7.25, 7.5))


def test_the_critic_trains_beside_the_next_sampling():
    costs = Given(
        {
            "generate": 4.0,
            "reference": 1.0,
            "value": 1.0,
            "reward": 1.0,
            "train_policy": 5.0,
            "train_critic": 9.0,
        },
        move=0.5,
    )
    placements = {call.name: place(0) for call in PPO} | {"train_critic": place(1)}
    found = run(placements, costs, PPO)
    # round 0: sampling 0-4, scores after the first move of the critic's params, policy 7.5-12.5,
    # critic 7.5-16.5; round 1: sampling 12.5-16.5, reference, then the critic's params are moved
    # 17.5-18 (it has ended), and so on
    assert spans(found, "train_critic")[0] == pytest.approx((7.5, 16.5))
    assert spans(found, "generate")[1] == pytest.approx((12.5, 16.5))
    assert spans(found, "move to value")[1] == pytest.approx((17.5, 18.0))
    assert found.seconds_per_round == pytest.approx(4 + 1 + 0.5 + 1 + 1 + 5)
    assert not spans(
        found, "publish"
    )  # the sampler has the trainer's layout: the copy takes no time
    rows = {row.call: row for row in found.rows}
    assert rows["value"].reallocate_seconds == 0.5
    assert found.idle_share[1] == pytest.approx(1 - (9 + 0.5) / 12.5)


@pytest.mark.parametrize(
    ("generate", "lag", "seconds"),
    [
        (6.0, 0, 0.5 + 6 + 2 + 5),  # one after the other
        (6.0, 1, 0.5 + 2 + 5),  # the trainer is what is waited for
        (10.0, 1, 10.0),  # the sampler is
        (9.5, 1, 9.5),
        (10.0, 2, 10.0),
    ],
)
def test_asynchronous_rounds(generate, lag, seconds):
    costs = Given(
        {"generate": generate, "reference": 1.0, "reward": 1.0, "train_policy": 5.0}, move=0.5
    )
    placements = {call.name: place(1) for call in ONLINE_DPO} | {"generate": place(0)}
    found = run(placements, costs, lag=lag, loop="asynchronous")
    assert found.seconds_per_round == pytest.approx(seconds)


def test_at_most_lag_and_one_rounds_are_issued_and_not_trained():
    costs = Given({"generate": 1.0, "reference": 1.0, "reward": 1.0, "train_policy": 5.0}, move=0.5)
    placements = {call.name: place(1) for call in ONLINE_DPO} | {"generate": place(0)}
    lag = 2
    found = run(placements, costs, lag=lag, loop="asynchronous", num_rounds=9)
    trained = spans(found, "train_policy")
    for issued, (start, _) in spans(found, "generate").items():
        if issued > lag:
            assert start >= trained[issued - lag - 1][1]
    assert found.seconds_per_round == pytest.approx(0.5 + 1 + 1 + 5)


APART = {call.name: place(1) for call in ONLINE_DPO} | {"generate": place(0)}
APART_COSTS = Given(
    {"generate": 4.0, "reference": 1.0, "reward": 1.0, "train_policy": 5.0}, move=0.5
)


@pytest.mark.parametrize(
    ("clock", "seconds"),
    [
        ({"sync_every": 2}, (0.5 + 4 + 2 * 7) / 2),  # the second round is sampled beside the first
        ({"sync_every": 2, "staged": "in_order"}, (0.5 + 2 * 4 + 2 * 7) / 2),
        ({"sync_every": 2, "staged": "shuffled"}, (0.5 + 2 * 4 + 2 * 7) / 2),
        ({"sync_every": 2, "lag": 2}, (0.5 + 2 * 7) / 2),  # the trainer alone is waited for
    ],
)
def test_rounds_of_one_version(clock, seconds):
    found = run(APART, APART_COSTS, loop="asynchronous", **clock)
    assert found.seconds_per_round == pytest.approx(seconds)
    synchronous = run(APART, APART_COSTS, **clock)
    assert synchronous.seconds_per_round == pytest.approx(0.5 + 4 + 7)


@pytest.mark.parametrize("loop", ["synchronous", "asynchronous"])
@pytest.mark.parametrize(
    ("lag", "every", "staged"), [(0, 3, "none"), (2, 2, "none"), (1, 3, "none"), (0, 3, "in_order")]
)
def test_the_timeline_follows_the_versions_of_the_clock(lag, every, staged, loop):
    """The sampler begins with a version as soon as it is published and never before, and the trainer
    waits for its own round, or for its whole stage.
    """
    clock = {"lag": lag, "sync_every": every, "staged": staged}
    found = run(APART, APART_COSTS, loop=loop, num_rounds=9, **clock)
    clock = Clock(18, **clock)
    generated, trained = spans(found, "generate"), spans(found, "train_policy")
    published = sorted(node.end for node in found.nodes if node.name == "publish")
    issued = [r for at in range(9) for r in clock.issued_at(at)]
    assert sorted(generated) == issued
    used = sorted({clock.version(r) for r in issued})
    versions = used if loop == "asynchronous" else list(range(9))
    assert len(published) == len(versions)
    for r, (start, _) in generated.items():
        ready = [published[versions.index(clock.version(r))]]
        ready += [generated[r - 1][1]] if r else []
        assert start == pytest.approx(max(ready)), r
    for r, (start, _) in trained.items():
        before = max(q for q in issued if clock.version(q) <= r)
        last = before if loop == "synchronous" else clock.window(r)[-1]
        assert start >= generated[last][1] + 2 - 1e-9


@pytest.mark.parametrize(("lag", "loop"), BOTH_LOOPS)
@pytest.mark.parametrize("calls", [ONLINE_DPO, PPO], ids=["online_dpo", "ppo"])
def test_steady_seconds_are_those_of_many_played_rounds(calls, lag, loop):
    costs, rng = Table(lag, symmetric=False), random.Random(5)
    flow = Dataflow(calls, costs, work(lag, loop))
    of_calls = [options(call, costs, 8, 8, (1,)) for call in calls]
    num_rounds = 24
    for _ in range(8):
        of_plan = flow.round([rng.choice(found) for found in of_calls])
        ends = [0.0] * num_rounds
        for op in schedule.play(flow, of_plan, num_rounds):
            if op.kind == "train":
                ends[op.round_index] = max(ends[op.round_index], op.end)
        played = (ends[-1] - ends[num_rounds // 2]) / (num_rounds - 1 - num_rounds // 2)
        assert steady_state.seconds_per_round(flow, of_plan) == pytest.approx(played, rel=1e-9)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("lag", "loop"), BOTH_LOOPS)
def test_a_device_runs_one_at_a_time_and_nothing_begins_before_its_data(lag, loop, shared):
    costs, rng = Table(7, symmetric=False, shared_throughput=shared), random.Random(3)
    chosen = {call.name: rng.choice(options(call, costs, 4, 4)).placement for call in PPO}
    found = run(chosen, costs, PPO, lag, loop, num_devices=4)
    for device in range(4):
        mine = sorted(
            (n.start, n.end) for n in found.nodes if device in n.devices and n.kind != "transfer"
        )
        assert all(after[0] >= before[1] - 1e-9 for before, after in pairwise(mine))
    for name in ("reference", "value", "reward"):
        for r, (start, end) in spans(found, name).items():
            assert start >= spans(found, "generate")[r][1] - 1e-9
            assert spans(found, "train_policy")[r][0] >= end - 1e-9
    for r, (start, _) in spans(found, "value").items():
        assert r == 0 or start >= spans(found, "train_critic")[r - 1][1] - 1e-9


def test_shared_cores_never_rest_and_never_hurry():
    costs = Table(2, symmetric=False, shared_throughput=True, transfer=0.0)
    rng = random.Random(11)
    flow = Dataflow(PPO, costs, work())
    for _ in range(5):
        of_plan = flow.round([rng.choice(options(call, costs, 4, 4, (1,))) for call in PPO])
        assert steady_state.seconds_per_round(flow, of_plan) == pytest.approx(
            sum(of_plan.seconds), rel=1e-9
        )


def test_a_call_without_a_place_is_an_error():
    with pytest.raises(KeyError, match="reward"):
        run({name: of for name, of in TOGETHER.items() if name != "reward"})
