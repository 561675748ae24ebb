"""The clock against a simulation that counts, hand-written traces, and what is issued when."""

import dataclasses
import itertools
import random

import pytest

from rlhf_jax.clock import Clock

CLOCKS = list(itertools.product(range(5), (1, 2), (1, 2)))  # lag, minibatches, epochs


def simulate(num_rounds: int, lag: int, num_minibatches: int, num_epochs: int):
    """Counts updates one by one: the version of each round, and the age of its samples in each of
    its updates.
    """
    published = []  # version after each round
    version, versions, ages = 0, [], []
    for round_index in range(num_rounds):
        published.append(version)
        sampled_with = published[round_index - lag] if round_index >= lag else published[0]
        versions.append(sampled_with)
        ages.append([])
        for _epoch in range(num_epochs):
            for _minibatch in range(num_minibatches):
                ages[-1].append(version - sampled_with)
                version += 1
    return versions, ages


@pytest.mark.parametrize(("lag", "num_minibatches", "num_epochs"), CLOCKS)
def test_versions_and_ages_are_counted(lag, num_minibatches, num_epochs):
    clock = Clock(7, num_minibatches, num_epochs, lag)
    versions, ages = simulate(7, lag, num_minibatches, num_epochs)
    assert [clock.version(r) for r in range(7)] == versions
    assert [[clock.age(r, j) for j in range(clock.updates_per_round)] for r in range(7)] == ages
    assert clock.num_updates == sum(map(len, ages))


def test_the_example_of_the_design():
    """Lag 1, two updates a round: round 0 has version 0 and ages 0, 1; round 1 version 0, ages 2,
    3; round 2 version 2.
    """
    clock = Clock(3, 2, 1, lag=1)
    assert [clock.version(r) for r in range(3)] == [0, 0, 2]
    assert [[clock.age(r, j) for j in range(2)] for r in range(3)] == [[0, 1], [2, 3], [2, 3]]


@pytest.mark.parametrize(("lag", "num_minibatches", "num_epochs"), CLOCKS)
def test_every_round_is_issued_once_and_soon_enough(lag, num_minibatches, num_epochs):
    check_issues(Clock(7, num_minibatches, num_epochs, lag), lag + 1)


@pytest.mark.parametrize(
    "version_schedule", [(0, 0, 0, 0, 0, 0, 0), (0, 2, 0, 6, 2, 10, 4), (0, 2, 4, 6, 8, 10, 12)]
)
def test_version_schedule_are_issued_once_and_soon_enough(version_schedule):
    check_issues(Clock(7, 2, 1, version_schedule=version_schedule), 7)


def check_issues(clock: Clock, most: int) -> None:
    issued: list[int] = []
    for round_index in range(clock.num_rounds):
        assert sorted(clock.issued_before(round_index)) == sorted(
            r for r in issued if r >= round_index
        )
        issued += clock.issued_at(round_index)
        assert round_index in issued, "a round is sampled before it is trained"
        assert sum(r >= round_index for r in issued) <= most
    assert sorted(issued) == list(range(clock.num_rounds))


def test_a_version_schedule_is_what_it_spells():
    version_schedule = (0, 2, 0, 4)
    clock = Clock(4, 1, 2, version_schedule=version_schedule)
    assert tuple(clock.version(r) for r in range(4)) == version_schedule
    assert [clock.age(r, 0) for r in range(4)] == [0, 0, 4, 2]


@pytest.mark.parametrize(
    ("version_schedule", "message"),
    [
        ((0, 2), "has 2 versions, but the run has 3 rounds"),
        ((0, 1, 2), "round 1 version 1; accepted: multiples of 2"),
        ((0, 4, 4), "round 1 version 4; .* from 0 to 2"),
        ((0, -2, 0), "round 1 version -2"),
        ((2, 2, 2), "round 0 version 2; .* from 0 to 0"),
    ],
)
def test_a_version_schedule_that_cannot_be_is_refused(version_schedule, message):
    with pytest.raises(ValueError, match=message):
        Clock(3, 2, 1, version_schedule=version_schedule)


@pytest.mark.parametrize(
    ("field", "value"), [("num_rounds", 0), ("num_minibatches", 0), ("num_epochs", 0), ("lag", -1)]
)
def test_numbers_that_cannot_be_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}; accepted"):
        Clock(**{"num_rounds": 3, field: value})


@pytest.mark.parametrize(
    ("clock", "asynchronous", "expected"),
    [
        (Clock(9, lag=0), True, 1),
        (Clock(9, lag=3), True, 4),
        (Clock(2, lag=3), True, 2),
        (Clock(9, lag=3), False, 1),
        (
            Clock(4, 2, version_schedule=(0, 0, 0, 6)),
            True,
            3,
        ),  # round 2 is sampled with version 0, two rounds before
        (Clock(9, lag=2, bounded=True), True, 3),
    ],
)
def test_live_versions(clock, asynchronous, expected):
    assert clock.live_versions(asynchronous) == expected


@pytest.mark.parametrize(
    ("clock", "asynchronous", "expected"),
    [
        (Clock(9, lag=0), True, 0),
        (Clock(9, lag=1), True, 1),
        (Clock(9, lag=3), True, 3),
        (Clock(2, lag=3), True, 2),
        (Clock(9, lag=3), False, 0),
        (Clock(8, lag=1, sync_every=4), True, 1),
        (Clock(8, lag=4, sync_every=4), True, 2),
        (Clock(8, lag=0, sync_every=4), True, 1),  # it samples the next rounds too
        (Clock(8, lag=0, sync_every=4), False, 0),
        # not known: the sampler may still draw with an older version than the clock's least one
        (Clock(9, lag=2, bounded=True), True, 3),
        (Clock(4, 2, version_schedule=(0, 0, 0, 6)), True, 3),
    ],
)
def test_versions_in_training(clock, asynchronous, expected):
    assert clock.versions_in_training(asynchronous) == expected


