"""Any plan trains to the params of one mesh for everything: calls on slices of their own, in other
layouts and in parts.
"""

import dataclasses
from functools import lru_cache

import jax
import numpy as np
import pytest
import tiny

from rlhf_jax import dataflow
from rlhf_jax.clock import Clock
from rlhf_jax.devices import sharding
from rlhf_jax.devices.mesh import AXES
from rlhf_jax.devices.placement import parse, text_of
from rlhf_jax.runtime import asynchronous, synchronous
from rlhf_jax.runtime.program import Program
from rlhf_jax.types import Placement, Plan

from . import rounds
from .rounds import host

ROUNDS = 3
SHARED = {"ppo": rounds.make_critic_program, "online_dpo": rounds.make_program}
HAND_WRITTEN = """
    generate: 0-3 data=2 tensor=2 micro_batches=2; reference: 4-5 fsdp=2 micro_batches=2; reward: 6; value: 7,6 data=2
    train_policy: 0-1 fsdp=2 micro_batches=2 remat; train_critic: 2-3 data=1 tensor=2
"""


def random_plan(seed: int) -> Plan:
    """A placement for every call: devices anywhere, any shape over data, fsdp and tensor that four
    prompts divide over.
    """
    random = np.random.default_rng(seed)
    shapes = [(d, f, t) for d in (1, 2, 4) for f in (1, 2) for t in (1, 2) if d * f <= 4]
    placements = {}
    for call in dataflow.roles():
        data, fsdp, tensor = shape = shapes[random.integers(len(shapes))]
        devices = random.permutation(8)[: data * fsdp * tensor]
        parts = int(random.choice([parts for parts in (1, 2) if 4 % (data * fsdp * parts) == 0]))
        remat = bool(random.integers(2)) if call in dataflow.TRAIN_CALLS else None
        placements[call] = Placement(tuple(devices.tolist()), shape, parts, remat)
    return Plan(placements)


@lru_cache
def end_on_one_mesh(name: str, lag: int):
    return end(SHARED[name](), Clock(ROUNDS, lag=lag), synchronous)


def end(program: Program, clock: Clock, loop):
    """The states' params after all rounds, and the metrics of every update."""
    program = rounds.program_of(clock, program)
    events = list(loop.run(program, program.init(program.reference_params), 0, {}))
    states = events[-1].states
    metrics = [host(event.metrics) for event in events if isinstance(event, synchronous.Updated)]
    return {role: host(state.params) for role, state in states.items()}, metrics


@lru_cache
def program_of_plan(name: str, plan: str) -> Program:
    shared = SHARED[name]()
    spec = dataclasses.replace(shared.spec, plan=parse(plan))
    return Program(spec, shared.reference_params)


def check_equal(found, expected):
    for (path, one), other in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(
            one, other, rtol=2e-3, atol=2e-4, err_msg=jax.tree_util.keystr(path)
        )


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("name", ["ppo", "online_dpo"])
@pytest.mark.parametrize("plan", [HAND_WRITTEN, *(text_of(random_plan(seed)) for seed in (0, 1))])
def test_a_plan_trains_to_the_params_of_one_mesh(plan, name, lag):
    program = program_of_plan(name, plan)
    loop = asynchronous if lag else synchronous
    params, _ = end(program, Clock(ROUNDS, lag=lag), loop)
    check_equal(params, end_on_one_mesh(name, lag)[0])


