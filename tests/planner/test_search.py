"""The search against brute force over random cost tables, its bounds against what plans take, and
what it says.
"""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from rlhf_jax.planner.options import mesh_shapes, option, slices
from rlhf_jax.planner.search import search as search_module
from rlhf_jax.planner.search.anneal import anneal
from rlhf_jax.planner.search.bounds import Bounds
from rlhf_jax.planner.search.branch_and_bound import Search, exact
from rlhf_jax.planner.search.search import advice, search
from rlhf_jax.planner.search.search_tables import Tables
from rlhf_jax.planner.search.space import Space
from rlhf_jax.planner.simulation import steady_state
from rlhf_jax.planner.simulation.plan_memory import check
from rlhf_jax.types import Placement

from .tables import ONLINE_DPO, PPO, Given, Table, work

LOOPS = [(0, "synchronous"), (1, "asynchronous")]


def every_option(call, costs, num_devices, micro_batches):
    """All placements that are not refused, dominated ones too."""
    for devices in slices(num_devices, num_devices):
        for shape in mesh_shapes(len(devices), num_devices):
            for remat in (False, True) if call.kind == "train" else (None,):
                for count in micro_batches:
                    placement = Placement(devices, shape, count, remat)
                    if not costs.refusal(call, placement):
                        yield option(call, costs, placement)


def brute_force(calls, costs, of, num_devices, micro_batches):
    """The least seconds of all plans that fit."""
    space = Space(calls, costs, of, num_devices, num_devices, micro_batches)
    space.options = [list(every_option(call, costs, num_devices, micro_batches)) for call in calls]
    least = np.inf
    for choice in itertools.product(*(range(len(found)) for found in space.options)):
        if space.excess(choice) <= 0:
            of_plan = space.flow.round(space.chosen(choice))
            least = min(least, steady_state.seconds_per_round(space.flow, of_plan))
    return least


@pytest.mark.parametrize(("lag", "loop"), LOOPS)
@pytest.mark.parametrize(
    ("calls", "micro_batches", "memory", "symmetric"),
    [(ONLINE_DPO, (1, 2), 60e9, False), (PPO, (1,), 90e9, False), (PPO, (1,), 90e9, True)],
    ids=["online_dpo", "ppo", "ppo-symmetric"],
)
def test_branch_and_bound_is_brute_force(calls, micro_batches, memory, symmetric, lag, loop):
    costs = Table(lag + 2 * symmetric, symmetric, device_bytes=memory)
    space = Space(calls, costs, work(lag, loop), 2, 2, micro_batches)
    proof = exact(space, None, 10**6)
    assert proof.proven
    assert proof.lower_bound == pytest.approx(space.seconds(proof.choice))
    assert space.seconds(proof.choice) == pytest.approx(
        brute_force(calls, costs, work(lag, loop), 2, micro_batches)
    )


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("lag", "loop", "every"),
    [*((lag, loop, 1) for lag, loop in [*LOOPS, (3, "asynchronous"), (0, "asynchronous")])]
    + [(0, "synchronous", 3), (0, "asynchronous", 2), (2, "asynchronous", 2)],
)
def test_no_plan_is_faster_than_its_bounds(lag, loop, every, shared):
    costs = Table(5, symmetric=False, shared_throughput=shared, move=2.0, transfer=0.5)
    of_clock = work(lag, loop, sync_every=every)
    space, rng = Space(PPO, costs, of_clock, 4, 4, (1, 2)), random.Random(1)
    tables = Tables(space)
    bounds, order = Bounds(tables), Search(space, tables, 0).order
    tight = []
    for _ in range(4 if shared else 60 if every == 1 else 20):
        choice = tuple(rng.randrange(len(found)) for found in space.options)
        state, before = bounds.begin(), 0.0
        for index in order:
            bound = float(bounds.seconds(state, index)[choice[index]])
            assert bound >= before * (1 - 1e-12)
            state, before = bounds.place(state, index, choice[index]), bound
            assert bound <= space.seconds(choice) * (1 + 1e-9)
            known = [
                of if i in state.numbers else None for i, of in enumerate(space.chosen(choice))
            ]
            relaxed = steady_state.lower_bound(space.flow, space.flow.relaxed(known, tables.least))
            assert relaxed <= space.seconds(choice) * (1 + 1e-9)
            assert relaxed > 0 or shared
        tight.append(before / space.seconds(choice))
    assert np.mean(tight) > (0.8 if every == 1 else 0.7)  # a bound of 0 would be no bound


