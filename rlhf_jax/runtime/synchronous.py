"""The synchronous loop: the definition of what the asynchronous one means, for every lag and trace.

Each round: publish, sample what the clock issues at this version, score, credit, update. The loop yields what happened, and its
consumer writes, evaluates and saves between two steps.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from rlhf_jax.runtime.program import Program
from rlhf_jax.types import Samples, Scores, States


@dataclass(frozen=True)
class Sampled:
    """A round was sampled; it may be trained on `lag` rounds later."""

    round_index: int
    samples: Samples


@dataclass(frozen=True)
class Scored:
    """A round is about to be trained on."""

    round_index: int
    samples: Samples
    scores: Scores


@dataclass(frozen=True)
class Updated:
    """Update `update` made version `update + 1`; `age` is that of its samples, in updates. Metrics are on the device."""

    update: int
    age: int
    metrics: Any


@dataclass(frozen=True)
class RoundEnd:
    """A round is done. `states` are donated by the next update: what is needed of them must be dispatched before."""

    round_index: int
    states: States


Event = Sampled | Scored | Updated | RoundEnd


def run(
    program: Program, states: States, start_round: int, pending: dict[int, Samples]
) -> Generator[Event, None, None]:
    """Trains from `start_round` to the end.

    Args:
      states: at version start_round * updates_per_round; donated.
      pending: samples of later rounds that were issued before `start_round` (empty at round 0).
    """
    clock = program.setup.clock
    for round_index in range(start_round, clock.num_rounds):
        version = round_index * clock.updates_per_round
        sampler_params = program.publish(states)
        for issued in clock.issued_at(round_index):
            pending[issued] = program.generate(sampler_params, issued, version)
            yield Sampled(issued, pending[issued])
        samples = pending.pop(round_index)
        scores, batch = program.score(states, samples)
        yield Scored(round_index, samples, scores)
        for update in range(clock.updates_per_round):
            states, metrics = program.update(states, program.minibatch(batch, round_index, update))
            yield Updated(version + update, clock.age(round_index, update), metrics)
        yield RoundEnd(round_index, states)
