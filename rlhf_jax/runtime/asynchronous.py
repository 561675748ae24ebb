"""The asynchronous loop: a sampling thread beside the trainer, and the same numbers as the
synchronous loop of the same lag.

    loop      consumes                   waits for            is unblocked by               produces
    sampler   the version v(r)           that version         the trainer's publish         round r, in order
    trainer   round r                    that round           the sampler's put             version (r + 1) u

    trainer   publish 0 │ train 0 │ publish u │ train 1 │ publish 2u │ ...
    sampler   0, 1, ... lag │ lag + 1  (with u) │ lag + 2  (with 2u) │ ...

Where the clock chooses groups from several rounds, the trainer waits for all of them, and the buffer
holds each until no later round may be trained on it.

The clock alone decides which version samples a round. The threads decide only when that happens,
so params, samples and metrics are bit for bit those of `synchronous.run`. A bounded clock gives the
least version, and the newest published one is taken. The threads then decide the version, and the
schedule of their versions repeats the run. The loop yields the same events. A round's `Sampled`
comes when the loop is next asked for an event; the others come in the same order. A failure of
either thread ends both, with its own traceback. A thread that hangs ends the run as `stopping.py`
says.
"""

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial

import jax

from rlhf_jax.clock import Clock
from rlhf_jax.devices import dispatch, distributed
from rlhf_jax.runtime import activity, stopping
from rlhf_jax.runtime.buffer import Buffer, Stalled, Stopped
from rlhf_jax.runtime.program import Program
from rlhf_jax.runtime.spec import Published
from rlhf_jax.runtime.synchronous import (
    Event,
    LoopMonitor,
    Sampled,
    train_round,
    trained_on,
)
from rlhf_jax.types import Samples, States

JOIN_SECONDS = 10.0
"""Seconds that a failed run waits for its sampler. A hung sampler never ends, and would hide the
failure.
"""


def run(
    program: Program,
    states: States,
    start_round: int,
    pending: dict[int, Samples],
    monitor: LoopMonitor | None = None,
    deadline_seconds: float = 600.0,
    device_call_seconds: float = 0.0,
) -> Generator[Event, None, None]:
    """Trains from `start_round` to the end; see `synchronous.run`.

    Args:
      program: the compiled calls.
      states: at version start_round * updates_per_round; donated.
      start_round: the first round to train on.
      pending: samples of rounds that were issued before `start_round` and are trained on from it
        on (empty at round 0).
      monitor: of the loop; None: nothing is asked, and notices are printed.
      deadline_seconds: longest silence of a thread outside of work, calls and waits.
      device_call_seconds: longest time of one call of the devices; 0: as `deadline_seconds`.

    Raises what either thread raised, or `buffer.Stalled`. A sampler that hangs is then left behind:
    `stopping.hung_sampler`.
    """
    call_seconds = device_call_seconds or deadline_seconds
    buffer, monitor = Buffer(), monitor or LoopMonitor()
    for round_index, samples in pending.items():
        buffer.put(round_index, samples)
    issued = rounds_to_sample(program.spec.clock, start_round, pending)
    sample = partial(sample_rounds, program, buffer, issued, monitor)
    with sampling_threads([sample], buffer, monitor, deadline_seconds, call_seconds):
        yield from train(program, buffer, states, start_round, set(pending), monitor)


@contextlib.contextmanager
def sampling_threads(
    samples: Sequence[Callable[[], None]],
    buffer: Buffer,
    monitor: LoopMonitor,
    deadline_seconds: float,
    call_seconds: float,
) -> Iterator[list[threading.Thread]]:
    """Runs sampling threads beside its body, which is the trainer, and watches them all.

    Args:
      samples: of each thread; hands its exceptions to the buffer.
      buffer: between the two. An exception of the body goes there too.
      monitor: of the loop.
      deadline_seconds: longest silence of a thread outside of work, calls and waits.
      call_seconds: longest time of one call of the devices.

    Raises what the body raised, and `buffer.Stalled` where a thread does not end after it.
    """
    names = stopping.sampler_names(len(samples))
    samplers = [
        threading.Thread(target=sample, name=name, daemon=True)
        for sample, name in zip(samples, names, strict=True)
    ]
    watchdog = stopping.Watchdog(buffer, deadline_seconds, call_seconds, monitor.say)
    for sampler in samplers:
        sampler.start()
    watchdog.start(threading.current_thread(), *samplers)
    patience = min(JOIN_SECONDS, call_seconds)
    try:
        yield samplers
        patience = call_seconds
    except BaseException as error:
        buffer.stop(error)
        raise
    finally:
        buffer.stop()
        # A sampler may be in the middle of a round that nobody needs. A run that ends well waits
        # for it as long as a round may take, because a thread inside a device call can crash the
        # interpreter's exit.
        for sampler in samplers:
            sampler.join(patience)
        watchdog.end()
    if any(sampler.is_alive() for sampler in samplers):
        raise Stalled(f"the run has ended, but {stopping.hung_sampler()}")


