"""The threaded in-flight loop: a sampling thread for each slice beside the trainer, and the same
numbers as the simulated loop of `loop.py`.

    loop      waits for                                  which needs nothing later than
    slice     the other slices: T(s_k) of its boundary   harvests of slices that are further behind
              the version u * T(s_k)                     round T(s_k) - 1, harvested before boundary k
              (pinned: each version that T passes there)
              the other slices, where it has no row      the last harvest of round T(s_k)
    trainer   a round                                    versions of the boundaries before its last harvest

Each side puts what it has made before it waits, and all waits point back in virtual time, so
none can wait for ever. The sampler computes T itself. In bounded mode it takes the newest
version there is, and waits only where no row is live and none may be admitted.
"""

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial

import jax

from rlhf_jax.devices import dispatch
from rlhf_jax.runtime import activity
from rlhf_jax.runtime.asynchronous import announce, sampling_threads
from rlhf_jax.runtime.buffer import WAKE_SECONDS, Buffer, Stopped
from rlhf_jax.runtime.inflight.loop import draw, span_of
from rlhf_jax.runtime.inflight.slices import SlicedSampler
from rlhf_jax.runtime.program import Program
from rlhf_jax.runtime.spec import Published
from rlhf_jax.runtime.synchronous import Event, LoopMonitor, train_round
from rlhf_jax.types import Samples, States


def run(
    program: Program,
    sampler: SlicedSampler,
    place: Callable[[Samples], Samples],
    states: States,
    start_round: int,
    monitor: LoopMonitor | None = None,
    deadline_seconds: float = 600.0,
    device_call_seconds: float = 0.0,
    gather: Callable[[Samples], Samples] = lambda samples: samples,
) -> Generator[Event, None, None]:
    """Trains from `start_round` to the end; see `loop.run` and, for the limits,
    `asynchronous.run`.

    Raises what either thread raised, or `buffer.Stalled`.
    """
    call_seconds = device_call_seconds or deadline_seconds
    buffer, monitor = Buffer(), monitor or LoopMonitor()
    announced = set(sampler.complete(start_round))
    for round_index in announced:
        buffer.put(round_index, place(sampler.samples(round_index)))
    drawing = [
        partial(sample_stream, sampler, index, place, buffer, monitor)
        for index in range(len(sampler.slices))
    ]
    with sampling_threads(drawing, buffer, monitor, deadline_seconds, call_seconds) as threads:
        for round_index in range(start_round, program.spec.clock.num_rounds):
            publish(program, buffer, states, round_index, monitor)
            with monitor.timeline.span("trainer", "wait", round_index):
                buffer.wait_for(round_index)
            yield from announce(buffer, announced, round_index)
            samples = gather(buffer.take(round_index))
            monitor.figures[round_index] = sampler.figures(round_index)
            states, stopped = yield from train_round(program, states, round_index, samples, monitor)
            if stopped:
                come_to_the_end(threads, buffer)
                sampler.save(round_index + 1)
                break


def publish(
    program: Program, buffer: Buffer, states: States, round_index: int, monitor: LoopMonitor
) -> None:
    """Gives the sampler the version that a round is trained from."""
    clock = program.spec.clock
    version = round_index * clock.updates_per_round
    call = activity.during(f"the publication of version {version}", "call")
    with monitor.timeline.span("trainer", "publish", round_index), call:
        buffer.publish(version, jax.block_until_ready(program.publish(states)))
    if clock.bounded:
        buffer.forget_before(version)


def come_to_the_end(threads: Sequence[threading.Thread], buffer: Buffer) -> None:
    """Waits until the sampling threads have come to the boundary whose version is not published any
    more. Raises what made the run fail in the meantime.
    """
    buffer.stop()
    with activity.during("its wait for the sampler to end", "wait"):
        for thread in threads:
            while thread.is_alive():
                buffer.raise_failure()
                thread.join(WAKE_SECONDS)
    buffer.raise_failure()


def sample_stream(
    sampler: SlicedSampler,
    slice_index: int,
    place: Callable[[Samples], Samples],
    buffer: Buffer,
    monitor: LoopMonitor,
) -> None:
    """The sampling thread of a slice. The trainer raises its exceptions.

    It ends at a boundary, whose version is not applied: the state there is that of a checkpoint.
    """
    each = sampler.slices[slice_index]
    # The slices sample at the same time: the spans of all would add up to more than that.
    spans = monitor.timeline if slice_index == 0 else None
    with ending(sampler, buffer), dispatch.one_process_only(threading.current_thread().name):
        while not each.is_drained:
            with span_of(spans, "wait", each.oldest_round):
                rounds_trained, params = take_version(sampler, slice_index, buffer)
            for round_index in draw(sampler, slice_index, params, rounds_trained, spans):
                # Before the next version is asked for, which may need this round to be trained.
                buffer.put(round_index, place(sampler.samples(round_index)))
            del params  # not held while the slice waits for the next version
        if sampler.end(slice_index):
            buffer.end_of_rounds()


@contextlib.contextmanager
def ending(sampler: SlicedSampler, buffer: Buffer) -> Iterator[None]:
    """Hands an exception of a sampling thread to the trainer and to the other slices."""
    try:
        yield
    except Stopped:
        return
    except BaseException as error:
        buffer.stop(error)
        sampler.wake()


def take_version(
    sampler: SlicedSampler, slice_index: int, buffer: Buffer
) -> tuple[int, Published | None]:
    """T of a slice's boundary and its params, for which it waits: exactly the clock's version, or in
    bounded mode the newest. None where pinned rows need no other version than those that are held.

    Snapshots of a boundary are written before it waits for a version, and in bounded mode after it.
    """
    each, clock = sampler.slices[slice_index], sampler.stream.clock
    updates = clock.updates_per_round
    if clock.bounded:
        buffer.raise_ended()
        least = sampler.rounds_trained(slice_index)
        version, params = buffer.newest(least * updates)
        rounds_trained = version // updates
        each.save_passed(rounds_trained)
        return rounds_trained, sampler.params_of(params, slice_index)
    rounds_trained, params = sampler.wait_for_time(slice_index, buffer.raise_failure), None
    for due in each.due(rounds_trained):
        buffer.raise_failure()
        each.save_passed(due)
        params = sampler.params_of(buffer.params(due * updates), slice_index)
        each.take(params, due)
    buffer.forget_before(sampler.see(slice_index, rounds_trained) * updates)
    sampler.wait_for_end_of_round(slice_index, buffer.raise_failure)
    return rounds_trained, params