def test_partial_memory_is_that_of_the_plan():
    space, rng = (
        Space(PPO, Table(5, device_bytes=60e9), work(1, "asynchronous"), 4, 4, (1, 2)),
        random.Random(1),
    )
    tables = Tables(space)
    bounds, order = Bounds(tables), Search(space, tables, 0).order
    seen = set()
    for _ in range(200):
        choice = tuple(rng.randrange(len(found)) for found in space.options)
        state, fitted = bounds.begin(), True
        for index in order:
            fitted = fitted and bool(bounds.fits(state, index)[choice[index]])
            state = bounds.place(state, index, choice[index])
        assert fitted == (space.excess(choice) <= 0)
        seen.add(fitted)
    assert seen == {True, False}


def test_a_mesh_is_left_out_for_one_of_the_same_slice_that_is_better_in_everything():
    space = Space(PPO, Table(6, symmetric=False, transfer=0.1), work(), 4, 4, (1, 2))
    tables = Tables(space)
    index = next(i for i, call in enumerate(PPO) if call.name == "reward")
    generate, trains = 0, (4, 5)

    def latest(of, other):
        """By how much the samples may come later to `of` than to `other`, and its scores later to
        training.
        """
        flow = space.flow
        late = [
            flow.transfer_seconds(0, a, of) - flow.transfer_seconds(0, a, other)
            for a in space.options[generate]
        ]
        behind = [
            flow.transfer_seconds(index, of, b) - flow.transfer_seconds(index, other, b)
            for train in trains
            for b in space.options[train]
        ]
        return max(0.0, *late) + max(0.0, *behind)

    found = space.options[index]
    kept = [of for number, of in enumerate(found) if tables.worth_trying[index][number]]
    assert 0 < len(kept) < len(found)
    for number, of in enumerate(found):
        assert tables.worth_trying[index][number] or any(
            other.placement.devices == of.placement.devices
            and other.seconds + latest(other, of) <= of.seconds
            and other.working_bytes <= of.working_bytes
            and other.resident_bytes <= of.resident_bytes
            for other in kept
        )
    assert all(
        tables.worth_trying[call].all() for call in (generate, 2, *trains)
    )  # their params are moved


def test_exchanges_of_devices_are_used_where_costs_are_blind_to_them():
    same, other = (
        Tables(Space(PPO, Table(0, symmetric=s), work(), 8, 8, (1,))) for s in (True, False)
    )
    assert same.symmetric
    assert not other.symmetric
    generate = same.generate
    first = {same.slices[generate][n] for n in np.flatnonzero(same.fresh([], generate))}
    assert first == {(0, 1), (0, 2), (0, 4), (0, 8)}
    placed = next(n for n, found in enumerate(same.slices[generate]) if found == (0, 2))
    second = {
        same.slices[same.policy][n]
        for n in np.flatnonzero(same.fresh([(generate, placed)], same.policy))
    }
    # inside it, itself, beside it, the half with it, the other half, all
    assert second == {(0, 1), (0, 2), (2, 1), (2, 2), (0, 4), (4, 1), (4, 2), (4, 4), (0, 8)}
    assert (
        other.fresh([], generate).sum()
        == (other.worth_trying[generate]).sum()
        > same.fresh([], generate).sum()
    )


def test_symmetry_finds_what_is_found_without_it(monkeypatch):
    costs = Table(4, device_bytes=50e9)
    found = []
    for usable in (True, False):
        space = Space(ONLINE_DPO, costs, work(), 4, 4, (1, 2))
        if not usable:
            monkeypatch.setattr("rlhf_jax.planner.search.symmetry.Exchanges.keep", lambda *_: False)
        proof = exact(space, None, 10**6)
        found.append((space.seconds(proof.choice), proof.num_nodes))
    assert found[0][0] == pytest.approx(found[1][0])
    assert found[0][1] < found[1][1]


def test_a_search_that_is_cut_short_says_so_and_bounds_what_it_has_not_seen():
    space = Space(PPO, Table(1, device_bytes=60e9), work(), 4, 4, (1,))
    whole, cut = exact(space, None, 10**6), exact(space, None, 40)
    assert whole.proven
    assert not cut.proven
    assert cut.num_nodes == 40
    assert cut.lower_bound <= space.seconds(whole.choice)


@pytest.fixture(scope="module")
def found():
    return search(PPO, Table(1, device_bytes=60e9), work(), 4, 4, micro_batches=(1, 2))


def test_what_a_search_returns(found):
    costs = Table(1, device_bytes=60e9)
    assert found.proven
    best = found.best.simulation.seconds_per_round
    check(found.best.plan, PPO, costs, work(), 4, 4)  # fits
    assert max(found.best.simulation.memory_bytes) <= costs.device_bytes
    assert found.lower_bound == pytest.approx(best)
    others = [other.simulation.seconds_per_round for other in found.others]
    assert len(others) == 4
    assert others == sorted(others)
    assert others[0] > best
    for other in found.others:
        assert f"{other.simulation.seconds_per_round - best:.3g} s longer a round" in other.why
        assert len(other.why.split(": ")[1]) > 10
    assert found.default.simulation.seconds_per_round >= best