def test_every_call_runs_where_the_plan_says():
    program = program_of_plan("ppo", HAND_WRITTEN)
    states = program.init(program.reference_params)
    places = {
        role: {device.id for leaf in jax.tree.leaves(state) for device in leaf.devices()}
        for role, state in states.items()
    }
    assert places == {"policy": {0, 1}, "critic": {2, 3}}
    assert [mesh.device_ids.tolist() for mesh in program.sampler._meshes] == [[[[0, 1]], [[2, 3]]]]
    found = {
        name: (call.mesh.device_ids.ravel().tolist(), dict(call.mesh.shape))
        for name, call in program.scores.items()
    }
    assert found == {
        "reference": ([4, 5], dict(zip(AXES, (1, 2, 1), strict=True))),
        "value": ([7, 6], dict(zip(AXES, (2, 1, 1), strict=True))),
        "reward": ([6], dict(zip(AXES, (1, 1, 1), strict=True))),
    }
    samples = program.generate(program.publish(states), 0, 0)
    scores, batch = program.score(states, samples)
    for leaf in jax.tree.leaves((samples, scores, batch)):
        assert {device.id for device in leaf.devices()} == {0, 1}, (
            "a round's rows come home, to where the policy trains"
        )


def test_training_has_the_micro_batches_and_the_remat_of_its_placement():
    """A scan over micro-batches is a loop more in the program, layers computed again are barriers
    more.
    """

    def loops_and_barriers(plan: str) -> tuple[int, int]:
        program = program_of_plan("ppo", plan)
        text = program.lowered("train_policy").as_text()
        return text.count("stablehlo.while"), text.count("optimization_barrier")

    (loops, barriers), (loops_remat, more_barriers), (more_loops, _) = map(
        loops_and_barriers,
        ("train_policy: 1", "train_policy: 1 remat", "train_policy: 1 micro_batches=2"),
    )
    assert more_barriers > barriers
    assert more_loops > loops == loops_remat


def test_a_round_comes_home_in_the_order_of_its_prompts():
    one_mesh, program = rounds.make_critic_program(), program_of_plan("ppo", HAND_WRITTEN)
    expected, found = (
        p.generate(p.publish(p.init(p.reference_params)), 0, 3) for p in (one_mesh, program)
    )
    for name in (
        "ordinal_B",
        "sample_index_B",
        "tokens_BC",
        "mask_BC",
        "prompt_tokens_BQ",
        "version_BC",
        "temperature",
    ):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    states, others = (p.init(p.reference_params) for p in (one_mesh, program))
    for one, other in zip(
        jax.tree.leaves(one_mesh.score(states, expected)),
        jax.tree.leaves(program.score(others, found)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_updates_donate_their_states_on_every_mesh():
    program = program_of_plan("ppo", HAND_WRITTEN)
    states = program.init(program.reference_params)
    published = program.publish(states)
    before = host(published)
    _, batch = program.score(states, program.generate(published, 0, 0))
    program.update(states, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(states))
    assert rounds.same(before, host(published)), "what the sampler holds is its own"


def test_compiling_ahead_finds_the_calls_of_a_plan():
    program = program_of_plan("ppo", HAND_WRITTEN)
    program.compile()
    states = program.init(program.reference_params)
    samples = program.generate(program.publish(states), 0, 0)
    _, batch = program.score(states, samples)
    program.update(states, program.minibatch(batch, 0, 0))
    for compiled in (*program.updates.values(), *program.scores.values()):
        assert compiled.function._cache_size() == 1


def test_fsdp_brings_params_together_and_not_rows(monkeypatch):
    """With rows held on their shards, an update on eight fsdp shards gathers each layer's params;
    without, XLA cuts the width of what is between the layers and has many more collectives.
    """

    def collectives() -> int:
        shared = make_four_layers()
        program = Program(
            dataclasses.replace(shared.spec, plan=parse("others: 0-3 fsdp=4")),
            shared.reference_params,
        )
        text = program.lowered("train_policy").compile().as_text()
        return sum(
            text.count(f" {name}(")
            for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute")
        )

    held = collectives()
    monkeypatch.setattr(sharding, "keeping_rows", lambda function, mesh: function)
    assert held < 0.7 * collectives()


def make_four_layers() -> Program:
    spec = rounds.make_program().spec
    model = spec.model.with_config(num_layers=4)
    return Program(dataclasses.replace(spec, model=model), tiny.make_params(model))
