"""Faults at every hand-over of the two threads: each ends the run with one clear error, and nothing
broken is published.
"""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from rlhf_jax.clock import Clock
from rlhf_jax.runtime import asynchronous, synchronous
from rlhf_jax.runtime.buffer import Buffer, Stopped
from rlhf_jax.runtime.synchronous import LoopMonitor
from rlhf_jax.types import Mean

from .schedules import FakeProgram, finish

ROUNDS = 6
LIMIT = 10.0


def breaking(program: FakeProgram, call: str, at: int, happens) -> FakeProgram:
    """`happens(whole, *arguments)` in the place of the call's `at`-th time."""
    whole, calls = getattr(program, call), iter(range(1000))
    setattr(program, call, lambda *a: happens(whole, *a) if next(calls) == at else whole(*a))
    return program


def poisoned(name: str):
    """An update whose metric is NaN."""

    def happens(whole, *arguments):
        states, metrics = whole(*arguments)
        return states, {**metrics, name: Mean(np.float32("nan"), np.float32(1.0))}

    return happens


@pytest.mark.parametrize("loop", [synchronous, asynchronous])
@pytest.mark.parametrize("name", ["loss", "update_norm", "critic_loss"])
def test_what_is_not_finite_is_never_published(loop, name):
    """Update 5 is the second of round 2: its version, 6, would be published before round 3."""
    program = breaking(FakeProgram(Clock(ROUNDS, 2, lag=1)), "update", 5, poisoned(name))
    with pytest.raises(
        FloatingPointError,
        match=f"the {name} of update 5 is nan: nothing from it on is published or saved",
    ):
        finish(loop, program)
    assert max(program.published) == 4


@pytest.mark.parametrize("loop", [synchronous, asynchronous])
@pytest.mark.parametrize(("update", "published"), [(5, [0, 2, 4, 6]), (11, [0, 2, 4, 6, 8, 10])])
def test_a_critic_on_devices_of_its_own_is_checked_a_round_later(loop, update, published):
    """The policy of round 2 is published, since the critic may still train; of the last round
    nothing is left for later. Version 10 samples no round, so that the asynchronous loop publishes
    8 last.
    """
    program = breaking(
        FakeProgram(Clock(ROUNDS, 2, lag=1)), "update", update, poisoned("critic_loss")
    )
    program.critic_is_disaggregated = True
    with pytest.raises(FloatingPointError, match=f"the critic_loss of update {update} is nan"):
        finish(loop, program)
    assert sorted(program.published) == [
        version for version in published if loop is synchronous or version < 10
    ]


@pytest.mark.parametrize("loop", [synchronous, asynchronous])
def test_a_reward_that_is_not_finite_names_its_first_update(loop):
    def happens(whole, *arguments):
        _, batch = whole(*arguments)
        return SimpleNamespace(score_B=np.array([1.0, np.nan])), batch

    program = breaking(FakeProgram(Clock(ROUNDS, 2)), "score", 2, happens)
    with pytest.raises(FloatingPointError, match="the score of update 4 is nan"):
        finish(loop, program)
    assert max(program.published) == 4


def test_a_sampler_that_returns_early_is_noticed_at_once(monkeypatch):
    whole = asynchronous.sample_rounds
    monkeypatch.setattr(
        asynchronous, "sample_rounds", lambda p, buffer, issued, w: whole(p, buffer, issued[:3], w)
    )
    began = time.monotonic()
    with pytest.raises(Stopped, match="waiting for round 3, but the other side has ended"):
        finish(asynchronous, FakeProgram(Clock(ROUNDS)))
    assert time.monotonic() - began < LIMIT


def test_a_sampler_whose_thread_is_cut_short_is_noticed():
    """Not even an exception: what `SystemExit` in a thread looks like."""

    def leave(whole, *arguments):
        raise SystemExit

    with pytest.raises(SystemExit):
        finish(asynchronous, breaking(FakeProgram(Clock(ROUNDS)), "generate", 2, leave))


def test_the_reader_fails_while_it_saves():
    """A full disk: the error of the reader of events is the run's, and the sampler ends."""

    def read(events):
        for event in events:
            if isinstance(event, synchronous.RoundEnd) and event.round_index == 2:
                raise OSError(28, "No space left on device")

    events = asynchronous.run(FakeProgram(Clock(ROUNDS, lag=2)), (0, 1), 0, {})
    with pytest.raises(OSError, match="No space left"):
        read(events)
    events.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "sampler"]


@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize("loop", [synchronous, asynchronous])
def test_a_run_that_is_asked_to_stop_ends_with_all_that_going_on_needs(loop, lag):
    """Asked in round 2: that round is the last, and every round that its checkpoint must hold has
    been announced.
    """
    clock, seen, states = Clock(ROUNDS, lag=lag), {}, None
    asked, whole = [], FakeProgram(clock)
    for event in loop.run(whole, (0, 1), 0, {}, LoopMonitor(stopping=lambda: bool(asked))):
        match event:
            case synchronous.Sampled(index, samples):
                seen[index] = samples
            case synchronous.Scored(2):
                asked.append(True)
            case synchronous.RoundEnd(index, states, stopping):
                assert stopping == (index == 2)
    assert set(clock.issued_before(3)) <= set(seen) == set(range(3 + lag))
    pending = {r: seen[r] for r in clock.issued_before(3)}
    rest = FakeProgram(clock)
    rest.published = {
        version: whole.published[version] for version in whole.published if version < 3
    }
    assert finish(loop, rest, 3, states, pending)[3] == finish(synchronous, FakeProgram(clock))[3]


def test_the_newest_version_is_waited_for():
    buffer = Buffer()
    buffer.publish(2, "two")
    threading.Timer(0.05, lambda: buffer.publish(4, "four")).start()
    assert buffer.newest(1) == (2, "two")
    assert buffer.newest(3) == (4, "four")
    buffer.forget_before(4)
    assert buffer.newest(0) == (4, "four")
