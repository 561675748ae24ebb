"""Silence of a side: work is alive however long it takes, and whatever hangs ends the run, with its
name and its seconds.
"""

import threading
import time
from contextlib import closing, contextmanager, suppress

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.clock import Clock
from rlhf_jax.devices.processes import liveness
from rlhf_jax.runtime import activity, asynchronous, stopping, synchronous
from rlhf_jax.runtime.buffer import Buffer, Stalled
from rlhf_jax.runtime.synchronous import LoopMonitor

from .schedules import FakeProgram, finish
from .test_failures import breaking

ROUNDS = 4
DEADLINE = 0.5
SLOW = 1.5  # longer than the deadline
LIMIT = 20.0  # of a test


@contextmanager
def hangs():
    """Yields a function that never returns inside the block.

    Afterwards it does, and the sampler has ended.
    """
    release = threading.Event()
    try:
        yield lambda *_: release.wait(LIMIT)
    finally:
        release.set()
        for thread in threading.enumerate():
            if thread.name == stopping.SAMPLER:
                thread.join(LIMIT)


def slowly(what: str):
    """A call that takes long, and says what it is at work on."""

    def happens(whole, *arguments):
        with activity.at_work(what):
            time.sleep(SLOW)
        return whole(*arguments)

    return happens


def test_a_slow_reward_is_not_silence():
    said: list[str] = []
    program = breaking(FakeProgram(Clock(ROUNDS, lag=1)), "score", 1, slowly("the reward judge"))
    ends = finish(
        asynchronous, program, monitor=LoopMonitor(say=said.append), deadline_seconds=DEADLINE
    )
    assert ends == finish(synchronous, FakeProgram(Clock(ROUNDS, lag=1)))
    assert said[0].startswith("notice: the trainer has been in the reward judge for ")
    assert len(said) <= 2, "said again only when the silence has doubled"


def test_a_slow_evaluation_of_the_reader_is_not_silence():
    said: list[str] = []
    events = asynchronous.run(
        FakeProgram(Clock(ROUNDS)),
        (0, 1),
        0,
        {},
        LoopMonitor(say=said.append),
        deadline_seconds=DEADLINE,
    )
    for event in events:
        if isinstance(event, synchronous.RoundEnd) and event.round_index == 1:
            with activity.at_work("the evaluation of version 2"):
                time.sleep(SLOW)
    assert "the trainer has been in the evaluation of version 2 for " in said[0]


def test_a_call_within_work_is_part_of_it():
    """A checkpoint waits for an update, an evaluation samples: the work is what takes long, and is
    named.
    """
    said: list[str] = []

    def happens(whole, *arguments):
        with activity.at_work("the checkpoint of version 1"), activity.during("update 0", "call"):
            time.sleep(SLOW)
        return whole(*arguments)

    program = breaking(FakeProgram(Clock(ROUNDS)), "score", 1, happens)
    finish(asynchronous, program, monitor=LoopMonitor(say=said.append), deadline_seconds=DEADLINE)
    assert "the trainer has been in the checkpoint of version 1 for " in said[0]


def test_a_short_call_after_slow_work_has_its_own_time():
    """The scoring of a round goes on after the reward: its seconds begin when the reward has ended."""

    def happens(whole, *arguments):
        with activity.at_work("the reward judge"):
            time.sleep(SLOW)
        time.sleep(DEADLINE / 2)
        return whole(*arguments)

    finish(
        asynchronous,
        breaking(FakeProgram(Clock(ROUNDS)), "score", 0, happens),
        deadline_seconds=DEADLINE,
    )


@pytest.mark.parametrize("call", ["generate", "update"])
def test_a_call_of_the_devices_has_a_limit_of_its_own(call):
    def happens(whole, *arguments):
        time.sleep(SLOW)
        return whole(*arguments)

    program = breaking(FakeProgram(Clock(ROUNDS)), call, 1, happens)
    finish(asynchronous, program, deadline_seconds=DEADLINE, device_call_seconds=LIMIT)
    program = breaking(FakeProgram(Clock(ROUNDS)), call, 1, happens)
    with pytest.raises(Stalled, match=r"longer than rlhf\.device_call_seconds = 0\.5"):
        finish(asynchronous, program, deadline_seconds=DEADLINE)


