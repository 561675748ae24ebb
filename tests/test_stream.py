"""The in-flight clock on random configurations with random lengths, beside a loop that keeps no
slots, and beside itself: replayed, bounded, saved and restored.
"""

import dataclasses
import json
import random
from collections.abc import Iterator

import pytest

from rlhf_jax.clock import Boundary, Clock, Stream, StreamState, full_throughput_lag
from rlhf_jax.refusal import Refusal

MAX_LENGTH = 9
CASES = 300


def random_stream(rng: random.Random, **changes) -> Stream:
    clock = Clock(
        rng.randint(1, 6), rng.choice((1, 2)), rng.choice((1, 2)), rng.randint(0, 4), inflight=True
    )
    rows, tau = rng.randint(1, 6), rng.choice((0, 1, 3, 7, 30))
    stream = Stream(clock, rows, rng.randint(1, 8), rng.randint(1, 6), tau, rng.choice((0, 1, 2)))
    return dataclasses.replace(stream, **changes)


def bounded(stream: Stream) -> Stream:
    return dataclasses.replace(stream, clock=dataclasses.replace(stream.clock, bounded=True))


def length_of(row: int, first_version: int, seed: int) -> int:
    """A row's number of tokens, which depends on the version that drew its first one."""
    return random.Random(f"{row} {first_version} {seed}").choice((1, 2, 3, MAX_LENGTH))


@dataclasses.dataclass
class Rows:
    """A sampler of numbers: the version of every token of every row."""

    seed: int
    versions: dict[int, list[int]] = dataclasses.field(default_factory=dict)

    def draw(self, boundary: Boundary, segment_steps: int) -> list[bool]:
        for slot, row in enumerate(boundary.row_of_slot):
            if row >= 0:
                steps = segment_steps + (slot in boundary.slots)
                tokens = self.versions.setdefault(row, [])
                length = length_of(row, (tokens or [boundary.version])[0], self.seed)
                tokens += [boundary.version] * min(steps, length - len(tokens))
        return self.ended(boundary.row_of_slot)

    def ended(self, row_of_slot: tuple[int, ...]) -> list[bool]:
        return [
            row < 0 or len(self.versions[row]) == length_of(row, self.versions[row][0], self.seed)
            for row in row_of_slot
        ]


def follow(
    stream: Stream, rows: Rows, state: StreamState | None = None, newest=None
) -> Iterator[tuple[StreamState, Boundary, list[int]]]:
    """Every boundary with the state before it, and the rounds that its segment completes.

    `newest(least, complete)` gives T in bounded mode.
    """
    state = stream.begin() if state is None else state
    complete: list[int] = []
    for _ in range(100_000):
        if stream.is_drained(state):
            return
        before, trained = state, stream.rounds_trained(state)
        if newest is not None:
            trained = newest(trained, complete)
        boundary, state = stream.admit(state, trained)
        ended = rows.draw(boundary, stream.segment_steps)
        new, state = stream.harvest(state, ended)
        complete += new
        yield before, boundary, list(new)
    raise AssertionError("the stream does not end")


def lazy_trainer(rng: random.Random):
    """T of a trainer that has trained some of the rounds that are there."""
    trained = 0

    def newest(least: int, complete: list[int]) -> int:
        nonlocal trained
        there = next(r for r in range(len(complete) + 1) if r not in complete)
        trained = max(trained, least, rng.randint(0, there))
        assert trained <= there, "it waits for a round that nobody has sampled"
        return trained

    return newest


def check(stream: Stream, rows: Rows) -> None:
    """Nothing is dropped, versions never fall, and ages obey the bound."""
    clock = stream.clock
    assert sorted(rows.versions) == list(range(stream.num_rows))
    for row, versions in rows.versions.items():
        assert len(versions) == length_of(row, versions[0], rows.seed)
        assert versions == sorted(versions)
        round_index = row // stream.rows_per_round
        for update in range(clock.updates_per_round):
            most = clock.updates_per_round * min(round_index, clock.lag) + update
            ages = [clock.age(round_index, update, version) for version in versions]
            assert update <= min(ages) <= max(ages) <= most <= clock.max_age


def test_random_streams_end_within_the_bound_and_drop_nothing():
    mixed = 0
    for seed in range(CASES):
        stream, rows = random_stream(random.Random(seed)), Rows(seed)
        steps = list(follow(stream, rows))
        check(stream, rows)
        mixed += any(len(set(versions)) > 1 for versions in rows.versions.values())
        finished = [r for _, _, complete in steps for r in complete]
        assert sorted(finished) == list(range(stream.clock.num_rounds))
        assert steps[-1][1].index * stream.segment_steps <= 10**4
    assert mixed > CASES / 4


