"""A sampler that is renewed every so many rounds, stages and a buffer: in threads, resumed, and with a
real program, bit for bit.
"""

import dataclasses

import jax
import optax
import pytest
import tiny

from rlhf_jax.algorithms import grpo
from rlhf_jax.clock import Clock, choice
from rlhf_jax.devices import sharding
from rlhf_jax.ops.corrections import Correction
from rlhf_jax.runtime import asynchronous, synchronous
from rlhf_jax.runtime.program import Program

from .rounds import NUM_ROUNDS, PROMPTS, host, make_program, program_of, same
from .schedules import FakeProgram, finish, jitter
from .test_asynchronous import collect

SCHEDULES = 12
ROUNDS = 12
CLOCKS = {
    "semi-online": Clock(ROUNDS, 2, 1, sync_every=4),
    "semi-online behind": Clock(ROUNDS, 1, 2, lag=2, sync_every=3),
    "offline": Clock(ROUNDS, 1, 1, sync_every=50),
    "staged": Clock(ROUNDS, 2, 2, sync_every=3, staged="in_order"),
    "shuffled": Clock(ROUNDS, 2, 2, sync_every=4, staged="shuffled"),
    "buffer": Clock(ROUNDS, 2, 2, buffer_rounds=3),
    "buffer behind": Clock(ROUNDS, 3, 1, lag=2, buffer_rounds=4, buffer_draw="permutation"),
    "buffer, semi-online": Clock(ROUNDS, 2, 1, lag=1, sync_every=2, buffer_rounds=5),
}


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_threads_end_as_the_synchronous_loop_under_any_delays(clock):
    """12 schedules of delays of a clock: each version, age and choice of groups is the same."""
    versions, ages, announced, states = finish(synchronous, FakeProgram(clock))
    assert max(ages) <= clock.max_age
    assert announced == list(range(ROUNDS))
    assert len(ages) == clock.num_updates == states[0]
    for seed in range(SCHEDULES):
        program = FakeProgram(clock, jitter(seed, 0.0008))
        found = finish(asynchronous, program)
        assert (found[0], found[1], found[3]) == (versions, ages, states), f"seed {seed}"
        assert sorted(found[2]) == announced
        assert [version for _, version in program.generated] == sorted(
            clock.version(r) for r in range(ROUNDS)
        )


def test_a_stage_is_sampled_before_it_is_trained_on():
    """In threads too, however slow sampling is: the first update of a stage follows its last round."""
    clock = CLOCKS["staged"]
    seen, program = [], FakeProgram(clock, jitter(3))
    generate, update = program.generate, program.update
    program.generate = lambda *given: (generate(*given), seen.append(("sampled", given[1])))[0]
    program.update = lambda states, batch: (
        seen.append(("trained", batch.samples.round_index)) or update(states, batch)
    )
    finish(asynchronous, program)
    order = list(dict.fromkeys(seen))
    for stage in range(0, ROUNDS, 3):
        rounds = range(stage, stage + 3)
        expected = [("sampled", r) for r in rounds] + [("trained", r) for r in rounds]
        assert order[2 * stage : 2 * stage + 6] == expected


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_three_kills_change_nothing(clock):
    """From the states at the end of a round and the samples that a checkpoint there holds, and no
    others, either loop ends as the run that was never stopped.
    """
    whole, samples, states = FakeProgram(clock), {}, {}
    for event in synchronous.run(whole, (0, 1), 0, {}):
        if isinstance(event, synchronous.Sampled):
            samples[event.round_index] = event.samples
        if isinstance(event, synchronous.RoundEnd):
            states[event.round_index + 1] = event.states
    for begin in (1, 4, 7):
        for loop in (synchronous, asynchronous):
            resumed = FakeProgram(clock)
            pending = {r: samples[r] for r in clock.issued_before(begin)}
            assert finish(loop, resumed, begin, states[begin], pending)[3] == states[ROUNDS]
            again = {r for r, _ in resumed.generated}
            assert not again & pending.keys()
            assert again | pending.keys() == set(range(clock.window(begin).start, ROUNDS))


def test_clocks_are_told_apart():
    """Were all to train on the same, the comparisons above would say nothing."""
    of_shape = [
        Clock(ROUNDS, 2, 2, **fields)
        for fields in (
            {},
            {"lag": 1},
            {"sync_every": 3},
            {"sync_every": 3, "staged": "shuffled"},
            {"buffer_rounds": 1},
            {"buffer_rounds": 3},
            {"buffer_rounds": 3, "buffer_draw": "permutation"},
        )
    ]
    ends = [finish(synchronous, FakeProgram(clock))[3] for clock in of_shape]
    assert len(set(ends)) == len(ends)
    staged = Clock(ROUNDS, 2, 2, sync_every=3, staged="in_order")
    assert finish(synchronous, FakeProgram(staged))[3] == ends[2], (
        "an order of work, not of numbers"
    )


