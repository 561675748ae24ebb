"""Pinned rows over a pool of integers: a row is drawn by the version of the exact lag, and threads,
replays and kills give the numbers of the simulated loop.
"""

import dataclasses
import itertools
import random

import numpy as np
import pytest

from rlhf_jax.clock import Clock, Stream
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime.inflight.held import Held

from . import streams
from .streams import NUM_ROUNDS, Trained, finish, make_stream
from .test_inflight import SIZES, SPEEDS, Disk, run_until, same, stopped

LAGS, TAUS = (0, 1, 2, 4), (0, 1, 6)
KILLS = 24


def drawn(row: int, params: int) -> list[int]:
    """The tokens of a row that one version draws."""
    tokens, cache = [], streams.mixed(params, row // streams.SAMPLES)
    while len(tokens) < streams.C and streams.EOS not in tokens:
        tokens.append(streams.token_of(params, row, cache))
        cache = streams.after(cache, params, tokens[-1])
    return tokens


def check_exact_lag(trained: Trained, clock: Clock) -> None:
    """Each row is that of the version `Clock.version` of its round, as in a static batch."""
    params = {0: 1} | {r + 1: states[1] for r, states in trained.states.items()}
    for round_index, samples in trained.samples.items():
        version = clock.updates_per_round * max(0, round_index - clock.lag)
        assert set(samples.version_BC[samples.mask_BC]) == {version}
        for index in range(streams.B):
            expected = drawn(
                round_index * streams.B + index, params[version // clock.updates_per_round]
            )
            assert samples.tokens_BC[index][samples.mask_BC[index]].tolist() == expected


def versions_side_by_side(stream: Stream) -> int:
    """The most versions that a segment of a run draws with."""
    (sampler,), most = streams.make_sampler(stream).slices, 0
    admit = sampler.stream.admit
    boundaries = []

    class Noting:
        def __getattr__(self, name):
            return getattr(stream, name)

        def admit(self, state, rounds_trained):
            boundary, state = admit(state, rounds_trained)
            boundaries.append(boundary)
            return boundary, state

    sampler.stream = Noting()  # type: ignore[assignment]
    while not sampler.is_drained:
        trained = stream.rounds_trained(sampler.state)
        for version in sampler.due(trained):
            sampler.take(version + 1, version)  # type: ignore[arg-type]
        sampler.draw(None, trained)
    for boundary in boundaries:
        rows = zip(boundary.row_of_slot, boundary.version_of_slot, strict=True)
        most = max(most, len({version for row, version in rows if row >= 0}))
    return most


@pytest.mark.parametrize("lag", LAGS)
def test_threaded_is_simulated_is_replayed_at_the_exact_lag(lag):
    settings = itertools.product(TAUS, SIZES)
    for index, (tau, (slots, steps)) in enumerate(settings):
        stream = make_stream(lag, tau, 0, slots, steps, updates=1 + index % 2, pinned=True)
        simulated = finish(stream)
        assert sorted(simulated.sampled) == list(range(NUM_ROUNDS))
        check_exact_lag(simulated, stream.clock)
        assert max(simulated.ages) == stream.clock.max_age
        assert same(finish(stream, threaded=True, **SPEEDS[index % 3]), simulated)
        replay = dataclasses.replace(stream, tau=3, trained_boundaries=simulated.recorded)
        assert same(finish(replay), simulated)


def test_segments_draw_with_up_to_lag_and_one_versions():
    """At lag 0 and before round lag + 1 there is one; rows of later rounds meet earlier ones."""
    assert versions_side_by_side(make_stream(0, slots=4, pinned=True)) == 1
    assert versions_side_by_side(make_stream(1, slots=6, steps=1, pinned=True)) == 2
    assert versions_side_by_side(make_stream(2, slots=11, steps=1, pinned=True)) >= 2


def test_lag_zero_is_the_inflight_loop_at_lag_zero():
    """Both are the synchronous loop: every number is the same."""
    for tau, (slots, steps) in itertools.product((0, 6), SIZES):
        settings = (0, tau, 0, slots, steps, 2)
        assert same(finish(make_stream(*settings, pinned=True)), finish(make_stream(*settings)))


@pytest.mark.parametrize("mode", ["exact", "replay"])
def test_a_run_that_is_killed_and_goes_on_is_one_that_was_not(mode):
    resumed = several = 0
    for kill in range(KILLS):
        rng = random.Random(f"{mode} {kill}")
        sizes, lag = rng.choice([*SIZES, (11, 12)]), rng.choice(LAGS)
        stream = make_stream(lag, rng.choice(TAUS), 0, *sizes, updates=1 + kill % 2, pinned=True)
        whole = finish(stream)
        if mode == "replay":
            stream = dataclasses.replace(stream, trained_boundaries=whole.recorded)
        disk, trained, threaded = Disk(rng.choice((1, 2))), Trained(), bool(kill % 2)
        per_round = 3 + stream.clock.updates_per_round
        run_until(stream, disk, rng.randint(1, NUM_ROUNDS * per_round), trained, threaded)
        start = disk.newest()
        several += start is not None and len(start[2].slices[0].versions) > 1
        resumed += run_until(stream, disk, 0, trained, not threaded) > 0
        assert same(trained, whole), f"kill {kill}"
    assert resumed > KILLS / 3
    assert several > KILLS / 5, "few checkpoints hold versions beside each other"


@pytest.mark.parametrize("threaded", [False, True])
def test_a_run_that_is_asked_to_stop_saves_its_versions_and_goes_on(threaded):
    for stop_after, tau in itertools.product((1, 3, NUM_ROUNDS), (0, 6)):
        stream = make_stream(2, tau, slots=6, steps=3, pinned=True)
        disk = Disk(99)
        trained = stopped(stream, threaded, stop_after, disk)
        run_until(stream, disk, 0, trained, threaded)
        assert same(trained, finish(stream))


def test_a_version_is_needed_where_time_passes_it():
    """One slot, rounds of one row, lag 1 and a long segment: T goes from 0 to 2 at one boundary in
    some run, and rows of the version between are drawn after it.
    """
    stream = make_stream(1, 0, 0, slots=8, steps=12, pinned=True)
    state = dataclasses.replace(stream.begin(), next_row=8, trained_at=(12, 12), boundary=1)
    trained = stream.rounds_trained(state)
    boundary, _ = stream.admit(state, trained)
    assert trained == 2
    assert boundary.version == 2
    assert sorted(set(boundary.version_of_slot)) == [1, 2]


def test_versions_are_held_by_place_and_taken_in_order():
    held = Held(3, None)  # type: ignore[arg-type]
    held.take({"a": np.float32(0)}, 0)
    assert held.params.params == ({"a": 0},) * 3
    for version in range(1, 5):
        held.take({"a": np.float32(version)}, version)
    assert [held.params.params[held.place(version)]["a"] for version in (2, 3, 4)] == [2, 3, 4]  # type: ignore[call-overload]
    for version in (1, 5):
        with pytest.raises(RuntimeError, match=f"version {version} .* is not held"):
            held.place(version)
    with pytest.raises(RuntimeError, match="version 6 follows version 4"):
        held.take({}, 6)
    other = Held(2, None)  # type: ignore[arg-type]
    with pytest.raises(Refusal, match=r"has 3 versions .* with 2 side by side"):
        other.restore(held.saved())


def test_rows_of_other_rounds_are_an_error():
    stream = make_stream(1, slots=3, pinned=True)
    _, state = stream.admit(stream.begin(), 0)
    late = dataclasses.replace(state, trained_at=(0,))
    with pytest.raises(RuntimeError, match="round 0 is drawn where 1 rounds are trained"):
        stream.admit(late, 1)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"bounded": True}, "weights=pinned beside clock=bounded"),
        ({"version_schedule": (0, 0)}, "weights=pinned beside version_schedule"),
        ({"inflight": True}, "weights=pinned beside weights=inflight"),
        ({"sync_every": 2}, "sync_every is 2 beside weights=pinned"),
        ({"buffer_rounds": 1}, "buffer_rounds is 1 beside weights=pinned"),
    ],
)
def test_other_clocks_are_refused_by_name(changes, named):
    with pytest.raises(Refusal, match=named):
        Clock(2, pinned=True, **changes)


def test_the_clock_of_pinned_rows():
    clock = Clock(9, 2, 1, lag=2, pinned=True)
    clock.check_version(4, 4, 4)
    with pytest.raises(RuntimeError, match="the clock gives it 4"):
        clock.check_version(4, 4, 6)
    assert (clock.live_versions(True), clock.live_versions(False)) == (6, 4)
    assert clock.issued_before(4) == []
    with pytest.raises(Refusal, match="Stream"):
        clock.issued_at(0)
    with pytest.raises(Refusal, match="rebuild_every is 2 for pinned rows"):
        make_stream(rebuild_every=2, pinned=True)
