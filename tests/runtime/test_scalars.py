"""Runs that differ only in numbers that scale have the same programs, and results of their own."""

import dataclasses
import random
from functools import cache

import jax
import numpy as np
import pytest
import tiny

from rlhf_jax import registry, scoring
from rlhf_jax.algorithms.common.numbers import with_arguments
from rlhf_jax.models.common import value_head
from rlhf_jax.ops.scalars import with_values
from rlhf_jax.rewards.api import Term
from rlhf_jax.runtime.program import CREDIT, Critic, Program, Reward
from rlhf_jax.updating import OptimizerConfig, make_optimizer

from . import rounds


def make_program(name: str, scale: float, reward: Reward | None = None) -> Program:
    """A program all of whose numbers, and updates of its run, are multiples of `scale`."""
    spec = rounds.make_program().spec
    config = registry.settings("algorithms", name)()
    numbers = getattr(registry.find("algorithms", name), "SCALARS", ())
    config = with_values(
        config, {number: scale * (2.0 if number.endswith("cap") else 0.5) for number in numbers}
    )
    optimizer = make_optimizer(
        OptimizerConfig(
            learning_rate=0.01 * scale,
            warmup_updates=2,
            beta1=0.9 * scale,
            beta2=0.99 * scale,
            epsilon=1e-4 * scale,
            weight_decay=0.1 * scale,
            max_grad_norm=scale,
        ),
        int(100 * scale),
    )
    algorithm = registry.make("algorithms", name, config)
    critic = None
    if "critic" in algorithm.losses:
        model = value_head.make(spec.model)  # type: ignore[arg-type]
        params = model.init_from(tiny.make_params(spec.model), jax.random.key(1))
        critic = Critic(model, params, optimizer)
    spec = dataclasses.replace(
        spec,
        algorithm=with_arguments(algorithm, name, config),
        optimizer=optimizer,
        critic=critic,
        scoring=scoring.Config(missing_eos_score=-scale),
        reward=reward or dataclasses.replace(spec.reward, mean=3 * scale, std=5 * scale),
    )
    return Program(spec, rounds.make_program().reference_params)


def texts(program: Program) -> dict[str, str]:
    """The lowered text of credit and of each role's update."""
    calls = [call.name for call in program.calls if call.kind == "train"]
    return {call: program.lowered(call).as_text() for call in (CREDIT, *calls)}


@pytest.mark.parametrize("name", registry.names("algorithms"))
def test_all_values_have_the_same_credit_and_updates(name):
    assert texts(make_program(name, 0.8)) == texts(make_program(name, 0.7))


def test_the_weights_of_a_sum_of_rewards_are_arguments():
    def summed(scale: float) -> str:
        terms = (Term("learned", "model", scale), Term("length", "length", -scale))
        reward = Reward(
            rounds.token_reward, {}, host=lambda _: None, mean=scale, std=2 * scale, terms=terms
        )
        return make_program("online_dpo", 1.0, reward).lowered(CREDIT).as_text()

    assert summed(0.8) == summed(0.7)


def one_round(program: Program):
    """Params after an update, and the rows that it was made on."""
    states = program.init(program.reference_params)
    samples = program.generate(program.publish(states), 0, 0)
    _, batch = program.score(states, samples)
    rows = rounds.host(batch)
    for update in range(2):
        states, _ = program.update(states, program.minibatch(batch, 0, update))
    return rounds.host(states["policy"].params), rows


@cache
def _misses() -> list[str]:
    """Names of the events of programs that were not in the compile cache, from now on."""
    events: list[str] = []

    def listen(event: str, **_: object) -> None:
        if event == "/jax/compilation_cache/cache_misses":
            events.append(event)

    jax.monitoring.register_event_listener(listen)
    return events


def test_a_grid_in_one_process_compiles_its_programs_once():
    """The numbers are drawn anew each time: the cache of an earlier run of the test has none of
    them as a constant.
    """
    misses, results = _misses(), []
    for _ in range(2):
        program = make_program("rloo", random.SystemRandom().uniform(0.6, 0.9))
        compiled = len(misses)
        program.compile()
        results.append(one_round(program))
        assert all(update.function._cache_size() == 1 for update in program.updates.values()), (
            "compiled ahead, as it is called"
        )
        assert program._credit._cache_size() == 1  # type: ignore[attr-defined]
    assert len(misses) == compiled, "the second program of the grid was compiled"
    (params, rows), (other_params, other_rows) = results
    assert not rounds.same(params, other_params)
    assert not np.array_equal(rows.advantage_RC, other_rows.advantage_RC)
