"""The threaded loop against the synchronous one, bit for bit; and what ends it when a side fails,
stalls or stops.
"""

import threading
import time
import weakref
import zlib

import jax
import numpy as np
import pytest

from rlhf_jax import registry
from rlhf_jax.clock import Clock
from rlhf_jax.runtime import asynchronous, synchronous
from rlhf_jax.runtime.buffer import Buffer, Stopped

from .rounds import NUM_ROUNDS, algorithm_program, host, program_of, same

DEADLINE = 20.0


def collect(loop, clock: Clock, change=lambda program: program, of=None, **options):
    """Every figure of a run, on the host: metrics, ages and scores in order, samples by round, and
    the params at the end.
    """
    program = change(program_of(clock, of))
    found = {"metrics": [], "ages": [], "scores": [], "samples": {}, "params": None}
    for event in loop.run(program, program.init(program.reference_params), 0, {}, **options):
        match event:
            case synchronous.Sampled(index, samples):
                assert index not in found["samples"], "a round was announced twice"
                found["samples"][index] = host(samples)
            case synchronous.Scored(index, _, scores):
                assert index in found["samples"], "a round was scored before it was announced"
                found["scores"].append(host(scores))
            case synchronous.Updated(_, age, metrics):
                found["ages"].append(age)
                found["metrics"].append(host(metrics))
            case synchronous.RoundEnd(_, states):
                found["params"] = host({role: state.params for role, state in states.items()})
    found["samples"] = [found["samples"][index] for index in sorted(found["samples"])]
    return found


@pytest.mark.parametrize("num_epochs", [1, 2])
@pytest.mark.parametrize("num_minibatches", [1, 2])
@pytest.mark.parametrize("lag", [0, 1, 2, 4])
def test_threads_give_the_synchronous_numbers(lag, num_minibatches, num_epochs):
    clock = Clock(NUM_ROUNDS, num_minibatches, num_epochs, lag)
    assert same(collect(asynchronous, clock), collect(synchronous, clock))


@pytest.mark.parametrize(
    "name", [name for name in registry.names("algorithms") if name != "online_dpo"]
)
def test_threads_give_the_synchronous_numbers_of_every_algorithm(name):
    """Stale samples, minibatches and epochs at once: what is credited, corrected or valued at the
    start of a round shows.
    """
    clock, program = Clock(3, 2, 2, lag=1), algorithm_program(name)
    assert same(collect(asynchronous, clock, of=program), collect(synchronous, clock, of=program))


def test_the_sampler_sees_published_versions_and_nothing_else():
    """Checksums of params when they are published, and before and after a round is sampled with
    them.
    """
    program, published, seen = program_of(Clock(NUM_ROUNDS, 2, 1, lag=2)), {}, []
    publish, generate = program.publish, program.generate

    def checksum(params) -> int:
        return zlib.crc32(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)))

    def noted(states):
        params = publish(states)
        published[int(states["policy"].step)] = checksum(params)
        return params

    def watched(params, round_index, version):
        before = checksum(params)
        samples = jax.block_until_ready(generate(params, round_index, version))
        seen.append((version, before, checksum(params)))
        return samples

    program.publish, program.generate = noted, watched
    for _ in asynchronous.run(program, program.init(program.reference_params), 0, {}):
        pass
    assert len(seen) == NUM_ROUNDS
    assert all(before == after == published[version] for version, before, after in seen)
    assert len(set(published.values())) == len(published), "every version is another"


@pytest.mark.parametrize("version_schedule", [(0, 0, 0, 0, 0), (0, 1, 0, 3, 1), (0, 1, 2, 3, 4)])
def test_threads_replay_a_trace(version_schedule):
    clock = Clock(NUM_ROUNDS, version_schedule=version_schedule)
    assert same(collect(asynchronous, clock), collect(synchronous, clock))


@pytest.mark.parametrize("slow", ["generate", "update"])
def test_a_slow_side_changes_nothing(slow):
    clock = Clock(NUM_ROUNDS, lag=2)

    def slowed(program):
        whole = getattr(program, slow)

        def late(*arguments):
            time.sleep(0.05)
            return whole(*arguments)

        setattr(program, slow, late)
        return program

    assert same(collect(asynchronous, clock, slowed), collect(synchronous, clock))


def test_the_sampler_is_ahead_by_the_lag_and_no_more():
    """While the trainer stands at round 0, exactly lag + 1 rounds are sampled; the versions they
    need are those published.
    """
    clock = Clock(NUM_ROUNDS, lag=2)
    program = program_of(clock)
    drawn, generate = [], program.generate
    program.generate = lambda params, index, version: (
        drawn.append((index, version)) or generate(params, index, version)
    )
    events = asynchronous.run(program, program.init(program.reference_params), 0, {})
    for event in events:
        if isinstance(event, synchronous.Scored):
            break
    limit = time.monotonic() + DEADLINE
    while len(drawn) < 3 and time.monotonic() < limit:
        time.sleep(0.01)
    for _ in range(20):
        assert drawn == [(0, 0), (1, 0), (2, 0)]
        time.sleep(0.01)
    events.close()