REAL = {
    "semi-online": Clock(NUM_ROUNDS, 2, 1, lag=1, sync_every=2),
    "shuffled": Clock(4, 2, 2, sync_every=2, staged="shuffled"),
    "buffer": Clock(NUM_ROUNDS, 2, 2, lag=1, buffer_rounds=3),
}


@pytest.fixture(scope="module")
def program() -> Program:
    """GRPO with a proximal policy on one device; its sampler is the shared program's."""
    shared = make_program()
    correction = Correction(ratio_to="proximal", correction="truncate")
    algorithm = grpo.grpo(grpo.Config(correction=correction))
    spec = dataclasses.replace(shared.spec, algorithm=algorithm, optimizer=optax.sgd(0.1))
    made = Program(spec, shared.reference_params)
    made.sampler = shared.sampler
    return made


@pytest.mark.parametrize("clock", REAL.values(), ids=REAL)
def test_threads_give_the_synchronous_numbers_of_a_real_program(program, clock):
    assert same(collect(asynchronous, clock, of=program), collect(synchronous, clock, of=program))


@pytest.mark.parametrize("lag", [0, 2])
def test_a_buffer_of_one_round_in_order_is_the_clock_without_one(program, lag):
    """Bit for bit, with minibatches, epochs and a lag."""
    clock = Clock(NUM_ROUNDS, 2, 2, lag)
    buffered = dataclasses.replace(clock, buffer_rounds=1, buffer_draw="in_order")
    assert buffered.composes
    assert same(collect(synchronous, buffered, of=program), collect(synchronous, clock, of=program))


def test_composed_rounds_have_rows_of_several_versions_and_a_new_proximal_policy(program):
    """The groups are those of the choice. Each is that of its sampled round to the bit, with its version and behavior
    log-probabilities; its proximal log-probabilities are those of the params at each use.
    """
    clock = Clock(NUM_ROUNDS, buffer_rounds=3)
    running = program_of(clock, program)
    sampled, uses, mixed = {}, {}, 0
    for event in synchronous.run(running, running.init(running.reference_params), 0, {}):
        if isinstance(event, synchronous.Sampled):
            sampled[event.round_index] = host(event.samples)
        if not isinstance(event, synchronous.Scored):
            continue
        r, samples, scores = event.round_index, host(event.samples), host(event.scores)
        groups = choice.chosen(clock, PROMPTS, running.spec.key, r)
        assert samples.ordinal_B[::2].tolist() == (clock.window(r)[0] * PROMPTS + groups).tolist()
        versions = set()
        for first in range(0, 2 * PROMPTS, 2):
            rows, ordinal = slice(first, first + 2), int(samples.ordinal_B[first])
            source, group = divmod(ordinal, PROMPTS)
            assert source in clock.window(r)
            own = slice(2 * group, 2 * group + 2)
            take, given = (lambda x, s=rows: x[s] if x.ndim else x), sampled[source]
            whole = jax.tree.map(lambda x, s=own: x[s] if x.ndim else x, given)
            assert same(jax.tree.map(take, samples), whole)
            assert set(samples.version_BC[rows][samples.mask_BC[rows]]) == {clock.version(source)}
            versions.add(source)
            uses.setdefault(ordinal, {})[r] = scores.proximal_logprob_BC[rows].tobytes()
        mixed += len(versions) > 1
    assert mixed >= 3
    again = [by_round for by_round in uses.values() if len(by_round) > 1]
    assert again
    assert all(len(set(by_round.values())) == len(by_round) for by_round in again)


def test_groups_are_gathered_over_a_mesh_as_on_one_device(program):
    """The choice does not depend on how rows are sharded, and the rows stay sharded."""
    clock = Clock(NUM_ROUNDS, buffer_rounds=2)
    alone = program_of(clock, program)
    params = alone.publish(alone.init(alone.reference_params))
    rounds = [alone.generate(params, r, 0) for r in range(2)]
    spec = dataclasses.replace(alone.spec, mesh=tiny.make_mesh((2, 2, 1)))
    over = Program(spec, host(alone.reference_params))
    layout = sharding.row_shardings(rounds[0], over.trainer_mesh)
    gathered, _ = over.compose([jax.device_put(each, layout) for each in rounds], 1)
    assert gathered.tokens_BC.sharding.is_equivalent_to(layout.tokens_BC, 2)
    assert same(gathered, alone.compose(rounds, 1)[0])
    assert not same(gathered, rounds[1])