def test_a_call_that_waits_behind_the_other_sides_work_is_not_hung():
    """On shared devices a round is sampled behind an evaluation: its silence is explained until
    that has ended, and after.
    """
    working = threading.Event()

    def evaluates(whole, *arguments):
        with activity.at_work("the evaluation of version 1"):
            working.set()
            time.sleep(SLOW)
        return whole(*arguments)

    def queues(whole, *arguments):
        working.wait(LIMIT)
        time.sleep(SLOW + DEADLINE / 2)
        return whole(*arguments)

    program = FakeProgram(Clock(ROUNDS, lag=1))
    breaking(program, "score", 0, evaluates)
    breaking(program, "generate", 1, queues)
    finish(asynchronous, program, deadline_seconds=DEADLINE)


def test_a_sampler_that_hangs_ends_the_run():
    began = time.monotonic()
    with hangs() as hang:
        program = FakeProgram(Clock(ROUNDS))
        breaking(program, "generate", 1, hang)
        with pytest.raises(Stalled) as raised:
            finish(asynchronous, program, deadline_seconds=DEADLINE)
        assert time.monotonic() - began < LIMIT / 2
        assert "the sampler has been in generate of round 1" in stopping.hung_sampler()
    text = str(raised.value)
    assert text.startswith("the sampler has been in generate of round 1 for ")
    assert "test_stopping.py, line" in text
    assert "the trainer in its wait for round 1; versions [1] and rounds [] are held" in text
    assert not stopping.hung_sampler()


def read_until_full(events):
    with closing(events):
        for event in events:
            if isinstance(event, synchronous.Scored):
                raise OSError(28, "No space left on device")


def test_what_the_reader_raises_is_seen_though_the_sampler_hangs(monkeypatch):
    monkeypatch.setattr(asynchronous, "JOIN_SECONDS", 0.2)
    began = time.monotonic()
    with hangs() as hang:
        program = breaking(FakeProgram(Clock(ROUNDS, lag=1)), "generate", 1, hang)
        with pytest.raises(OSError, match="No space left"):
            read_until_full(asynchronous.run(program, (0, 1), 0, {}))
        assert time.monotonic() - began < LIMIT / 2


