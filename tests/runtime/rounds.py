"""A tiny program whose compiled calls are shared by every clock, and a loop that keeps all versions
of the params.
"""

import copy
import dataclasses
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny

from rlhf_jax import registry, scoring
from rlhf_jax.algorithms import online_dpo, ppo
from rlhf_jax.clock import Clock
from rlhf_jax.models.common import value_head
from rlhf_jax.runtime import synchronous
from rlhf_jax.runtime.program import Critic, Program, ProgramSpec, Reward
from rlhf_jax.updating import OptimizerConfig, make_optimizer

NUM_ROUNDS = 5
MOST_ROUNDS = 8  # of a test that has more: stored scores are of all of its prompts
PROMPTS = 4  # of a round, whatever num_minibatches is: two compiled updates serve all clocks
SEED = 7


def token_reward(params, samples):
    """Likes large ids: an array program, as a learned reward is."""
    del params
    return jnp.where(samples.mask_BC, samples.tokens_BC, 0).sum(-1).astype(jnp.float32)


@lru_cache
def make_program(mesh_shape: tuple[int, int, int] = (1, 1, 1)) -> Program:
    spec = make_spec(tiny.make_mesh(mesh_shape))
    return Program(spec, tiny.make_params(spec.model))


def make_spec(mesh: jax.sharding.Mesh, **of_model) -> ProgramSpec:
    """What the shared programs are made of. `of_model`: keys of the model's config."""
    model = tiny.make_model(num_layers=1, **of_model)
    return ProgramSpec(
        model=model,
        algorithm=online_dpo.online_dpo(online_dpo.Config(beta=1.0)),
        optimizer=make_optimizer(OptimizerConfig(learning_rate=0.03, schedule="constant"), 1),
        sampling=tiny.law(2),
        scoring=scoring.Config(replace_missing_eos=False),
        reward=Reward(model=token_reward, params={}),
        clock=Clock(NUM_ROUNDS),
        mesh=mesh,
        prompts=lambda r: tiny.make_prompts(PROMPTS, seed=r, first_ordinal=r * PROMPTS),
        key=jax.random.key(SEED),
        seed=SEED,
        reference_scores=np.random.default_rng(SEED)
        .integers(0, 2, (MOST_ROUNDS * PROMPTS, 3))
        .astype(np.float32),
        eos_id=tiny.EOS,
        pad_id=tiny.PAD,
    )


def algorithm_program(name: str) -> Program:
    """A program of any algorithm of the folder with its defaults, which samples by the shared
    program's compiled sampler.
    """
    module = registry.find("algorithms", name)
    shared = make_critic_program() if name == "ppo" else make_program()
    if name in ("ppo", "online_dpo"):
        return shared
    spec = dataclasses.replace(
        shared.spec,
        algorithm=getattr(module, name)(module.Config()),
        optimizer=optax.sgd(1e-4),
        critic=None,
    )
    program = Program(spec, shared.reference_params)
    program.sampler = shared.sampler
    return program


def program_of(clock: Clock, program: Program | None = None) -> Program:
    """The shared program (or another) with another clock: nothing compiled depends on it."""
    program = copy.copy(program or make_program())
    program.spec = dataclasses.replace(program.spec, clock=clock)
    return program


def host(tree):
    return jax.tree.map(np.array, tree)


def run(clock: Clock, start_round: int = 0, state=None, pending=None):
    """The loop's events, by kind, and the params at the end."""
    program = program_of(clock)
    state = program.init(program.reference_params) if state is None else state
    events = {kind: [] for kind in (synchronous.Sampled, synchronous.Scored, synchronous.Updated)}
    params = None
    for event in synchronous.run(program, state, start_round, pending or {}):
        if isinstance(event, synchronous.RoundEnd):
            params = host(event.states["policy"].params)
        else:
            events[type(event)].append(event)
    return events, params


def naive(versions_of_rounds: list[int], num_minibatches: int, num_epochs: int):
    """Keeps every version of the params on the host, and samples each round from the one it is told
    to.
    """
    program = program_of(Clock(len(versions_of_rounds), num_minibatches, num_epochs))
    state = program.init(program.reference_params)
    versions, samples = [host(state["policy"].params)], []
    for round_index, version in enumerate(versions_of_rounds):
        params = jax.device_put(versions[version], program.state_shardings["policy"].params)
        drawn = program.generate(params, round_index, version)
        samples.append(host(drawn))
        _, batch = program.score(state, drawn)
        for update in range(num_minibatches * num_epochs):
            state, _ = program.update(state, program.minibatch(batch, round_index, update))
            versions.append(host(state["policy"].params))
    return versions, samples


def same(one, other) -> bool:
    """Bitwise."""
    return all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@lru_cache
def make_critic_program() -> Program:
    """PPO on one device; its critic begins as the policy's backbone with a head of its own."""
    spec = make_program().spec
    model = value_head.make(spec.model)  # type: ignore[arg-type]
    critic = Critic(
        model=model,
        params=model.init_from(tiny.make_params(spec.model), jax.random.key(1)),
        optimizer=optax.sgd(
            0.003, momentum=0.9
        ),  # compiles in a fraction of the time of Adam, and has moments too
    )
    spec = dataclasses.replace(
        spec, algorithm=ppo.ppo(ppo.Config()), optimizer=optax.sgd(0.03), critic=critic
    )
    return Program(spec, tiny.make_params(spec.model))
