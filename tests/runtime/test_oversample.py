"""Rounds that sample more prompts than they keep: on every clock in threads and resumed, and with a
real program, bit for bit.
"""

import copy
import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from rlhf_jax import scoring
from rlhf_jax.algorithms import grpo
from rlhf_jax.clock import Clock
from rlhf_jax.refusal import RewardError
from rlhf_jax.rewards.api import Term
from rlhf_jax.runtime import asynchronous, synchronous
from rlhf_jax.runtime.groups import selection
from rlhf_jax.runtime.program import Program, Reward

from .rounds import PROMPTS, host, make_spec, same
from .schedules import FakeProgram, finish, jitter
from .test_asynchronous import collect
from .test_clocks import CLOCKS, ROUNDS

OVERSAMPLE = 3
SCHEDULES = 4
ALL = CLOCKS | {
    "exact": Clock(ROUNDS, 2, 2),
    "behind": Clock(ROUNDS, 2, 1, lag=2),
    "replay": Clock(ROUNDS, 1, 1, version_schedule=tuple(r // 3 for r in range(ROUNDS))),
}


def oversampling(clock: Clock, seed: int | None = None) -> FakeProgram:
    delay = (lambda call, round_index: 0.0) if seed is None else jitter(seed, 0.0008)
    return FakeProgram(clock, delay, OVERSAMPLE)


@pytest.mark.parametrize("clock", ALL.values(), ids=ALL)
def test_threads_and_kills_change_nothing(clock):
    """Both loops end alike, from the start and from the samples that a checkpoint holds; the reward is
    asked once about a round in a process, and differently than without oversampling.
    """
    whole, samples, states = oversampling(clock), {}, {0: (0, 1)}
    for event in synchronous.run(whole, states[0], 0, {}):
        if isinstance(event, synchronous.Sampled):
            samples[event.round_index] = event.samples
        if isinstance(event, synchronous.RoundEnd):
            states[event.round_index + 1] = event.states
    assert sorted(whole.asked) == list(range(ROUNDS))
    assert states[ROUNDS] != finish(synchronous, FakeProgram(clock))[3]
    for seed in range(SCHEDULES):
        assert finish(asynchronous, oversampling(clock, seed))[3] == states[ROUNDS]
    for begin in (1, 4, 7):
        for loop in (synchronous, asynchronous):
            resumed = oversampling(clock)
            pending = {r: samples[r] for r in clock.issued_before(begin)}
            assert finish(loop, resumed, begin, states[begin], pending)[3] == states[ROUNDS]


def test_a_bounded_run_is_repeated_by_its_versions():
    clock = Clock(ROUNDS, lag=2, bounded=True)
    for seed in range(SCHEDULES):
        versions, _, _, states = finish(asynchronous, oversampling(clock, seed))
        schedule = tuple(versions[r] for r in range(ROUNDS))
        again = oversampling(Clock(ROUNDS, version_schedule=schedule))
        assert finish(synchronous, again)[3] == states


def even_tokens(params, samples):
    """1 for a completion whose first token is even: many groups are flat."""
    del params
    return (samples.tokens_BC[:, 0] % 2 == 0).astype(jnp.float32)


@pytest.fixture(scope="module")
def program() -> Program:
    """GRPO on one device, twice as many prompts as are kept, and a penalty on long completions which
    makes flat groups live after the selection.
    """
    spec = make_spec(tiny.make_mesh((1, 1, 1)))
    count = 2 * PROMPTS
    spec = dataclasses.replace(
        spec,
        algorithm=grpo.grpo(grpo.Config(kl_weight=0.04)),
        optimizer=optax.sgd(0.1),
        reward=Reward(model=even_tokens, params={}),
        scoring=scoring.Config(False, overlong=scoring.Overlong(tiny.C, 1.0)),
        prompts=lambda r: tiny.make_prompts(count, seed=r, first_ordinal=r * count),
        oversample=2,
    )
    return Program(spec, tiny.make_params(spec.model))


def program_of(clock: Clock, program: Program) -> Program:
    program = copy.copy(program)
    program.spec = dataclasses.replace(program.spec, clock=clock)
    return program


REAL = {
    "behind": Clock(4, 2, 1, lag=1),
    "in stages": Clock(4, 1, 1, sync_every=2, staged="in_order"),
    "buffer": Clock(4, 1, 1, buffer_rounds=2),
}


@pytest.mark.parametrize("clock", REAL.values(), ids=REAL)
def test_threads_give_the_synchronous_numbers_of_a_real_program(program, clock):
    assert same(collect(asynchronous, clock, of=program), collect(synchronous, clock, of=program))


def test_a_round_has_its_first_live_groups_to_the_bit(program):
    """By a loop over the groups: samples, raw scores and what is left out of each round. The filter is
    on the raw score, before the penalty, which is within the score.
    """
    running, sampled, flat_groups = program_of(REAL["behind"], program), {}, 0
    for event in synchronous.run(running, running.init(running.reference_params), 0, {}):
        if isinstance(event, synchronous.Sampled):
            sampled[event.round_index] = host(event.samples)
        if not isinstance(event, synchronous.Scored):
            continue
        drawn, first = sampled[event.round_index], event.round_index * 2 * PROMPTS
        assert (
            drawn.ordinal_B.tolist() == np.repeat(np.arange(first, first + 2 * PROMPTS), 2).tolist()
        )
        raw = (drawn.tokens_BC[:, 0] % 2 == 0).reshape(-1, 2).tolist()
        live = [g for g, (a, b) in enumerate(raw) if a != b]
        flat = [g for g, (a, b) in enumerate(raw) if a == b]
        kept = sorted((live + flat)[:PROMPTS])
        rows = [2 * g + i for g in kept for i in (0, 1)]
        expected = jax.tree.map(lambda x, rows=rows: x[rows] if x.ndim else x, drawn)
        assert same(host(event.samples), expected)
        scores = host(event.scores)
        assert scores.raw_B.tolist() == [raw[g][i] for g in kept for i in (0, 1)]
        assert same(scores.score_B, scores.raw_B + scores.overlong_B)
        assert scores.overlong_B.min() < 0
        assert event.selection.left_out == {
            "flat": [first + g for g in flat if g not in kept],
            "surplus": [first + g for g in live if g not in kept],
        }
        figures = {name: float(value) for name, value in event.selection.figures().items()}
        assert figures == {
            "live_group_share": len(live) / (2 * PROMPTS),
            "kept_flat_share": sum(g in flat for g in kept) / PROMPTS,
            "prompts_sampled": first + 2 * PROMPTS,
        }
        flat_groups += len(flat)
    assert 0 < flat_groups < 4 * 2 * PROMPTS


def test_only_kept_groups_reach_the_trainer(program):
    """The reward is compiled for all rows, the reference and the update for those that are kept."""

    def rows(call: str) -> int:
        return program.arguments(call)[1].tokens_BC.shape[0]

    assert rows("reward") == 2 * 2 * PROMPTS
    assert rows("reference") == 2 * PROMPTS
    assert program.minibatch_shapes().tokens_RC.shape[0] == 2 * PROMPTS


def select(reward: Reward, raw) -> selection.Selection:
    """Four groups of two by a reward on text, of which two are kept."""
    ones = np.ones((8, 1), np.int32)
    samples = SimpleNamespace(
        tokens_BC=ones, samples_per_prompt=2, ordinal_B=np.repeat(np.arange(16, 20), 2)
    )
    reward = dataclasses.replace(reward, host=lambda _: raw)
    return selection.select(SimpleNamespace(reward=reward, oversample=2, texts=None), samples, None)


def test_a_sum_of_rewards_is_flat_where_the_sum_is():
    """0.1 + 0.2 of two terms is 0.3 of the other completion, whose terms differ. A term of weight 0
    makes no group live.
    """
    terms = tuple(
        Term(name, name, weight) for name, weight in {"a": 0.1, "b": 0.2, "c": 0.0}.items()
    )
    raw = {
        "a": np.array([1, 3, 1, 1, 0, 1, 0, 0.0]),
        "b": np.array([1, 0, 0, 0, 0, 0, 1, 2.0]),
        "c": np.array([0, 0, 0, 1, 0, 0, 0, 0.0]),
    }
    found = select(Reward(terms=terms), raw)
    assert found.kept.is_live_N.tolist() == [False, False, True, True]
    assert found.kept.group_P.tolist() == [2, 3]
    assert found.first_ordinal == 16


def test_a_score_that_is_not_finite_is_refused_in_a_group_that_is_left_out():
    raw = np.array([0, 1, 0, 1, 1, 1, 0, np.nan])
    with pytest.raises(RewardError, match="the reward mine gave nan"):
        select(Reward(name="mine"), raw)
    model = dataclasses.replace(Reward(name="mine", model=even_tokens), host=None)
    spec = SimpleNamespace(reward=model, oversample=2, texts=None)
    samples = SimpleNamespace(
        tokens_BC=np.ones((8, 1)), samples_per_prompt=2, ordinal_B=np.arange(8) // 2
    )
    with pytest.raises(RewardError, match="the reward mine gave nan"):
        selection.select(spec, samples, jnp.array(raw))
