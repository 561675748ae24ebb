"""The plan on a run's own mesh: against brute force, within memory, and refused where nothing fits."""

import itertools

import pytest

from rlhf_jax.planner.options import mesh_shapes, option
from rlhf_jax.planner.search.fit import MICRO_BATCHES, fit
from rlhf_jax.planner.search.space import Space
from rlhf_jax.planner.simulation import plan_memory, steady_state
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Placement

from .tables import ONLINE_DPO, Given, Table, work

TRAINER = Placement((0, 1, 2, 3), (1, 4, 1))


def fullest(calls, costs, of, plan):
    chosen = [option(call, costs, plan.placements[call.name]) for call in calls]
    return max(plan_memory.by_device(calls, chosen, of.versions, 4))


def brute_force(calls, costs, of, counts):
    """The least seconds of all plans on these devices that fit and leave training its mesh."""
    space = Space(calls, costs, of, 4, 4)
    space.options = [
        [
            option(call, costs, placement)
            for shape in mesh_shapes(4, 4)
            for remat in ((False, True) if call.kind == "train" else (None,))
            for count in counts
            if call.kind != "train" or shape == TRAINER.mesh_shape
            if not costs.refusal(call, placement := Placement(TRAINER.devices, shape, count, remat))
        ]
        for call in calls
    ]
    return min(
        space.seconds(choice)
        for choice in itertools.product(*(range(len(found)) for found in space.options))
        if space.excess(choice) <= 0
    )


@pytest.mark.parametrize("memory", [22e9, 26e9, 1e12])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_fastest_of_what_fits(seed, memory, monkeypatch):
    monkeypatch.setattr("rlhf_jax.planner.search.fit.MICRO_BATCHES", (1, 4))
    costs, of = Table(seed, device_bytes=memory), work(1, "asynchronous")
    plan = fit(ONLINE_DPO, costs, of, TRAINER, 4)
    assert fullest(ONLINE_DPO, costs, of, plan) <= memory
    assert {placement.devices for placement in plan.placements.values()} == {TRAINER.devices}
    assert plan.placements["train_policy"].mesh_shape == TRAINER.mesh_shape
    space = Space(ONLINE_DPO, costs, of, 4, 4, (1, 4))
    seconds = space.flow.round(
        [option(call, costs, plan.placements[call.name]) for call in ONLINE_DPO]
    )
    assert steady_state.seconds_per_round(space.flow, seconds) == pytest.approx(
        brute_force(ONLINE_DPO, costs, of, (1, 4))
    )


class Growing(Given):
    """A call takes longer in more parts."""

    def seconds(self, call, placement):
        return super().seconds(call, placement) * (1 + placement.num_micro_batches / 100)


def test_calls_are_cut_no_more_than_memory_asks_for():
    seconds = {"generate": 3.0, "reference": 1.0, "reward": 1.0, "train_policy": 5.0}
    whole = Growing(seconds, working=10e9, device_bytes=100e9)
    plan = fit(ONLINE_DPO, whole, work(), TRAINER, 4)
    assert {placement.num_micro_batches for placement in plan.placements.values()} == {1}
    small = Growing(seconds, working=40e9, params=1e9, state=4e9, device_bytes=8e9)
    plan = fit(ONLINE_DPO, small, work(), TRAINER, 4)
    assert fullest(ONLINE_DPO, small, work(), plan) <= 8e9
    assert plan.placements["generate"].num_micro_batches > 1
    assert max(MICRO_BATCHES) > 64


def test_what_fits_nowhere_names_the_call_and_what_would_do():
    costs = Given(
        dict.fromkeys(("generate", "reference", "reward", "train_policy"), 1.0), state=900e9
    )
    with pytest.raises(Refusal, match=r"train_policy alone needs .* such devices would"):
        fit(ONLINE_DPO, costs, work(), TRAINER, 4, lambda _: costs)
