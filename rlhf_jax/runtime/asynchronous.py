"""The asynchronous loop: a sampling thread beside the trainer, and the same numbers as the synchronous loop of the same lag.

    loop      consumes                   waits for            is unblocked by               produces
    sampler   the version v(r)           that version         the trainer's publish         round r, in order
    trainer   round r                    that round           the sampler's put             version (r + 1) u

    trainer   publish 0 │ train 0 │ publish u │ train 1 │ publish 2u │ ...
    sampler   0, 1, ... lag │ lag + 1  (with u) │ lag + 2  (with 2u) │ ...

Which version samples a round is the clock's alone, so the threads decide when a thing happens and never what: params, samples
and metrics are bit for bit those of `synchronous.run`. It yields the same events. A round's `Sampled` comes before the next
event once it is there; the others come in the same order. A failure of either thread ends both, with its own traceback.
"""

import threading
from collections.abc import Generator

import jax

from rlhf_jax.runtime.buffer import Buffer, Stopped
from rlhf_jax.runtime.clock import Clock
from rlhf_jax.runtime.program import Program
from rlhf_jax.runtime.synchronous import Event, RoundEnd, Sampled, Scored, Updated
from rlhf_jax.types import Samples, States


def run(
    program: Program,
    states: States,
    start_round: int,
    pending: dict[int, Samples],
    deadline_seconds: float = 600.0,
) -> Generator[Event, None, None]:
    """Trains from `start_round` to the end; see `synchronous.run`. Raises what either thread raised, or `buffer.Stalled`."""
    buffer = Buffer(deadline_seconds)
    for round_index, samples in pending.items():
        buffer.put(round_index, samples)
    issued = rounds_to_sample(program.setup.clock, start_round, pending)
    sampler = threading.Thread(target=sample_rounds, args=(program, buffer, issued), name="sampler", daemon=True)
    sampler.start()
    try:
        yield from train(program, buffer, states, start_round, set(pending))
    except BaseException as error:
        buffer.stop(error)
        raise
    finally:
        buffer.stop()
        sampler.join()


def rounds_to_sample(clock: Clock, start_round: int, pending: dict[int, Samples]) -> list[int]:
    """The rounds that are left for the sampler, in the order in which the synchronous loop samples them."""
    return [r for at in range(start_round, clock.num_rounds) for r in clock.issued_at(at) if r not in pending]


def sample_rounds(program: Program, buffer: Buffer, issued: list[int]) -> None:
    """The sampling thread: each round with the version that the clock gives it. What it raises, the trainer raises."""
    try:
        for place, round_index in enumerate(issued):
            version = program.setup.clock.version(round_index)
            samples = program.generate(buffer.params(version), round_index, version)
            buffer.put(round_index, jax.block_until_ready(samples))
            later = issued[place + 1 :]
            buffer.forget_before(min((program.setup.clock.version(r) for r in later), default=version + 1))
    except Stopped:
        return
    except BaseException as error:
        buffer.stop(error)


def train(
    program: Program, buffer: Buffer, states: States, start_round: int, announced: set[int]
) -> Generator[Event, None, None]:
    """The trainer: the synchronous loop with a wait in the place of sampling."""
    clock = program.setup.clock
    used = {clock.version(r) for r in range(start_round, clock.num_rounds)}

    for round_index in range(start_round, clock.num_rounds):
        version = round_index * clock.updates_per_round
        if version in used:
            buffer.publish(version, program.publish(states))
        samples = buffer.take(round_index)
        if round_index not in announced:
            announced.add(round_index)
            yield Sampled(round_index, samples)
        scores, batch = program.score(states, samples)
        yield Scored(round_index, samples, scores)
        for update in range(clock.updates_per_round):
            states, metrics = program.update(states, program.minibatch(batch, round_index, update))
            yield Updated(version + update, clock.age(round_index, update), metrics)
        for index, ahead in buffer.arrived(announced).items():
            announced.add(index)
            yield Sampled(index, ahead)
        yield RoundEnd(round_index, states)
