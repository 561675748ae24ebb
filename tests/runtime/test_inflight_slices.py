"""The in-flight loops over several slices, on pools of integers: threads with uneven speeds =
simulated = replayed, stops and kills.
"""

import dataclasses
import io
import itertools
import random

import numpy as np
import pytest

from rlhf_jax.clock import Slices, StreamState
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime import asynchronous
from rlhf_jax.runtime.inflight.cuts import Cut, Saving

from . import streams
from .streams import NUM_ROUNDS, SAMPLES, Trained, finish
from .test_inflight import KILLS, LAGS, REBUILDS, Disk, run_until, same, stopped

PROMPTS = 6  # of a round: 1, 2 and 3 slices have as many each
SLICES, TAUS = (1, 2, 3), (0, 1, 6)
SIZES = ((12, 1), (12, 2), (18, 1))  # slots of all slices, segment steps


def make_stream(num_slices=2, lag=1, tau=0, rebuild=0, slots=12, steps=2, updates=1, pinned=False):
    """As `streams.make_stream`, of rounds of `PROMPTS` prompts and slots that the slices share."""
    sizes = slots // num_slices, steps, updates
    stream = streams.make_stream(lag, tau, rebuild, *sizes, pinned)
    rows = PROMPTS * SAMPLES // num_slices
    return dataclasses.replace(stream, rows_per_round=rows, num_slices=num_slices)


def uneven(seed: int, num_slices: int) -> dict:
    """Seconds that each slice and the trainer take: one of the slices is slow, another one in
    another run.
    """
    slow = [0.0006 if index == seed % num_slices else 0.0 for index in range(num_slices)]
    trainer = (0.0, 0.003)[seed % 2]
    return {
        "sampler_delay": [lambda seconds=seconds: seconds for seconds in slow],
        "trainer_delay": lambda: trainer,
    }


