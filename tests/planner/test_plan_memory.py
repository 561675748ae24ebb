"""Memory of a plan by hand, and what is said of plans that cannot run."""

import re
from dataclasses import replace

import pytest

from rlhf_jax.planner.api import Versions
from rlhf_jax.planner.options import option
from rlhf_jax.planner.simulation.plan_memory import by_device, check
from rlhf_jax.types import Placement

from .tables import ONLINE_DPO, PPO, Given, place, plan, work

COSTS = Given(
    {call.name: 1.0 for call in PPO}
)  # a state 16 GB, params 4 GB, 10 GB while a call runs, all on one device
EVERYWHERE = {call.name: place(0, 1) for call in PPO}


ONE = Versions(1, 1)


def gigabytes(placements, calls=PPO, versions=ONE, num_devices=2):
    chosen = [option(call, COSTS, placements[call.name]) for call in calls]
    return [held / 1e9 for held in by_device(calls, chosen, versions, num_devices)]


def test_all_calls_on_one_mesh():
    # two states, the sampler's own copy, reference and reward, no copy for value; 10 GB of rows
    # over two devices
    assert gigabytes(EVERYWHERE) == [2 * 16 + 3 * 4 + 5] * 2
    assert gigabytes(EVERYWHERE, versions=Versions(3, 3)) == [2 * 16 + 5 * 4 + 5] * 2


def test_a_version_that_an_update_does_not_find_counts_while_a_round_is_sampled():
    most = [2 * 16 + 5 * 4 + 5] * 2  # sampling needs as much as an update, and has all versions
    assert gigabytes(EVERYWHERE, versions=Versions(3, 2)) == most
    parts = {**EVERYWHERE, "generate": place(0, 1, num_micro_batches=4)}
    sampling, updating = 3 * 4 + 5 / 4, 2 * 4 + 5
    held = 2 * 16 + 2 * 4
    assert gigabytes(parts, versions=Versions(3, 2)) == [held + max(sampling, updating)] * 2
    assert gigabytes(parts, versions=Versions(3, 3)) == [held + 3 * 4 + 5] * 2
    none = gigabytes(parts, versions=Versions(1, 0))
    assert none == [held + max(4 + 5 / 4, 5)] * 2


def test_calls_apart():
    placements = {
        "generate": place(0),
        "reference": place(1),
        "reward": place(0),
        "value": place(1, num_micro_batches=2),
        "train_policy": place(1),
        "train_critic": Placement((0, 1), (1, 2, 1), 4, True),
    }
    # device 0: sampler 4, reward 4, half of the critic 8, one call at a time 10; device 1:
    # reference 4, a copy for value since the critic has another mesh 4, policy 16, half of the
    # critic 8, 10
    assert gigabytes(placements) == [4 + 4 + 8 + 10, 4 + 4 + 16 + 8 + 10]
    same_devices = {**placements, "train_critic": place(1)}
    assert (
        gigabytes(same_devices)[1] == 4 + 16 + 16 + 10
    )  # value now runs with the critic's own params


def run_check(placements, costs=COSTS, calls=PPO, of=None, num_devices=2, **kwargs):
    return check(plan(**placements), calls, costs, of or work(), num_devices, 8, **kwargs)


def test_a_plan_that_fits_is_completed():
    default = place(0, 1)
    named = {"generate": place(1)}
    found = run_check(named, default=default)
    assert found.placements == {**{call.name: default for call in PPO}, **named}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"generat": place(0)}, "the plan places generat; the calls are generate, reference"),
        (
            {"reward": place(0, 2)},
            r"reward is on devices \(0, 2\); accepted: different ones of 0 ... 1",
        ),
        ({"reward": place(0, 0)}, "different ones"),
        (
            {"reward": Placement((0, 1), (1, 4, 1))},
            r"mesh \(data, fsdp, tensor\) = \(1, 4, 1\) of 4 devices on 2 devices",
        ),
        ({"value": place(0, num_micro_batches=0)}, "value has 0 micro-batches"),
        (
            {"value": place(0, num_micro_batches=3)},
            "value cannot be placed on 0 micro_batches=3: 8 rows do not divide by 3",
        ),
    ],
)
def test_what_cannot_be_placed_is_named(changed, message):
    with pytest.raises(ValueError, match=message):
        run_check({**EVERYWHERE, **changed})


def test_a_call_without_a_place_needs_a_default():
    with pytest.raises(ValueError, match="the plan does not place train_critic"):
        run_check({name: where for name, where in EVERYWHERE.items() if name != "train_critic"})


def test_micro_batches_that_would_fit_are_found():
    costs = replace(COSTS, device_bytes=42.5e9)  # of 40 that stay and 5 for rows
    calls = [call for call in PPO if call.name != "generate"]
    message = r"by 2.5 GB: it needs 5 GB while .* beside 40 GB that stay .* with 2 times as many micro-batches for every call"
    with pytest.raises(ValueError, match=message):
        run_check({call.name: EVERYWHERE[call.name] for call in calls}, costs, calls)
    smaller = {
        name: replace(of, num_micro_batches=2)
        for name, of in EVERYWHERE.items()
        if name not in ("train_policy", "generate")
    }
    with pytest.raises(
        ValueError,
        match=r"train_policy does not fit .* with train_policy: 0-1 data=2 micro_batches=2$",
    ):
        run_check({**smaller, "train_policy": place(0, 1)}, costs, calls)


def test_sampling_counts_the_version_that_is_there_while_it_runs():
    costs = replace(COSTS, device_bytes=46.5e9)  # of 40 that stay, 5 for rows and 4 for a version
    message = (
        r"generate does not fit .* by 2.5 GB: it needs 9 GB while .* beside 40 GB that stay .* "
        "with generate: 0-1 data=2 micro_batches=2"
    )
    with pytest.raises(ValueError, match=message):
        run_check(EVERYWHERE, costs)


APART = {call.name: place(1, num_micro_batches=8) for call in ONLINE_DPO} | {
    "train_policy": place(0, num_micro_batches=8)
}


@pytest.mark.parametrize(
    ("memory", "state", "fits"),
    [
        (25e9, 16e9, "train_policy: 0 micro_batches=8 remat"),  # 16 + 10, or + 2.5 with remat
        (26.2e9, 24e9, "train_policy: 0-1 tensor=2 micro_batches=8"),  # 24 + 2.5, or 12 + 4 + 10
        (9e9, 16e9, "no one call's micro-batches, remat or devices"),
    ],
)
def test_remat_and_devices_that_would_fit_are_found(memory, state, fits):
    costs = replace(COSTS, device_bytes=memory, working=80e9, state=state)
    calls = [call for call in ONLINE_DPO if call.name in ("train_policy", "generate")]
    placements = {call.name: APART[call.name] for call in calls}
    with pytest.raises(ValueError, match=re.escape(fits)) as error:
        run_check(placements, costs, calls)
    assert "does not fit on device" in str(error.value)


def test_nothing_fits_where_a_device_is_too_small_for_a_share_of_anything():
    with pytest.raises(ValueError, match="move calls apart, or take more devices"):
        run_check(APART, replace(COSTS, device_bytes=1e9), ONLINE_DPO)


def test_versions_that_a_lag_keeps_alive_count():
    costs = replace(COSTS, device_bytes=50e9)
    run_check(EVERYWHERE, costs, of=work(lag=3))
    with pytest.raises(ValueError, match=r"by 11 GB: it needs 9 GB .*generate 12 GB"):
        run_check(EVERYWHERE, costs, of=work(lag=3, loop="asynchronous"))
