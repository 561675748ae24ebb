"""Programs with adapters: one base for all roles, whose arrays no call copies or donates."""

import dataclasses
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from rlhf_jax import randomness
from rlhf_jax.algorithms import ppo
from rlhf_jax.clock import Clock
from rlhf_jax.devices import sharding
from rlhf_jax.devices.mesh import sampler_slices
from rlhf_jax.devices.placement import put
from rlhf_jax.models.common import adapters
from rlhf_jax.models.common.adapters import Adapted, Config
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.rewards import learned
from rlhf_jax.runtime import asynchronous, synchronous
from rlhf_jax.runtime.program import Critic, Program, ProgramSpec, Reward

from . import rounds
from .rounds import host, same

LORA = Config(rank=3, alpha=6.0)


def adapted(model, seed: int = 1) -> Adapted:
    """An adapter away from 0, as SFT leaves one."""
    adapter = adapters.init(model, LORA, randomness.key(seed))
    random = np.random.default_rng(seed)
    moved = jax.tree.map(
        lambda x: x + jnp.asarray(0.1 * random.standard_normal(x.shape, np.float32)), adapter
    )
    return Adapted(tiny.make_params(model), moved, LORA.scale)


def on_mesh(params, model, mesh):
    return put(params, sharding.params_shardings(model, params, mesh))


@lru_cache
def make_program(shape: tuple[int, int, int] = (1, 1, 1), **changes) -> Program:
    mesh = tiny.make_mesh(shape)
    spec = dataclasses.replace(rounds.make_spec(mesh), **changes)
    return Program(spec, on_mesh(adapted(spec.model), spec.model, mesh))


@lru_cache
def make_ppo_program() -> Program:
    """PPO with a learned reward: four roles, each with an adapter of its own on one base."""
    spec: ProgramSpec = rounds.make_spec(tiny.make_mesh((1, 1, 1)))
    network = ValueModel(spec.model)
    policy = on_mesh(adapted(spec.model), spec.model, spec.mesh)
    of_role = {
        role: on_mesh(
            network.init_from(
                Adapted(policy.base, adapted(spec.model, seed).adapter, policy.scale),
                jax.random.key(seed),
            ),
            network,
            spec.mesh,
        )
        for seed, role in ((2, "reward"), (3, "critic"))
    }
    spec = dataclasses.replace(
        spec,
        algorithm=ppo.ppo(ppo.Config()),
        reward=Reward(learned.make(network), of_role["reward"], network),
        critic=Critic(network, of_role["critic"], optax.sgd(0.01)),
    )
    return Program(spec, policy)


def leaves_of_base(params) -> list[jax.Array]:
    return jax.tree.leaves(adapters.split(params)[1])


def buffers(arrays: list[jax.Array]) -> list[list[int]]:
    return [[shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards] for x in arrays]


def bases_in(program: Program, states) -> dict[str, list[jax.Array]]:
    """The arrays of the base that each role and the sampler read."""
    frozen = {name: params for name, params in program._frozen.items() if params}
    found = {name: leaves_of_base(params) for name, params in frozen.items()}
    found |= {role: jax.tree.leaves(rest) for role, rest in program._rest.items()}
    found |= {"generate": jax.tree.leaves(program.sampler._rests[0])}
    for name, score in program.scores.items():
        if score.call.role in program.meshes:
            found[name] = leaves_of_base(program._params_of(score.call, states))
    return found


@pytest.mark.parametrize("make", [make_program, make_ppo_program])
def test_all_roles_share_the_arrays_of_one_base_before_and_after_updates(make):
    program = make()
    base = jax.tree.leaves(program.reference_params.base)
    pointers, content = buffers(base), host(base)
    states = program.init(program.reference_params)
    num_roles = 3 if make is make_program else 6
    for version in range(3):
        bases = bases_in(program, states)
        assert len(bases) >= num_roles
        for role, arrays in bases.items():
            assert all(x is y for x, y in zip(arrays, base, strict=True)), role
        published = program.publish(states)
        assert len(jax.tree.leaves(published)) == len(
            jax.tree.leaves(program.reference_params.adapter)
        )
        samples = program.generate(published, 0, version)
        _, batch = program.score(states, samples)
        before = host(states["policy"].params)
        states, _ = program.update(states, program.minibatch(batch, 0, 0))
        assert not same(before, host(states["policy"].params)), "nothing was trained"
        assert not any(x.is_deleted() for x in base)
        assert buffers(base) == pointers
        assert same(content, host(base))


