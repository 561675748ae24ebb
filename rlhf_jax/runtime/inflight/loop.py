"""The simulated in-flight loop, the definition of the threaded one: at each boundary it trains the
rounds that the clock calls trained, and then draws a segment with their version.

    while a row of the run is not harvested:
        k       the earliest boundary of a slice
        T       rounds trained by this boundary, by the clock
        train   the rounds before T that are not trained yet
        in each slice at boundary k:
            admit   rows into free slots, under version u * T (pinned: under that of their round)
            segment of at most `segment_steps` decode steps
            harvest rows that have ended; a round is complete with its last one, of all slices
    train the rest

Pinned rows need every version that T reaches, so that the sampler takes each of them before the next
round is trained. The events are those of `synchronous.run`.
"""

import contextlib
from collections.abc import Callable, Generator

import jax

from rlhf_jax.records.timeline import Timeline, What
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime import activity
from rlhf_jax.runtime.inflight.slices import SlicedSampler
from rlhf_jax.runtime.program import Program
from rlhf_jax.runtime.spec import Published
from rlhf_jax.runtime.synchronous import Event, LoopMonitor, Sampled, train_round
from rlhf_jax.types import Samples, States


def run(
    program: Program,
    sampler: SlicedSampler,
    place: Callable[[Samples], Samples],
    states: States,
    start_round: int,
    monitor: LoopMonitor | None = None,
    gather: Callable[[Samples], Samples] = lambda samples: samples,
) -> Generator[Event, None, None]:
    """Trains from `start_round` to the end; see `synchronous.run`.

    Args:
      program: the compiled calls; its clock is the stream's.
      sampler: at boundary 0, or from the snapshot of `start_round`.
      place: puts samples of the host on the mesh of the trainer.
      states: at version start_round * updates_per_round; donated.
      start_round: the first round to train on.
      monitor: of the loop; None: the run is never asked to stop.
      gather: makes a round of placed samples, which of several processes are each one's rows.
        Collective.

    Raises as `synchronous.run`, and Refusal for a bounded clock.
    """
    clock, monitor = program.spec.clock, monitor or LoopMonitor()
    if clock.bounded:
        raise Refusal("a bounded clock needs the threaded loop: here nothing overlaps")
    pending = {r: place(sampler.samples(r)) for r in sampler.complete(start_round)}
    next_round, published, params = start_round, -1, None
    while not sampler.is_drained:
        at_boundary = sampler.next()
        rounds_trained = sampler.rounds_trained(at_boundary[0])
        for version in sampler.slices[at_boundary[0]].due(rounds_trained):
            for index in at_boundary:
                sampler.slices[index].save_passed(version)
            while next_round < version:
                samples = gather(pending.pop(next_round))
                monitor.figures[next_round] = sampler.figures(next_round)
                states, stopped = yield from train_round(
                    program, states, next_round, samples, monitor
                )
                next_round += 1
                if stopped:
                    sampler.save(next_round)
                    return
            if published < version:
                params = None  # dropped before the next copy is made
                with monitor.timeline.span("trainer", "publish", version):
                    params = jax.block_until_ready(program.publish(states))
                published = version
            assert params is not None
            for index in at_boundary:
                sampler.slices[index].take(sampler.params_of(params, index), version)
        for index in at_boundary:
            of_slice = None if params is None else sampler.params_of(params, index)
            for round_index in draw(sampler, index, of_slice, rounds_trained, monitor.timeline):
                pending[round_index] = place(sampler.samples(round_index))
                yield Sampled(round_index, pending[round_index])
            if sampler.slices[index].is_drained:
                sampler.end(index)
    for round_index in range(next_round, clock.num_rounds):
        samples = gather(pending.pop(round_index))
        monitor.figures[round_index] = sampler.figures(round_index)
        states, stopped = yield from train_round(program, states, round_index, samples, monitor)
        if stopped:
            sampler.save(round_index + 1)
            return


def draw(
    sampler: SlicedSampler,
    slice_index: int,
    params: Published | None,
    rounds_trained: int,
    spans: Timeline | None,
) -> tuple[int, ...]:
    """`SlicedSampler.draw` as a span of the timeline and an activity of the thread, for both loops.

    Args:
      sampler: of the run.
      slice_index: as `SlicedSampler.draw` takes it, like the following two.
      params: of the slice.
      rounds_trained: T of the boundary.
      spans: gets the span; None: it is of a thread beside the one that the timeline shows.
    """
    each = sampler.slices[slice_index]
    call = activity.during(f"segment {each.state.boundary} of the slots", "call")
    with span_of(spans, "generate", each.oldest_round), call:
        return sampler.draw(slice_index, params, rounds_trained)


def span_of(
    spans: Timeline | None, what: What, round_index: int
) -> contextlib.AbstractContextManager[None]:
    """A span of the sampler; of no timeline nothing is recorded."""
    return contextlib.nullcontext() if spans is None else spans.span("sampler", what, round_index)