def test_later_rounds_may_end_first_and_are_settled_in_order():
    """Two slots, rounds of one row, lag 1: row 0 has nine tokens, row 1 one. Row 1 ends at step 1,
    row 0 at step 8 with one token drawn at admission. tau 3: F_0 = 11, and F_1 = 14, not 4.
    """
    stream = Stream(Clock(2, lag=1, inflight=True), 1, 2, 1, tau=3)
    state, done = stream.begin(), []
    _, state = stream.admit(state, 0)
    for step in range(1, 9):
        complete, state = stream.harvest(state, [step == 8, True])
        done += complete
        if step < 8:
            assert state.trained_at == ()
            _, state = stream.admit(state, stream.rounds_trained(state))
    assert done == [1, 0]
    assert state.trained_at == (11, 14)
    assert state.ended_at == ()


def test_idle_time_goes_to_the_next_trained_round():
    """One slot, lag 0, rounds of one row of one token: D 4, tau 6. The row ends at 4, F_0 = 10, and
    the first boundary at or after it is the third, step 12.
    """
    stream = Stream(Clock(2, inflight=True), 1, 1, 4, tau=6)
    _, state = stream.admit(stream.begin(), 0)
    _, state = stream.harvest(state, [True])
    idle, state = stream.admit(state, stream.rounds_trained(state))
    assert idle.is_idle
    assert (idle.index, state.boundary, stream.rounds_trained(state)) == (1, 3, 1)