def of_thread(run) -> threading.Thread:
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("place", ["update", "the reader", "both sides"])
def test_a_trainer_that_hangs_ends_the_process(monkeypatch, place):
    """Nothing can raise in a thread that hangs: the process is given up, also when both sides hang."""
    given_up, known = [], threading.Event()
    monkeypatch.setattr(stopping, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(
        stopping, "give_up", lambda error: given_up.append(str(error)) or known.set()
    )
    with hangs() as hang:
        program = FakeProgram(Clock(ROUNDS, lag=1))
        if place != "the reader":
            breaking(program, "update", 0, hang)
        if place == "both sides":
            breaking(program, "generate", 1, hang)

        def read():
            with suppress(Exception):  # what is raised once the test lets it go on
                for _ in asynchronous.run(program, (0, 1), 0, {}, deadline_seconds=DEADLINE):
                    if place == "the reader":
                        hang()

        trainer = of_thread(read)
        assert known.wait(LIMIT / 2)
    trainer.join(LIMIT)
    named = {
        "update": "update 0",
        "the reader": "the code that reads the run's events",
        "both sides": "update 0",
    }
    assert f"the trainer has been in {named[place]} for " in given_up[0]
    if place == "both sides":
        assert "the sampler has been in generate of round 1 for " in given_up[0]


def test_two_sides_that_wait_for_each_other_are_ended():
    """No clock asks for this; a fault of ours would."""
    buffer, errors = Buffer(), []

    def wait(call):
        try:
            call(7)
        except Stalled as error:
            errors.append(str(error))

    watched = stopping.Watchdog(buffer, DEADLINE, DEADLINE, print)
    sides = of_thread(lambda: wait(buffer.wait_for)), of_thread(lambda: wait(buffer.params))
    watched.start(*sides)
    for side in sides:
        side.join(LIMIT)
    watched.end()
    assert len(errors) == 2
    assert "the trainer has been in its wait for round 7" in errors[0]
    assert "the sampler has been in its wait for version 7 of the params" in errors[0]


def until(event, what, kind):
    """An activity that ends with an event."""
    with activity.during(what, kind):
        event.wait(LIMIT)


def test_a_collective_waits_for_another_process_at_work(monkeypatch):
    """One that judges for longer than the limit, and then for less: the call hangs only after it."""
    buffer, said, works, ends = Buffer(), [], ["the reward judge"], threading.Event()
    monkeypatch.setattr(liveness, "elsewhere", lambda: dict(enumerate(works, start=1)))
    watched = stopping.Watchdog(buffer, DEADLINE, DEADLINE, said.append)

    monkeypatch.setattr(stopping, "give_up", lambda error: None)
    watched.start(
        of_thread(lambda: until(ends, "the scoring of round 3", "call")),
        of_thread(lambda: until(ends, "its wait for version 4", "wait")),
    )
    time.sleep(4 * DEADLINE)
    buffer.raise_failure()
    assert said[0].startswith("notice: process 1 has been in the reward judge for ")
    works.clear()
    time.sleep(DEADLINE / 2)
    buffer.raise_failure()  # what has just ended explains the silence
    time.sleep(2 * DEADLINE)
    with pytest.raises(Stalled, match="the trainer has been in the scoring of round 3"):
        buffer.raise_failure()
    ends.set()
    watched.end()


@pytest.mark.parametrize("kind", ["remote", "wait"])
def test_a_wait_for_the_slices_of_other_processes_has_no_limit(kind):
    """While those are alive, however slow; one for a slice of this process has the limit."""
    buffer, said, ends = Buffer(), [], threading.Event()
    watched = stopping.Watchdog(buffer, DEADLINE, DEADLINE, said.append)

    watched.start(
        of_thread(lambda: until(ends, "its wait for round 2", "wait")),
        of_thread(lambda: until(ends, "its wait for the other slices", kind)),
    )
    time.sleep(4 * DEADLINE)
    if kind == "wait":
        with pytest.raises(Stalled):
            buffer.raise_failure()
    else:
        buffer.raise_failure()
        assert said[0].startswith(
            "notice: the sampler has been in its wait for the other slices for "
        )
    ends.set()
    watched.end()


def test_a_process_tells_what_it_is_at_work_on(monkeypatch):
    told: list = []
    monkeypatch.setattr(liveness, "tell", told.append)
    ends = threading.Event()

    watched = stopping.Watchdog(Buffer(), LIMIT, LIMIT, print)
    sides = [
        of_thread(lambda: until(ends, "its wait for round 2", "wait")),
        of_thread(lambda: until(ends, "the reward judge", "work")),
    ]
    time.sleep(0.01)
    watched.start(*sides)
    assert told[-1]() == "the reward judge"
    ends.set()
    for side in sides:
        side.join(LIMIT)
    assert told[-1]() == ""
    watched.end()
    assert told[-1]() == ""


def test_a_compile_is_work():
    """A call whose stack is in JAX's compiler is alive; its notice says what is compiled.

    A call may go on after it.
    """
    source = "def compile_it(seconds):\n    import time\n    time.sleep(seconds)\n"
    scope: dict = {}
    exec(compile(source, "/anywhere/site-packages/jax/_src/compiler.py", "exec"), scope)
    said: list[str] = []

    def happens(whole, *arguments):
        scope["compile_it"](SLOW)
        time.sleep(DEADLINE / 2)
        return whole(*arguments)

    program = breaking(FakeProgram(Clock(ROUNDS)), "generate", 1, happens)
    finish(asynchronous, program, monitor=LoopMonitor(say=said.append), deadline_seconds=DEADLINE)
    assert "the sampler has been in the compilation of generate of round 1" in said[0]


def test_jaxs_own_compiles_are_seen():
    """The names of its files are not public: this fails where a release renames them."""

    never_cached = time.time()

    def deep(x):
        for scale in range(300):
            x = jnp.sin(x * (scale + never_cached)) + x @ x
        return x

    lowered, seen = jax.jit(deep).lower(jnp.ones((8, 8))), False
    thread = of_thread(lowered.compile)
    while thread.is_alive():
        seen = seen or activity.compiles(thread.ident or 0)
        time.sleep(0.002)
    assert seen
    assert not activity.compiles(threading.get_ident())


def test_a_program_that_was_compiled_is_a_sign_of_life():
    activity.listen_to_compiles()
    with activity.during("a call", "call"):
        time.sleep(0.2)
        before = activity.state_of(threading.get_ident())
        jax.jit(lambda x: x * 7.25 - 2)(2.0)
        after = activity.state_of(threading.get_ident())
    assert (before.what, before.kind) == ("a call", "call")
    assert before.seconds >= 0.2 > after.seconds
