"""Bounded mode under seeded delays: the bound holds, nothing is dropped or trained twice, and its
version schedule repeats the run.
"""

import itertools
import time

import pytest

from rlhf_jax.clock import Clock
from rlhf_jax.runtime import asynchronous, synchronous
from rlhf_jax.runtime.sampler import version_range

from .rounds import NUM_ROUNDS, host, program_of, same
from .schedules import FakeProgram, finish, jitter

ROUNDS = 12
SCHEDULES = 200
DEADLINE = 20.0


def clock_of(seed: int) -> Clock:
    """One of the shapes of a clock, by turns."""
    lag, num_minibatches, num_epochs = list(itertools.product(range(5), (1, 2), (1, 2)))[seed % 20]
    return Clock(ROUNDS, num_minibatches, num_epochs, lag, bounded=True)


@pytest.mark.parametrize("block", range(10))
def test_random_schedules_stay_in_the_bound_and_can_be_replayed(block):
    for seed in range(block * SCHEDULES // 10, (block + 1) * SCHEDULES // 10):
        clock = clock_of(seed)
        program = FakeProgram(clock, jitter(seed))
        versions, ages, announced, states = finish(asynchronous, program)
        assert max(ages) <= clock.max_age
        assert announced == list(range(ROUNDS)) == sorted(index for index, _ in program.generated)
        assert len(ages) == clock.num_updates == states[0]
        version_schedule = tuple(versions[r] for r in range(ROUNDS))
        replayed = Clock(
            ROUNDS, clock.num_minibatches, clock.num_epochs, version_schedule=version_schedule
        )
        for loop in (synchronous, asynchronous):
            assert finish(loop, FakeProgram(replayed))[3] == states, f"seed {seed}"


def test_both_ends_of_the_bound_are_reached():
    """A trainer that lets the sampler run ahead trains on the oldest samples allowed; one that
    waits, on fresh ones.
    """
    clock = Clock(ROUNDS, lag=3, bounded=True)
    ahead, behind = FakeProgram(clock), FakeProgram(clock)

    def until_the_sampler_is_ahead(call, round_index):
        limit = time.monotonic() + DEADLINE
        while (
            call == "update"
            and len(ahead.generated) < min(round_index + 4, ROUNDS)
            and time.monotonic() < limit
        ):
            time.sleep(0.0001)
        return 0.0

    def until_the_trainer_waits(call, round_index):
        limit = time.monotonic() + DEADLINE
        while (
            call == "generate" and max(behind.published) < round_index and time.monotonic() < limit
        ):
            time.sleep(0.0001)
        return 0.0

    ahead.delay, behind.delay = until_the_sampler_is_ahead, until_the_trainer_waits
    assert finish(asynchronous, ahead)[1] == [0, 1, 2, *[3] * (ROUNDS - 3)]
    assert (
        max(finish(asynchronous, behind)[1]) <= 1
    )  # a round is begun when the one before it has just been handed over


@pytest.mark.parametrize(("version", "accepted"), [(1, "2 to 4"), (5, "2 to 4")])
def test_a_round_outside_of_the_bound_is_refused(version, accepted):
    with pytest.raises(
        RuntimeError,
        match=f"round 4 was sampled with version {version}; the clock gives it {accepted}",
    ):
        Clock(ROUNDS, lag=2, bounded=True).check_version(4, version, version)


def test_an_exact_clock_refuses_any_other_version():
    clock = Clock(ROUNDS, lag=2)
    clock.check_version(4, 2, 2)
    with pytest.raises(
        RuntimeError, match="round 4 was sampled with version 3; the clock gives it 2"
    ):
        clock.check_version(4, 3, 3)


@pytest.mark.parametrize(
    ("bounded", "oldest", "newest", "accepted"),
    [(True, 1, 3, "2 to 4"), (True, 3, 5, "2 to 4"), (False, 1, 2, "2"), (False, 2, 3, "2")],
)
def test_every_token_of_a_round_is_within_the_bound(bounded, oldest, newest, accepted):
    clock = Clock(ROUNDS, lag=2, bounded=bounded)
    Clock(ROUNDS, lag=2, bounded=True).check_version(4, 2, 4)
    with pytest.raises(
        RuntimeError,
        match=f"with versions {oldest} to {newest}; the clock gives it {accepted}$",
    ):
        clock.check_version(4, oldest, newest)


def test_what_a_bounded_clock_cannot_say():
    with pytest.raises(ValueError, match="replayed, not bounded"):
        Clock(2, version_schedule=(0, 0), bounded=True)
    with pytest.raises(ValueError, match="known when it is sampled"):
        finish(synchronous, FakeProgram(Clock(2, bounded=True)))


def test_a_run_goes_on_with_the_rounds_that_were_there():
    """From a checkpoint at round 4 with rounds 4 and 5 sampled: both are trained on, once, and only
    the others are sampled.
    """
    clock = Clock(ROUNDS, lag=2, bounded=True)
    whole = FakeProgram(clock, jitter(3))
    events, kept, states = asynchronous.run(whole, (0, 1), 0, {}), {}, None
    for event in events:
        if isinstance(event, synchronous.Sampled):
            kept[event.round_index] = event.samples
        if isinstance(event, synchronous.RoundEnd) and event.round_index == 3:
            states = event.states
            break
    events.close()
    pending = {r: samples for r, samples in kept.items() if r >= 4 and samples.version <= 4}
    program = FakeProgram(clock, jitter(4))
    program.published = {version: whole.published[version] for version in range(4)}
    versions, ages, announced, _ = finish(asynchronous, program, 4, states, pending)
    assert sorted(versions) == list(range(4, ROUNDS))
    assert sorted([*pending, *(index for index, _ in program.generated)]) == list(range(4, ROUNDS))
    assert announced == [r for r in range(4, ROUNDS) if r not in pending]
    assert max(ages) <= clock.max_age


def test_real_params_are_repeated_by_the_trace():
    """The tiny model, bounded, with a sampler that dawdles now and then; then its version_schedule,
    in the synchronous loop.
    """
    clock = Clock(NUM_ROUNDS, 2, 1, lag=2, bounded=True)
    program, delay, versions, params = program_of(clock), jitter(11, 0.05), {}, None
    generate = program.generate

    def late(of_params, round_index, version):
        time.sleep(delay("generate", round_index))
        return generate(of_params, round_index, version)

    program.generate = late
    for event in asynchronous.run(program, program.init(program.reference_params), 0, {}):
        if isinstance(event, synchronous.Scored):
            versions[event.round_index] = version_range(event.samples)[0]
        if isinstance(event, synchronous.RoundEnd):
            params = host(event.states["policy"].params)
    replayed = program_of(
        Clock(NUM_ROUNDS, 2, 1, version_schedule=tuple(versions[r] for r in range(NUM_ROUNDS)))
    )
    ends = list(synchronous.run(replayed, replayed.init(replayed.reference_params), 0, {}))
    last = [host(e.states["policy"].params) for e in ends[-1:]]
    assert same(last[0], params)