def test_lag_zero_is_the_synchronous_loop():
    for seed in range(CASES // 2):
        stream = random_stream(random.Random(seed))
        stream = dataclasses.replace(stream, clock=dataclasses.replace(stream.clock, lag=0))
        rows, u = Rows(seed), stream.clock.updates_per_round
        list(follow(stream, rows))
        expected = {}
        for round_index in range(stream.clock.num_rounds):  # one round after the other, no slots
            for row in range(
                round_index * stream.rows_per_round, (round_index + 1) * stream.rows_per_round
            ):
                version = u * round_index
                expected[row] = [version] * length_of(row, version, seed)
        assert rows.versions == expected


def test_bounded_schedules_stay_in_the_bound_and_are_replayed_from_their_numbers():
    differing = 0
    for seed in range(CASES):
        stream, rows = random_stream(random.Random(seed)), Rows(seed)
        steps = list(follow(bounded(stream), rows, newest=lazy_trainer(random.Random(seed))))
        check(stream, rows)
        last = steps[-1][0]
        _, last = bounded(stream).admit(
            last, steps[-1][1].version // stream.clock.updates_per_round
        )
        recorded = bounded(stream).recorded(last)
        assert len(recorded) == last.rounds_trained <= stream.clock.num_rounds
        replay, again = dataclasses.replace(stream, trained_boundaries=recorded), Rows(seed)
        assert [boundary for _, boundary, _ in follow(replay, again)] == [b for _, b, _ in steps]
        assert again.versions == rows.versions
        exact = Rows(seed)
        list(follow(stream, exact))
        differing += exact.versions != rows.versions
    assert differing > CASES / 4


def test_an_exact_run_is_replayed_from_its_numbers():
    for seed in range(CASES // 3):
        stream, rows, again = random_stream(random.Random(seed)), Rows(seed), Rows(seed)
        steps = list(follow(stream, rows))
        _, last = stream.admit(steps[-1][0], stream.rounds_trained(steps[-1][0]))
        replay = dataclasses.replace(stream, tau=99, trained_boundaries=stream.recorded(last))
        assert [b for _, b, _ in follow(replay, again)] == [b for _, b, _ in steps]
        assert again.versions == rows.versions


@pytest.mark.parametrize("mode", ["exact", "replay"])
def test_a_stream_goes_on_from_the_json_of_any_state(mode):
    for seed in range(CASES // 5):
        stream, rows = random_stream(random.Random(seed)), Rows(seed)
        if mode == "replay":
            begun = list(follow(stream, Rows(seed)))
            _, last = stream.admit(begun[-1][0], stream.rounds_trained(begun[-1][0]))
            stream = dataclasses.replace(stream, trained_boundaries=stream.recorded(last))
        whole, saved = [], []
        for state, boundary, complete in follow(stream, rows):
            whole.append((boundary, complete))
            saved.append(json.dumps(dataclasses.asdict(state)))
        for cut in random.Random(seed).sample(range(len(saved)), min(len(saved), 5)):
            state, again = StreamState.from_json(json.loads(saved[cut])), Rows(seed)
            live = [row for row in state.row_of_slot if row >= 0]
            kept = {row: tokens for row, tokens in rows.versions.items() if row in live}
            drawn = drawn_before(kept, [boundary for boundary, _ in whole[:cut]], stream)
            again.versions |= {row: kept[row][: drawn[row]] for row in live}
            rest = [(b, complete) for _, b, complete in follow(stream, again, state)]
            assert rest == whole[cut:]
            assert {row: rows.versions[row] for row in again.versions} == again.versions


def drawn_before(kept, boundaries: list[Boundary], stream: Stream) -> dict[int, int]:
    """Tokens of each row after these boundaries."""
    drawn = dict.fromkeys(kept, 0)
    for boundary in boundaries:
        for slot, row in enumerate(boundary.row_of_slot):
            if row in drawn:
                steps = stream.segment_steps + (slot in boundary.slots)
                drawn[row] = min(drawn[row] + steps, len(kept[row]))
    return drawn


def test_rebuilds_come_when_a_multiple_is_passed():
    """lag 0, so that T goes up by one: with 2 at T = 2 and 4, with 1 at every one but 0."""
    for every, expected in ((0, []), (1, [1, 2, 3, 4]), (2, [2, 4])):
        stream = Stream(Clock(5, inflight=True), 2, 2, 1, tau=1, rebuild_every=every)
        rebuilt = [b.version for _, b, _ in follow(stream, Rows(0)) if b.rebuilds]
        assert rebuilt == expected
    jump = StreamState((-1,), rounds_trained=1)
    stream = Stream(Clock(9, inflight=True), 1, 1, 1, rebuild_every=4)
    assert [stream.rebuilds(jump, trained) for trained in (1, 3, 4, 6)] == [
        False,
        False,
        True,
        True,
    ]


def test_slots_are_filled_lowest_first_in_stream_order():
    stream = Stream(Clock(2, lag=1, inflight=True), 4, 3, 2)
    first, state = stream.admit(stream.begin(), 0)
    assert (first.rows, first.slots) == ((0, 1, 2), (0, 1, 2))
    _, state = stream.harvest(state, [True, False, True])
    second, state = stream.admit(state, 0)
    assert (second.rows, second.slots, second.row_of_slot) == ((3, 4), (0, 2), (3, 1, 4))


def test_the_rule_for_full_throughput():
    """C 1024, tau 0.9 of a round's ideal time, S 128, mean length 276: the fact sheet's cases."""
    for rows, lag in ((512, 2), (256, 3), (128, 5), (32, 16)):
        tau = round(0.9 * rows * 276 / 128)
        stream = Stream(Clock(9, inflight=True), rows, 128, 16, tau)
        assert full_throughput_lag(stream, 1024, 276) == lag


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_slots": 0}, "num_slots is 0"),
        ({"segment_steps": 0}, "segment_steps is 0"),
        ({"rows_per_round": 0}, "rows_per_round is 0"),
        ({"tau": -1}, "tau is -1"),
        ({"rebuild_every": -2}, "rebuild_every is -2"),
        ({"trained_boundaries": (3, 2)}, r"trained_boundaries are \[3, 2\]"),
        ({"trained_boundaries": (1, 2, 3, 4)}, "at most 3"),
    ],
)
def test_senseless_values_are_refused_by_name(changes, named):
    stream = Stream(Clock(3, inflight=True), 2, 2, 2)
    with pytest.raises(Refusal, match=named):
        dataclasses.replace(stream, **changes)


def test_a_schedule_of_another_run_is_refused():
    stream = Stream(Clock(3, inflight=True), 2, 2, 1, trained_boundaries=(0, 0, 0))
    with pytest.raises(Refusal, match="round 0 trained at boundary 0"):
        list(follow(stream, Rows(1)))
    with pytest.raises(Refusal, match="row 2 waits for round 0"):
        list(follow(dataclasses.replace(stream, trained_boundaries=()), Rows(1)))


def test_a_token_outside_of_the_bound_is_an_error():
    stream = Stream(Clock(3, inflight=True), 2, 2, 1)
    _, state = stream.admit(stream.begin(), 0)
    _, state = stream.harvest(state, [False, False])
    with pytest.raises(RuntimeError, match="round 0 was sampled with version 1"):
        stream.admit(state, 1)
    late = dataclasses.replace(state, trained_at=(0,))
    with pytest.raises(RuntimeError, match="was given 0 trained rounds; the least is 1"):
        stream.admit(late, 0)


def test_the_clock_of_inflight_updates():
    clock = Clock(9, 2, 1, lag=2, inflight=True)
    for version in (4, 6, 8):
        clock.check_version(4, version, version)
    for version in (2, 10):
        with pytest.raises(RuntimeError, match="4 to 8"):
            clock.check_version(4, version, version)
    assert (clock.live_versions(True), clock.live_versions(False)) == (4, 1)
    assert clock.issued_before(4) == []
    with pytest.raises(Refusal, match="Stream"):
        clock.issued_at(0)
    with pytest.raises(Refusal, match="version schedule"):
        Clock(2, version_schedule=(0, 0), inflight=True)