def test_the_state_is_the_adapter_alone():
    program = make_program()
    adapter = program.reference_params.adapter
    shapes = program.state_shapes["policy"]
    assert jax.tree.structure(shapes.params) == jax.tree.structure(adapter)
    sizes = sum(x.size for x in jax.tree.leaves(shapes.opt_state))
    assert sizes < 2.1 * sum(x.size for x in jax.tree.leaves(adapter))
    assert {path[-2] for path in adapters.targets(program.spec.model, LORA)} <= {"layer_0"}
    names = {path[-1] for path in adapters.targets(program.spec.model, LORA)}
    assert names == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}


def test_the_reference_is_the_base_with_its_adapter():
    """At version 0 the ratio of policy and reference is 1; without its adapter it is not."""
    program = make_program()
    states = program.init(program.reference_params)
    samples = program.generate(program.publish(states), 0, 0)
    score = program.scores["reference"]
    with_adapter = score.function(program._frozen["reference"], samples)
    np.testing.assert_allclose(with_adapter, samples.behavior_logprob_BC, atol=1e-5)
    without = score.function(program.reference_params.base, samples)
    assert float(jnp.abs(without - samples.behavior_logprob_BC).max()) > 0.1


@pytest.mark.parametrize("lag", [0, 1])
def test_both_loops_give_the_same_numbers(lag):
    program = rounds.program_of(Clock(3, lag=lag), make_program())
    ends = []
    for loop in (synchronous, asynchronous):
        events = list(loop.run(program, program.init(program.reference_params), 0, {}))
        ends.append(host(events[-1].states["policy"].params))
    assert same(*ends)


def of_eight(round_index: int):
    """Prompts that all meshes divide."""
    return tiny.make_prompts(8, seed=round_index, first_ordinal=8 * round_index)


def one_round(program: Program):
    states = program.init(program.reference_params)
    samples = program.generate(program.publish(states), 0, 0)
    _, batch = program.score(states, samples)
    states, metrics = program.update(states, program.minibatch(batch, 0, 0))
    return samples, host(states["policy"].params), metrics


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 4, 1), (2, 2, 2)])
def test_sharded_is_single(shape):
    alone, program = (
        one_round(make_program(prompts=of_eight)),
        one_round(make_program(shape, prompts=of_eight)),
    )
    np.testing.assert_array_equal(alone[0].tokens_BC, program[0].tokens_BC)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), alone[1], program[1])
    assert abs(alone[2]["loss"].value() - program[2]["loss"].value()) < 1e-4


def test_adapters_are_whole_on_data_and_fsdp_and_cut_over_tensor():
    model = tiny.make_model()
    adapter = adapted(model).adapter
    for shape, axes in (((2, 4, 1), set()), ((2, 2, 2), {"tensor"})):
        shardings = sharding.params_shardings(model, adapter, tiny.make_mesh(shape))
        used = {name for s in jax.tree.leaves(shardings) for name in s.spec if name}
        assert used == axes


def test_slices_hold_the_base_and_are_given_adapters_alone():
    shared = make_program()
    slices = sampler_slices(shared.spec.mesh, 2, 1)
    program = Program(
        dataclasses.replace(shared.spec, sampler_slices=slices), shared.reference_params
    )
    params = program.publish(program.init(program.reference_params))
    adapter = shared.reference_params.adapter
    assert [len(jax.tree.leaves(one)) for one in params] == 2 * [len(jax.tree.leaves(adapter))]
    rests = [jax.tree.leaves(rest) for rest in program.sampler._rests]
    samples = program.generate(params, 0, 0)
    expected = shared.generate(shared.publish(shared.init(shared.reference_params)), 0, 0)
    np.testing.assert_array_equal(samples.tokens_BC, expected.tokens_BC)
    again = [jax.tree.leaves(rest) for rest in program.sampler._rests]
    assert all(
        x is y
        for one, other in zip(rests, again, strict=True)
        for x, y in zip(one, other, strict=True)
    )
    devices = [{d.id for x in leaves for d in x.devices()} for leaves in rests]
    assert devices == [{1}, {2}]