def test_the_default_plan_is_the_best_single_mesh(found):
    costs = Table(1, device_bytes=60e9)
    meshes = {(of.devices, of.mesh_shape) for of in found.default.plan.placements.values()}
    assert len(meshes) == 1
    assert next(iter(meshes))[0] == (0, 1, 2, 3)
    least = np.inf
    for shape in mesh_shapes(4, 4):
        space = Space(PPO, costs, work(), 4, 4, (1, 2))
        mesh = (0, 1, 2, 3), shape
        space.options = [
            [
                of
                for of in every_option(call, costs, 4, (1, 2))
                if (of.placement.devices, of.placement.mesh_shape) == mesh
            ]
            for call in PPO
        ]
        for choice in itertools.product(*(range(len(of)) for of in space.options)):
            if space.excess(choice) <= 0:
                least = min(least, sum(of.seconds for of in space.chosen(choice)))
    assert found.default.simulation.seconds_per_round == pytest.approx(least)


def test_a_search_is_determined_by_its_seed():
    spaces = [Space(PPO, Table(2, device_bytes=60e9), work(), 8, 4, (1, 2)) for _ in range(3)]
    first, again, other = (
        anneal(space, seed, 2, 150) for space, seed in zip(spaces, (3, 3, 4), strict=True)
    )
    assert first == again
    assert spaces[0].evaluations == spaces[1].evaluations != spaces[2].evaluations or first != other


def test_annealing_comes_near_the_optimum():
    space = Space(PPO, Table(1, device_bytes=60e9), work(), 4, 4, (1, 2))
    optimum = space.seconds(exact(space, None, 10**6).choice)
    assert space.seconds(anneal(space, 0, 3, 1000)) <= 1.02 * optimum


def test_many_devices_are_annealed(monkeypatch):
    monkeypatch.setattr(search_module, "MANY_STARTS", 2)
    monkeypatch.setattr(search_module, "MANY_EVALUATIONS", 300)
    costs = Table(1, device_bytes=60e9)
    found = search(ONLINE_DPO, costs, work(), 32, 8, micro_batches=(1,), num_best=2)
    assert not found.proven
    assert found.lower_bound == 0
    assert found.best.simulation.seconds_per_round < found.default.simulation.seconds_per_round
    assert max(found.best.simulation.memory_bytes) <= costs.device_bytes


def test_what_fits_nowhere_is_named_with_what_would_do():
    costs = replace(Table(1), device_bytes=8e9)
    with pytest.raises(
        ValueError,
        match=r"no plan fits on 4 devices of 8 GB: train_\w+ alone needs .* at the least on 0-",
    ):
        search(PPO, costs, work(), 4, 4)
    with pytest.raises(ValueError, match=r"; 16 such devices would do"):
        search(PPO, costs, work(), 4, 4, costs_of=lambda number: costs)


def test_calls_that_fit_alone_but_not_together_are_named():
    costs = Given(
        {call.name: 1.0 for call in PPO}, device_bytes=30e9
    )  # a state of 16 GB and 10 for rows
    with pytest.raises(
        ValueError, match=r"no plan fits on 1 device of 30 GB: train_\w+ needs 16.3 GB"
    ) as error:
        search(PPO, costs, work(), 1, 1, micro_batches=(1, 2, 4, 8))
    assert "alone" not in str(error.value)


def test_what_is_refused_everywhere_says_why():
    class Refused(Table):
        def refusal(self, call, placement):
            return "5 prompts do not divide" if call.name == "reward" else None

    with pytest.raises(
        ValueError, match="reward can be placed nowhere on 2 devices: 5 prompts do not divide"
    ):
        search(PPO, Refused(0), work(), 2, 2)


@pytest.mark.parametrize(
    ("generate", "shared", "sentence"),
    [
        (
            5.0,
            False,
            "Sample asynchronously: a round is",
        ),  # a second device makes no call faster: each has its own
        (0.2, False, "Stay synchronous: asynchrony would gain"),
        (5.0, True, "these devices share one host's cores"),
    ],
)
def test_advice(generate, shared, sentence):
    seconds = {"generate": generate, "reference": 1.0, "reward": 1.0, "train_policy": 4.0}
    costs = Given(seconds, shared_throughput=shared)
    both = [
        search(ONLINE_DPO, costs, work(lag, loop), 2, 2, micro_batches=(1,)) for lag, loop in LOOPS
    ]
    said = advice(*both)
    assert sentence in said
    assert said.endswith(".")
    assert said.count(". ") == 0