@pytest.mark.parametrize("num_slices", SLICES)
@pytest.mark.parametrize("lag", LAGS)
def test_threaded_is_simulated_is_replayed(num_slices, lag):
    """Each tau with each cadence of rebuilds, at several sizes of the slots and several speeds."""
    shares = []
    for index, (tau, rebuild) in enumerate(itertools.product(TAUS, REBUILDS)):
        sizes = SIZES[(index + index // 3) % 3]
        stream = make_stream(num_slices, lag, tau, rebuild, *sizes, 1 + index % 2)
        simulated = check_threads_and_replay(stream, index)
        shares.append(simulated.mixed_rows)
    assert lag == 0 or np.mean(shares) >= 0.3
    assert lag or not any(shares)


def check_threads_and_replay(stream, seed: int) -> Trained:
    """Threads of uneven speeds and replays give every number of the simulated loop, which it
    returns.
    """
    simulated, num_slices = finish(stream), stream.num_slices
    assert sorted(simulated.sampled) == list(range(NUM_ROUNDS))
    assert max(simulated.ages) <= stream.clock.max_age
    assert same(finish(stream, threaded=True, **uneven(seed, num_slices)), simulated)
    replay = dataclasses.replace(stream, tau=3, trained_boundaries=simulated.recorded)
    assert same(finish(replay), simulated)
    assert same(finish(replay, threaded=True, **uneven(seed + 1, num_slices)), simulated)
    return simulated


@pytest.mark.parametrize("lag", LAGS)
def test_slices_that_wait_for_long_training_go_on_together(lag):
    """Training takes longer than the longest row: at small lags every slice is idle for a time."""
    for seed, num_slices in enumerate(SLICES):
        check_threads_and_replay(make_stream(num_slices, lag, tau=20), seed)


def test_a_token_has_the_version_that_drew_it_and_a_prompt_its_slice():
    """Every token of a mixed row is drawn again from the params of its stamped version, for its row
    of the run.
    """
    trained = finish(make_stream(3, lag=2, tau=1, slots=12, steps=1))
    params = {0: 1} | {r + 1: states[1] for r, states in trained.states.items()}
    assert trained.mixed_rows >= 0.3
    for round_index, samples in trained.samples.items():
        for index, version_C in enumerate(samples.version_BC):
            row = round_index * PROMPTS * SAMPLES + index
            cache = streams.mixed(params[version_C[0]], row // SAMPLES)
            for position in np.flatnonzero(samples.mask_BC[index]):
                drawn_by = params[version_C[position]]
                assert samples.tokens_BC[index, position] == streams.token_of(drawn_by, row, cache)
                cache = streams.after(cache, drawn_by, int(samples.tokens_BC[index, position]))


def test_lag_zero_draws_the_same_rows_on_any_number_of_slices():
    """All of a round has one version there, so that slices change which row is drawn when, and no
    token. Log-probabilities of the pool depend on the place in the ring.
    """
    names = ("tokens_BC", "mask_BC", "version_BC", "ordinal_B", "sample_index_B")
    first = [finish(make_stream(num_slices, 0, 4)).samples[0] for num_slices in SLICES]
    for other in first[1:]:
        for name in names:
            np.testing.assert_array_equal(getattr(other, name), getattr(first[0], name))


def test_the_number_of_slices_enters_the_numbers():
    """Otherwise the battery would compare runs that cannot differ."""
    ends = {finish(make_stream(num_slices, 1, 2)).states[NUM_ROUNDS - 1] for num_slices in SLICES}
    assert len(ends) == len(SLICES)


@pytest.mark.parametrize("lag", LAGS)
def test_pinned_rows_of_slices_have_the_exact_lag(lag):
    for index, (tau, num_slices) in enumerate(itertools.product((0, 6), (2, 3))):
        stream = make_stream(num_slices, lag, tau, 0, 12, 2, 1 + index % 2, pinned=True)
        simulated = finish(stream)
        for round_index, samples in simulated.samples.items():
            versions = set(samples.version_BC[samples.mask_BC].tolist())
            assert versions == {stream.clock.version(round_index)}
        assert same(finish(stream, threaded=True, **uneven(index, num_slices)), simulated)


class Lines:
    """The schedule of a run, in the order in which it is written."""

    def __init__(self) -> None:
        self.lines: list[tuple] = []

    def note(self, boundary, ended, slice_index) -> None:
        self.lines.append((boundary.index, slice_index, boundary, ended))


def test_the_schedule_is_in_the_order_of_time_whoever_is_fast():
    stream, written = make_stream(3, 2, 6, 0, 12, 1), []
    for threaded in (False, True):
        lines = Lines()
        finish(stream, threaded, saving=Saving(note=lines.note), **uneven(1, 3))
        assert lines.lines == sorted(lines.lines, key=lambda line: line[:2])
        written.append(lines.lines)
    assert written[0] == written[1]
    rows = [row for *_, boundary, _ in written[0] for row in boundary.rows]
    assert sorted(rows) == sorted(row for *_, ended in written[0] for row in ended)
    assert sorted(rows) == list(range(NUM_ROUNDS * PROMPTS * SAMPLES))
    for _, slice_index, boundary, _ in written[0]:
        assert all(row // SAMPLES % 3 == slice_index for row in boundary.rows)


@pytest.mark.parametrize("num_slices", [2, 3])
@pytest.mark.parametrize("mode", ["exact", "replay", "pinned"])
def test_a_run_that_is_killed_and_goes_on_is_one_that_was_not(mode, num_slices):
    resumed, kills = 0, KILLS // 8
    for kill in range(kills):
        rng = random.Random(f"{mode} {num_slices} {kill}")
        rebuild = 0 if mode == "pinned" else rng.choice(REBUILDS)
        sizes = (
            rng.choice(LAGS),
            rng.choice((*TAUS, 20)),
            rebuild,
            *rng.choice(SIZES),
            1 + kill % 2,
        )
        stream = make_stream(num_slices, *sizes, pinned=mode == "pinned")
        whole = finish(stream)
        if mode == "replay":
            stream = dataclasses.replace(stream, trained_boundaries=whole.recorded)
        disk, trained = Disk(rng.choice((1, 2)), num_slices), Trained()
        threaded = bool(kill % 2)
        speeds = [uneven(kill + turn, num_slices) if turn else {} for turn in (threaded, 1)]
        per_round = 3 + stream.clock.updates_per_round
        end = rng.randint(1, NUM_ROUNDS * per_round)
        run_until(stream, disk, end, trained, threaded, **speeds[0])
        resumed += run_until(stream, disk, 0, trained, not threaded, **speeds[1]) > 0
        assert same(trained, whole), f"kill {kill}"
    assert resumed > kills / 3


def test_snapshots_of_threads_are_those_of_the_simulated_loop():
    """All slices at one boundary, whatever real time it is for each."""
    for index, rebuild in enumerate(REBUILDS):
        stream, written = make_stream(3, 2, 6, rebuild, 12, 1), []
        for threaded in (False, True):
            disk = Disk(1, 3)
            finish(stream, threaded, saving=disk.saving, **uneven(index, 3))
            written.append(disk.files)
        assert sorted(written[0]) == list(range(1, NUM_ROUNDS))
        assert written[0] == written[1]


@pytest.mark.parametrize("threaded", [False, True])
def test_a_run_that_is_asked_to_stop_saves_every_slice_and_goes_on(threaded):
    for stop_after, num_slices in itertools.product((1, 3, NUM_ROUNDS), (2, 3)):
        for rebuild, tau in itertools.product((0, 1), (0, 20)):
            stream = make_stream(num_slices, 2, tau, rebuild)
            disk = Disk(99, num_slices)
            speeds = uneven(stop_after, num_slices)
            trained = stopped(stream, threaded, stop_after, disk, **speeds)
            run_until(stream, disk, 0, trained, threaded)
            assert same(trained, finish(stream))


def test_a_failure_of_one_slice_ends_all():
    calls = itertools.count()

    def fails() -> float:
        if next(calls) == 3:
            raise ValueError("slice 1 has failed")
        return 0.0

    delays = [lambda: 0.0, fails, lambda: 0.0]
    with pytest.raises(ValueError, match="slice 1 has failed"):
        finish(make_stream(3, 2, 3), threaded=True, sampler_delay=delays)
    assert not asynchronous.stopping.hung_sampler()


def test_what_is_not_defined_is_refused():
    stream = make_stream(2)
    with pytest.raises(Refusal, match="num_slices is 2 with a bounded clock"):
        dataclasses.replace(stream, clock=dataclasses.replace(stream.clock, bounded=True))
    with pytest.raises(Refusal, match="num_slices is 0; accepted: 1 or more"):
        dataclasses.replace(stream, num_slices=0)
    disk = Disk(1, 2)
    finish(stream, saving=disk.saving)
    with pytest.raises(Refusal, match=r"those of 2 slice\(s\), and this run has 3"):
        Cut.of(dict(np.load(io.BytesIO(disk.files[1]))), 3)


def test_a_schedule_of_another_run_is_refused():
    """Round 0 is not harvested by boundary 1 in any slice."""
    stream = dataclasses.replace(make_stream(2), trained_boundaries=(1, 2))
    for threaded in (False, True):
        with pytest.raises(Refusal, match="the schedule is of another run"):
            finish(stream, threaded)


def test_a_slice_waits_only_where_t_depends_on_another_one():
    """Two slices, D 2, tau 3. Slice 0 ends round 0 at boundary 1 (time 2), slice 1 is at boundary c.
    F_0 is at least max(2, 2 (c + 1)) + 3. At c = 0 it is 5 or more: T is known at boundary 2 (time
    4), not at 3 (time 6). At c = 1 it is 7: known at 3, not at 4 (time 8). Slice 1 itself knows T.
    """
    stream = make_stream(tau=3)
    clock, ends = Slices(stream), StreamState((-1,), boundary=1, ended_at=((0, 2),))
    for boundary, known in ((0, (1, 2)), (1, (1, 2, 3))):
        shared = clock.begin([ends, StreamState((0,), boundary=boundary)])
        assert clock.rounds_trained(shared, boundary) == 0
        found = [k for k in range(1, 6) if clock.rounds_trained(shared, k) is not None]
        assert tuple(found) == known
    shared = clock.heard(shared, 1, StreamState((-1,), boundary=2, ended_at=((0, 4),)))
    assert shared.trained_at == (7,)
    assert [clock.rounds_trained(shared, k) for k in (3, 4)] == [0, 1]
