"""The in-flight loops over a pool of integers: threaded = simulated = replayed, bounded schedules,
stops and kills.
"""

import dataclasses
import io
import itertools
import random
import time

import numpy as np
import pytest

from rlhf_jax.clock import Clock
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime import asynchronous, synchronous
from rlhf_jax.runtime.inflight.api import Drawn
from rlhf_jax.runtime.inflight.cuts import Cut, Saving
from rlhf_jax.runtime.inflight.rows import Rows, busy_figures

from . import streams
from .streams import NUM_ROUNDS, Trained, begin, finish, follow, make_stream

LAGS, TAUS, REBUILDS = (0, 1, 2, 4), (0, 1, 6), (0, 1, 2)
SIZES = ((3, 1), (4, 2), (6, 3))  # slots, segment steps
SPEEDS = (
    {},
    {"sampler_delay": lambda: 0.0004},
    {"trainer_delay": lambda: 0.004},
)  # even, a slow sampler, a slow trainer
SCHEDULES = 200
KILLS = 160


def same(a: Trained, b: Trained, from_round: int = 0) -> bool:
    """Bitwise, of the rounds from one on."""
    rounds = range(from_round, NUM_ROUNDS)
    return all(
        a.digests.get(r) == b.digests.get(r) is not None
        and a.states[r] == b.states[r]
        and a.figures[r] == b.figures[r]
        for r in rounds
    )