def rounds_to_sample(clock: Clock, start_round: int, pending: dict[int, Samples]) -> list[int]:
    """The rounds that are left for the sampler, in the order in which the synchronous loop samples
    them.
    """
    if clock.bounded:
        return [r for r in range(start_round, clock.num_rounds) if r not in pending]
    return [
        r
        for at in range(start_round, clock.num_rounds)
        for r in clock.issued_at(at)
        if r not in pending
    ]


def sample_rounds(
    program: Program, buffer: Buffer, issued: list[int], monitor: LoopMonitor
) -> None:
    """The sampling thread: samples each round with the version that the clock gives it.

    The trainer raises its exceptions.
    """
    clock = program.spec.clock
    try:
        with dispatch.one_process_only(stopping.SAMPLER):
            for index, round_index in enumerate(issued):
                with monitor.timeline.span("sampler", "wait", round_index):
                    version, params = take_version(clock, buffer, round_index)
                call = activity.during(f"generate of round {round_index}", "call")
                with monitor.timeline.span("sampler", "generate", round_index), call:
                    samples = jax.block_until_ready(program.generate(params, round_index, version))
                # Dropped before the trainer has the round: an update finds its memory free.
                del params
                buffer.forget_before(
                    min((clock.version(r) for r in issued[index + 1 :]), default=version + 1)
                )
                buffer.put(round_index, samples)
            buffer.end_of_rounds()
    except Stopped:
        return
    except BaseException as error:
        buffer.stop(error)


def take_version(clock: Clock, buffer: Buffer, round_index: int) -> tuple[int, Published]:
    """Waits for the params that sample a round: exactly the clock's version, or in bounded mode the
    newest from it on.
    """
    version = clock.version(round_index)
    return buffer.newest(version) if clock.bounded else (version, buffer.params(version))


def train(
    program: Program,
    buffer: Buffer,
    states: States,
    start_round: int,
    announced: set[int],
    monitor: LoopMonitor,
) -> Generator[Event, None, None]:
    """The trainer: the synchronous loop with a wait in place of sampling."""
    clock = program.spec.clock
    used = {clock.version(r) for r in range(start_round, clock.num_rounds)}

    for round_index in range(start_round, clock.num_rounds):
        version = round_index * clock.updates_per_round
        if clock.bounded or version in used:
            call = activity.during(f"the publication of version {version}", "call")
            with monitor.timeline.span("trainer", "publish", round_index), call:
                buffer.publish(version, jax.block_until_ready(program.publish(states)))
            if clock.bounded:
                buffer.forget_before(version)
        with monitor.timeline.span("trainer", "wait", round_index):
            sampled = {r: buffer.wait_for(r) for r in clock.window(round_index)}
        yield from announce(buffer, announced, max(sampled))
        samples, selection = trained_on(program, round_index, sampled, monitor)
        states, stopped = yield from train_round(
            program, states, round_index, samples, monitor, selection
        )
        buffer.forget_rounds_before(clock.window(round_index + 1).start)
        if stopped:
            last = round_index
            for issued_round in clock.issued_before(round_index + 1):
                buffer.wait_for(issued_round)
                last = max(last, issued_round)
            yield from announce(buffer, announced, last)
            return


def announce(buffer: Buffer, announced: set[int], waited_for: int) -> Iterator[Sampled]:
    """Yields the rounds that have arrived since the last time."""
    for round_index, samples in buffer.arrived(announced).items():
        # The other rounds that have arrived differ from host to host, and what the consumer does
        # with a round is collective.
        if distributed.several() and round_index > waited_for:
            continue
        announced.add(round_index)
        yield Sampled(round_index, samples)