def test_a_run_that_begins_in_the_middle_ends_as_one_that_did_not():
    clock = Clock(NUM_ROUNDS, 2, 1, lag=2)
    program, samples = program_of(clock), {}
    for event in synchronous.run(program, program.init(program.reference_params), 0, {}):
        if isinstance(event, synchronous.Sampled):
            samples[event.round_index] = host(event.samples)
        if isinstance(event, synchronous.RoundEnd) and event.round_index == 1:
            saved = host(event.states)
            break
    layout = jax.tree.map(
        lambda x: x.sharding, program.generate(program.publish(event.states), 0, 0)
    )
    pending = {r: jax.device_put(samples[r], layout) for r in clock.issued_before(2)}
    restored = jax.device_put(saved, program.state_shardings)
    ends = [
        e.states
        for e in asynchronous.run(program, restored, 2, pending)
        if isinstance(e, synchronous.RoundEnd)
    ]
    assert same(host(ends[-1]["policy"].params), collect(synchronous, clock)["params"]["policy"])


def broken(name: str, at: int, error: Exception):
    """A program whose call `name` raises the `at`-th time."""

    def change(program):
        whole, calls = getattr(program, name), iter(range(1000))

        def failing(*arguments):
            if next(calls) == at:
                raise error
            return whole(*arguments)

        setattr(program, name, failing)
        return program

    return change


@pytest.mark.parametrize("name", ["generate", "score", "update", "publish"])
@pytest.mark.parametrize("at", [0, 2])
def test_what_either_side_raises_ends_the_run_with_its_traceback(name, at):
    error = FloatingPointError(f"{name} broke")
    began = time.monotonic()
    with pytest.raises(FloatingPointError, match=f"{name} broke") as raised:
        collect(asynchronous, Clock(NUM_ROUNDS, lag=1), broken(name, at, error))
    assert "failing" in [entry.name for entry in raised.traceback]
    assert time.monotonic() - began < DEADLINE
    assert not [thread for thread in threading.enumerate() if thread.name == "sampler"]


def test_a_reader_that_leaves_ends_the_sampler():
    program = program_of(Clock(NUM_ROUNDS, lag=1))
    events = asynchronous.run(program, program.init(program.reference_params), 0, {})
    next(events)
    events.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "sampler"]


def test_a_wait_ends_when_the_other_side_has_ended():
    buffer = Buffer()
    threading.Timer(0.05, buffer.stop).start()
    with pytest.raises(Stopped, match="waiting for round 3"):
        buffer.take(3)


def watching(published: list, alive: list):
    """A program that keeps weak references to its published versions, and notes at every update how many
    are alive. Its sampler is slow.
    """

    def change(program):
        publish, update, generate = program.publish, program.update, program.generate

        def publish_watched(states):
            params = publish(states)
            published.append(weakref.ref(jax.tree.leaves(params)[0]))
            return params

        def update_watched(states, batch):
            alive.append(sum(version() is not None for version in published))
            return update(states, batch)

        def generate_slowly(*arguments):
            time.sleep(0.2)
            return generate(*arguments)

        program.publish, program.update = publish_watched, update_watched
        program.generate = generate_slowly
        return program

    return change


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_an_update_finds_as_many_versions_as_the_lag(lag, monkeypatch):
    """The version that sampled a round is dropped before the trainer has the round. A slow sampler that
    is slow to drop it, too, shows it.
    """
    forget, published, alive = Buffer.forget_before, [], []

    def slowly(self, version):
        time.sleep(0.3)
        forget(self, version)

    collect(asynchronous, Clock(NUM_ROUNDS, lag=lag))  # compiles
    monkeypatch.setattr(Buffer, "forget_before", slowly)
    collect(asynchronous, Clock(NUM_ROUNDS, lag=lag), watching(published, alive))
    assert len(published) == NUM_ROUNDS - lag  # those that sample a round
    assert len(alive) == NUM_ROUNDS
    assert max(alive) <= lag


@pytest.mark.parametrize("lag", [0, 2])
def test_an_update_of_the_synchronous_loop_finds_no_version(lag):
    published, alive = [], []
    collect(synchronous, Clock(NUM_ROUNDS, lag=lag), watching(published, alive))
    assert len(published) == len(alive) == NUM_ROUNDS
    assert max(alive) == 0


def test_versions_and_rounds_are_let_go():
    buffer = Buffer()
    for version in range(4):
        buffer.publish(version, {"w": np.full(2, version)})
    buffer.forget_before(3)
    assert buffer.params(3)["w"][0] == 3
    buffer.put(7, np.zeros(1))
    assert list(buffer.arrived(())) == [7]
    assert not buffer.arrived({7})
    buffer.take(7)
    buffer.stop()
    for wait in (lambda: buffer.params(2), lambda: buffer.take(7)):
        with pytest.raises(Stopped):
            wait()