@pytest.mark.parametrize("lag", LAGS)
@pytest.mark.parametrize("quarter", range(4))
def test_threaded_is_simulated_is_replayed(lag, quarter):
    """Each part has every size, tau and cadence of rebuilds, each at several speeds."""
    shares = []
    settings = list(enumerate(itertools.product(TAUS, REBUILDS, SIZES)))
    for index, (tau, rebuild, (slots, steps)) in settings[quarter::4]:
        speed = SPEEDS[(index + index // 3 + index // 9) % 3]
        stream = make_stream(lag, tau, rebuild, slots, steps, updates=1 + index % 2)
        simulated = finish(stream)
        assert sorted(simulated.sampled) == list(range(NUM_ROUNDS))
        assert max(simulated.ages) <= stream.clock.max_age
        assert same(finish(stream, threaded=True, **speed), simulated)
        replay = dataclasses.replace(stream, tau=3, trained_boundaries=simulated.recorded)
        assert same(finish(replay), simulated)
        shares.append(simulated.mixed_rows)
    assert lag == 0 or np.mean(shares) >= 0.3
    assert lag or not any(shares)


def test_settings_of_the_stream_enter_the_numbers():
    """Otherwise the battery would compare runs that cannot differ."""
    runs = [
        finish(make_stream(*settings)).states[NUM_ROUNDS - 1]
        for settings in itertools.product((1, 2), (0, 5), (0, 1), (2, 3), (1, 2))
    ]
    assert len(set(runs)) > len(runs) / 2
    assert finish(make_stream(2, 5, 0)).digests != finish(make_stream(2, 5, 1)).digests


def rows_of_streams() -> Rows:
    sizes = streams.B, streams.C, streams.SAMPLES
    return Rows(streams.prompts, *sizes, 1.0, (streams.EOS,), streams.PAD)


def test_busy_slots_are_counted_in_the_steps_of_a_round():
    """Three slots, rows 2 and 3 of round 0 and row 4 of round 1. The first tokens are drawn before
    any step. Row 2 ends in step 1, row 3 in step 2, and row 4 goes on to step 3: round 0 has two
    steps with 3 + 2 tokens of 2 * 3, round 1 three with 3 + 2 + 1 of 3 * 3.
    """
    rows, live_TS = rows_of_streams(), np.ones((4, 3), bool)
    live_TS[2:, 0] = live_TS[3:, 1] = False
    tokens_TS = np.where(live_TS, 3, streams.PAD)
    tokens_TS[1, 0] = tokens_TS[2, 1] = streams.EOS
    drawn = Drawn(tokens_TS, np.zeros((4, 3)), live_TS, np.array([True, True, False]))
    rows.add(drawn, [2, 3, 4], version=0)
    assert busy_figures(rows.slot_counts(0)) == {"slots_busy": 5 / 6}
    assert busy_figures(rows.slot_counts(1)) == {"slots_busy": 6 / 9}
    older = {name: array for name, array in rows.saved(0).items() if name != "0.slots_2"}
    again = rows_of_streams()
    again.restore(older)
    assert busy_figures(again.slot_counts(0)) == {}, "a snapshot without the count has no share"
    assert busy_figures(again.slot_counts(1)) == {"slots_busy": 6 / 9}


def test_every_round_says_how_busy_the_slots_were():
    """All of them at first. At lag 0 the last row of a round is drawn alone."""
    ahead, on_policy = (finish(make_stream(lag, slots=4, steps=1)).figures for lag in (4, 0))
    busy = [[found[r]["slots_busy"] for r in range(NUM_ROUNDS)] for found in (ahead, on_policy)]
    assert np.mean(busy[0]) > np.mean(busy[1])
    assert all(1 / 4 < share <= 1 for shares in busy for share in shares)


def test_lag_zero_draws_each_round_from_one_version_as_a_static_batch_does():
    trained = finish(make_stream(lag=0, tau=4, updates=2))
    params = 1
    for round_index in range(NUM_ROUNDS):
        samples = trained.samples[round_index]
        assert set(samples.version_BC[samples.mask_BC]) == {2 * round_index}
        for index in range(streams.B):
            row, tokens = round_index * streams.B + index, []
            cache = streams.mixed(params, row // streams.SAMPLES)
            while len(tokens) < streams.C and streams.EOS not in tokens:
                tokens.append(streams.token_of(params, row, cache))
                cache = streams.after(cache, params, tokens[-1])
            assert samples.tokens_BC[index][samples.mask_BC[index]].tolist() == tokens
        params = trained.states[round_index][1]


def test_a_token_has_the_version_that_drew_it():
    """Every token of a mixed row is drawn again from the params of its stamped version, over the
    cache that its predecessors' versions left.
    """
    trained = finish(make_stream(lag=2, tau=1, slots=4, steps=1))
    params = {0: 1} | {r + 1: states[1] for r, states in trained.states.items()}
    assert trained.mixed_rows >= 0.3
    for round_index, samples in trained.samples.items():
        for index in range(streams.B):
            row, version_C = round_index * streams.B + index, samples.version_BC[index]
            cache = streams.mixed(params[version_C[0]], row // streams.SAMPLES)
            for position in np.flatnonzero(samples.mask_BC[index]):
                drawn_by = params[version_C[position]]
                assert samples.tokens_BC[index, position] == streams.token_of(drawn_by, row, cache)
                cache = streams.after(cache, drawn_by, int(samples.tokens_BC[index, position]))


def test_a_rebuild_leaves_caches_of_one_version():
    stream = make_stream(lag=2, tau=1, rebuild_every=1, slots=4, steps=1)
    events, sampler = begin(stream)
    trained = Trained()
    for _ in follow(events, trained):
        pass
    assert sampler.slices[0].pool.rebuilt > 0  # type: ignore[attr-defined]
    params = {0: 1} | {r + 1: states[1] for r, states in trained.states.items()}
    for round_index, samples in trained.samples.items():
        for index in range(streams.B):
            row = round_index * streams.B + index
            tokens = samples.tokens_BC[index]
            for position in np.flatnonzero(samples.mask_BC[index]):
                drawn_by = params[samples.version_BC[index, position]]
                cache = streams.mixed(drawn_by, row // streams.SAMPLES)
                for before in tokens[:position]:
                    cache = streams.after(cache, drawn_by, int(before))
                assert tokens[position] == streams.token_of(drawn_by, row, cache)


def jitter(seed: int):
    rng = random.Random(seed)
    mean = rng.uniform(0, 0.0005)
    return lambda: rng.expovariate(1.0) * mean


def bounded(stream):
    return dataclasses.replace(stream, clock=dataclasses.replace(stream.clock, bounded=True))


@pytest.mark.parametrize("block", range(4))
def test_random_bounded_schedules_stay_in_the_bound_and_are_replayed(block):
    exact = replayed = 0
    for seed in range(block, SCHEDULES, 4):
        rng = random.Random(seed)
        stream = make_stream(
            rng.choice(LAGS),
            0,
            rng.choice(REBUILDS),
            *rng.choice(SIZES),
            updates=rng.choice((1, 2)),
        )
        delays = {"sampler_delay": jitter(seed), "trainer_delay": jitter(seed + 1)}
        run = finish(bounded(stream), threaded=True, **delays)
        assert max(run.ages) <= stream.clock.max_age
        assert sorted(run.sampled) == sorted(run.samples) == list(range(NUM_ROUNDS))
        replay = dataclasses.replace(stream, trained_boundaries=run.recorded)
        assert same(finish(replay), run), f"seed {seed}"
        replayed += 1
        exact += same(finish(stream), run)
    assert exact < replayed, "no schedule was another than the exact one's"


class Disk:
    """Checkpoints as files would keep them: train states by round, and bytes of snapshots."""

    def __init__(self, every: int, num_slices: int = 1):
        self.every, self.num_slices, self.states, self.files = every, num_slices, {}, {}

    def wanted(self, round_index: int) -> bool:
        return round_index % self.every == 0

    def write(self, round_index: int, cut: Cut) -> None:
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **cut.arrays())
        self.files[round_index] = file.getvalue()

    def newest(self):
        """(round, states, snapshot) of the newest checkpoint that is whole; None: the beginning."""
        whole = sorted(self.states.keys() & self.files.keys())
        if not whole:
            return None
        with np.load(io.BytesIO(self.files[whole[-1]])) as arrays:
            return whole[-1], self.states[whole[-1]], Cut.of(dict(arrays), self.num_slices)

    @property
    def saving(self) -> Saving:
        return Saving(self.wanted, self.write)


def run_until(stream, disk: Disk, num_events: int, trained: Trained, threaded: bool, **options):
    """Runs from the newest checkpoint until so many events have come. Returns the round that it
    began from.
    """
    start = disk.newest()
    events, _ = begin(stream, threaded, start=start, saving=disk.saving, **options)
    for count, event in enumerate(follow(events, trained), 1):
        if isinstance(event, synchronous.RoundEnd) and disk.wanted(event.round_index + 1):
            disk.states[event.round_index + 1] = event.states
        if count == num_events:
            events.close()
    return 0 if start is None else start[0]


@pytest.mark.parametrize("rebuild", REBUILDS)
@pytest.mark.parametrize("mode", ["exact", "replay"])
def test_a_run_that_is_killed_and_goes_on_is_one_that_was_not(mode, rebuild):
    resumed = 0
    for kill in range(-(-KILLS // 6)):
        rng = random.Random(f"{mode} {rebuild} {kill}")
        stream = make_stream(
            rng.choice(LAGS), rng.choice(TAUS), rebuild, *rng.choice(SIZES), updates=1 + kill % 2
        )
        whole = finish(stream)
        if mode == "replay":
            stream = dataclasses.replace(stream, trained_boundaries=whole.recorded)
        disk, trained, threaded = Disk(rng.choice((1, 2))), Trained(), bool(kill % 2)
        per_round = 3 + stream.clock.updates_per_round
        run_until(stream, disk, rng.randint(1, NUM_ROUNDS * per_round), trained, threaded)
        resumed += run_until(stream, disk, 0, trained, not threaded) > 0
        assert same(trained, whole), f"kill {kill}"
    assert resumed > KILLS / 6 / 3


def test_a_killed_bounded_run_trains_every_round_once_more_from_where_it_goes_on():
    for kill in range(20):
        rng, disk, trained = random.Random(kill), Disk(1), Trained()
        stream = bounded(make_stream(rng.choice(LAGS), 0, rng.choice(REBUILDS), updates=2))
        delays = {"sampler_delay": jitter(kill), "trainer_delay": jitter(kill + 1)}
        run_until(stream, disk, rng.randint(1, NUM_ROUNDS * 5), trained, True, **delays)
        before = dict(trained.states)
        again = Trained()
        start = run_until(stream, disk, 0, again, True, **delays)
        assert sorted(again.states) == list(range(start, NUM_ROUNDS))
        assert all(r in before for r in range(start))
        assert max(again.ages) <= stream.clock.max_age


def stopped(stream, threaded: bool, stop_after: int, disk: Disk, **speeds) -> Trained:
    """What a run has done that is asked to stop after some rounds; the disk has what it saved."""
    trained, ended = Trained(), []
    monitor = synchronous.LoopMonitor(stopping=lambda: len(ended) + 1 >= stop_after)
    events, _ = begin(stream, threaded, saving=disk.saving, monitor=monitor, **speeds)
    for event in follow(events, trained):
        if isinstance(event, synchronous.RoundEnd):
            ended.append(event.round_index)
            disk.states[event.round_index + 1] = event.states
    assert ended == list(range(stop_after))
    assert disk.newest()[0] == stop_after  # type: ignore[index]
    return trained


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("mode", ["exact", "bounded"])
def test_a_run_that_is_asked_to_stop_saves_its_rows_and_goes_on(mode, threaded):
    if mode == "bounded" and not threaded:
        pytest.skip("a bounded clock needs threads")
    for stop_after, rebuild in itertools.product((1, 3, NUM_ROUNDS), REBUILDS):
        stream = make_stream(2, 3, rebuild)
        stream = bounded(stream) if mode == "bounded" else stream
        disk = Disk(99)
        trained = stopped(stream, threaded, stop_after, disk)
        run_until(stream, disk, 0, trained, threaded)
        assert sorted(trained.states) == list(range(NUM_ROUNDS))
        if mode == "exact":
            assert same(trained, finish(stream))


@pytest.mark.parametrize("side", ["sampler", "trainer"])
def test_a_failure_of_either_side_ends_both(side):
    calls = itertools.count()

    def fails() -> float:
        if next(calls) == 3:
            raise ValueError(f"the {side} has failed")
        return 0.0

    began = time.monotonic()
    with pytest.raises(ValueError, match=f"the {side} has failed"):
        finish(make_stream(2, 3), threaded=True, **{f"{side}_delay": fails})
    assert time.monotonic() - began < asynchronous.JOIN_SECONDS


def test_a_pool_that_loses_tokens_is_an_error():
    lost = np.arange(6) > 3  # slots without a row at lag 0, whose rounds have four
    for change, named in (
        (
            lambda drawn: {"ended_S": np.ones(6, bool)},
            r"row \d in slot \d ended with \d of 11 tokens and no EOS",
        ),
        (
            lambda drawn: {"live_TS": drawn.live_TS | lost},
            r"slot 4 has no row, but drew 3 tokens",
        ),
    ):
        stream = make_stream(lag=0, slots=6, steps=2)
        (sampler,) = streams.make_sampler(stream).slices
        segment = sampler.pool.segment

        def broken(params, segment=segment, change=change):
            drawn = segment(params)
            return dataclasses.replace(drawn, **change(drawn))

        sampler.pool.segment = broken  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match=named):
            sampler.draw(1, 0)  # type: ignore[arg-type]


def test_a_bounded_clock_needs_threads():
    with pytest.raises(Refusal, match="threaded"):
        finish(bounded(make_stream()))
    clock = Clock(2, bounded=True, inflight=True)
    assert clock.live_versions(True) == 2