@pytest.mark.parametrize(
    ("clock", "expected"),
    [
        (Clock(9), 1),
        (Clock(9, lag=3), 4),
        (Clock(2, lag=3), 2),
        (Clock(9, 2, buffer_rounds=4), 4),
        (Clock(9, lag=2, buffer_rounds=4), 6),  # before round 3: 0 to 3, and 4 and 5 ahead
        (Clock(9, sync_every=3, staged="in_order"), 3),
        (Clock(9, sync_every=3, buffer_rounds=2), 4),  # before round 3: 2 to 5
        (Clock(4, 2, version_schedule=(0, 0, 0, 6)), 3),
        (Clock(9, lag=2, bounded=True), 3),
        (Clock(9, lag=2, inflight=True), 1),
        (Clock(9, lag=2, pinned=True), 1),
    ],
)
def test_held_rounds(clock, expected):
    assert clock.held_rounds == expected
    if not (clock.bounded or clock.streams):
        held, most = set(), 0
        for r in range(clock.num_rounds):  # as the synchronous loop holds them
            held = {q for q in held if q >= clock.window(r).start} | set(clock.issued_at(r))
            most = max(most, len(held))
        assert most == expected


def random_clocks(count: int):
    """Clocks of any shape, from a seed."""
    draw = random.Random(19)
    for _ in range(count):
        num_rounds, lag = draw.randint(1, 24), draw.choice((0, 0, 1, 2, 5))
        sizes = draw.randint(1, 3), draw.randint(1, 2)
        yield Clock(num_rounds, *sizes, lag, sync_every=draw.choice((1, 2, 3, 4, 7, 30)))


def test_the_examples_of_a_sampler_that_is_renewed_every_so_many_rounds():
    """s 4: versions 0 0 0 0 4 4 4 4 8, ages 0 1 2 3 0 ...; with lag 4 version 0 eight times, and
    ages 4 to 7 for ever; s 3 with two updates a round: 0 0 0 6 6 6 12.
    """
    clock = Clock(9, sync_every=4)
    assert [clock.version(r) for r in range(9)] == [0, 0, 0, 0, 4, 4, 4, 4, 8]
    assert [clock.age(r, 0) for r in range(9)] == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    behind = Clock(16, lag=4, sync_every=4)
    assert [behind.version(r) for r in range(13)] == [0] * 8 + [4] * 4 + [8]
    assert [behind.age(r, 0) for r in range(16)] == [*range(8), *range(4, 8), *range(4, 8)]
    assert behind.max_age == 7
    assert [Clock(7, 2, sync_every=3).version(r) for r in range(7)] == [0, 0, 0, 6, 6, 6, 12]


def test_random_clocks_of_a_sampler_that_is_renewed_every_so_many_rounds():
    """Versions are those of a loop that copies the trainer's params into a queue; ages have the
    bound and the mean of the formulas; s 1 is the exact clock, s of all rounds offline.
    """
    for clock in random_clocks(200):
        u, every, rounds = clock.updates_per_round, clock.sync_every, range(clock.num_rounds)
        taken, versions = 0, []
        for r in rounds:
            behind = r - clock.lag
            if behind > 0 and behind % every == 0:
                taken = behind * u
            versions.append(taken)
        assert [clock.version(r) for r in rounds] == versions
        ages = [[clock.age(r, j) for j in range(u)] for r in rounds]
        assert max(map(max, ages)) == min(clock.max_age, clock.num_updates - 1)
        assert clock.max_age <= u * (every + clock.lag) - 1
        settled = [clock.age(r, 0) for r in rounds[clock.lag :]]
        whole = settled[: len(settled) // every * every]
        if whole:
            assert sum(whole) / len(whole) == u * (every - 1) / 2 + u * clock.lag
        plain = dataclasses.replace(clock, sync_every=1)
        if every == 1:
            assert versions == [u * max(0, r - clock.lag) for r in rounds]
        if every >= clock.num_rounds:
            assert set(versions) == {0}
        check_issues(clock, clock.lag + every)
        assert clock.live_versions(asynchronous=True) <= plain.live_versions(asynchronous=True)
        used = sorted(set(versions))
        for r in rounds:  # a sampler of round r beside a trainer that has published all it may
            held = [version for version in used if clock.version(r) <= version <= r * u]
            assert len(held) <= clock.live_versions(asynchronous=True)
            if r + 1 < clock.num_rounds:  # all rounds up to r are there: a sampler of round r + 1
                held = [v for v in used if clock.version(r + 1) <= v <= r * u]
                assert len(held) <= clock.versions_in_training(asynchronous=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sync_every": 0}, "sync_every is 0; accepted: 1 or more"),
        ({"bounded": True}, "sync_every is 2 beside clock=bounded"),
        ({"inflight": True}, "sync_every is 2 beside weights=inflight"),
        ({"version_schedule": (0, 0, 2, 2)}, "sync_every is 2 beside version_schedule"),
    ],
)
def test_what_a_renewed_sampler_does_not_go_with_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Clock(4, **{"sync_every": 2} | changes)
