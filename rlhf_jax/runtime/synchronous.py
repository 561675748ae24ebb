"""The synchronous loop: the definition of what the asynchronous one means, for every lag and trace.

Each round: publish, sample what the clock issues at this version, score, credit, update. The loop
yields what happened, and its consumer writes, evaluates and saves between two steps.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from rlhf_jax.devices import distributed
from rlhf_jax.records.timeline import Timeline
from rlhf_jax.refusal import NotFinite
from rlhf_jax.runtime import activity
from rlhf_jax.runtime.program import Program
from rlhf_jax.types import Array, Batch, Metrics, Samples, Scores, States

POLICY_FINITE = ("score", "loss", "update_norm")
CRITIC_FINITE = ("critic_loss", "critic_update_norm")
FINITE = (*POLICY_FINITE, *CRITIC_FINITE)
"""Figures of an update that must be finite: a NaN score would pass as a tie."""


@dataclass(frozen=True)
class Sampled:
    """A round was sampled; it may be trained on `lag` rounds later."""

    round_index: int
    samples: Samples


@dataclass(frozen=True)
class Scored:
    """A round is about to be trained on: `batch` is what credit made of it."""

    round_index: int
    samples: Samples
    scores: Scores
    batch: Batch


@dataclass(frozen=True)
class Updated:
    """Update `update` made version `update + 1`; `age` is that of its samples, in updates. Metrics
    are on the device, and so is `sample_R`: the rows of the round's samples that it trained on.

    `states` are those of version `update + 1`. The next update donates them: what is needed of them
    must be dispatched before.
    """

    update: int
    age: int
    metrics: Any
    sample_R: Array | None
    states: States


@dataclass(frozen=True)
class RoundEnd:
    """A round is done. `states` are donated by the next update: what is needed of them must be
    dispatched before.

    `stopping`: this is the last one, because the run was asked to stop.
    """

    round_index: int
    states: States
    stopping: bool


Event = Sampled | Scored | Updated | RoundEnd


@dataclass
class LoopMonitor:
    """A loop's connections to whoever runs it: the timeline it writes, the request to stop after a
    round, and its notices.
    """

    timeline: Timeline = field(default_factory=Timeline)
    stopping: Callable[[], bool] = lambda: False
    unchecked: Sequence[Metrics] = ()  # of the round before, whose critic may be training still
    say: Callable[[str], None] = print


def run(
    program: Program,
    states: States,
    start_round: int,
    pending: dict[int, Samples],
    monitor: LoopMonitor | None = None,
) -> Generator[Event, None, None]:
    """Trains from `start_round` to the end.

    Args:
      states: at version start_round * updates_per_round; donated.
      pending: samples of later rounds that were issued before `start_round` (empty at round 0).

    Raises FloatingPointError before a version is published that is not finite; Refusal for a
    bounded clock.
    """
    clock, monitor = program.spec.clock, monitor or LoopMonitor()
    for round_index in range(start_round, clock.num_rounds):
        with monitor.timeline.span("trainer", "publish", round_index):
            sampler_params = program.publish(states)
        for issued in clock.issued_at(round_index):
            with monitor.timeline.span("sampler", "generate", issued):
                version = round_index * clock.updates_per_round
                pending[issued] = jax.block_until_ready(
                    program.generate(sampler_params, issued, version)
                )
            yield Sampled(issued, pending[issued])
        states, stopped = yield from train_round(
            program, states, round_index, pending.pop(round_index), monitor
        )
        if stopped:
            return


def train_round(
    program: Program, states: States, round_index: int, samples: Samples, monitor: LoopMonitor
) -> Generator[Event, None, tuple[States, bool]]:
    """Trains on a round, for both loops.

    Returns the states, checked to be finite, and True where a stop was requested.
    """
    clock, begin = program.spec.clock, monitor.timeline.now()
    version, first = int(samples.version), round_index * clock.updates_per_round
    clock.check_version(round_index, version)
    with activity.during(f"the scoring of round {round_index}", "call"):
        scores, batch = program.score(states, samples)
    if monitor.unchecked:
        check_updates(first - clock.updates_per_round, monitor.unchecked, CRITIC_FINITE)
    yield Scored(round_index, samples, scores, batch)
    made = []
    for update in range(clock.updates_per_round):
        with activity.during(f"update {first + update}", "call"):
            minibatch = program.minibatch(batch, round_index, update)
            states, metrics = program.update(states, minibatch)
        made.append(metrics)
        age = clock.age(round_index, update, version)
        yield Updated(first + update, age, metrics, minibatch.sample_R, states)
    stopping = monitor.stopping()
    yield RoundEnd(round_index, states, stopping)
    check_policy(first, scores, made)  # only now: what the reader does runs beside the updates
    # A critic on devices of its own trains on while the next round is sampled: its figures are read
    # when that has been scored.
    later = program.trains_apart and not stopping and round_index + 1 < clock.num_rounds
    monitor.unchecked = made if later else []
    if not later:
        check_updates(first, made, CRITIC_FINITE)
    monitor.timeline.add("trainer", "train", round_index, begin)
    return states, stopping


def check_policy(first_update: int, scores: Scores, made: Sequence[Metrics]) -> None:
    """Waits for the policy's updates of a round. Raises FloatingPointError that names the first one
    with a figure that is not finite.
    """
    require_finite(first_update, {"score": float(np.mean(distributed.fetch(scores.score_B)))})
    check_updates(first_update, made, POLICY_FINITE)


def check_updates(first_update: int, made: Sequence[Metrics], names: Sequence[str]) -> None:
    """Waits for those figures of a round's updates.

    Raises FloatingPointError for the first that is not finite.
    """
    for place, metrics in enumerate(made):
        of_update = {name: metrics[name] for name in names if name in metrics}
        with activity.during(
            f"update {first_update + place}", "call"
        ):  # dispatched before, and waited for here
            values = {name: metric.value() for name, metric in jax.device_get(of_update).items()}
        require_finite(first_update + place, values)


def require_finite(update: int, values: Mapping[str, float]) -> None:
    """Raises NotFinite for the first of `FINITE` that is not; figures that are not in `values` are
    not asked for.
    """
    for name in FINITE:
        if name in values and not math.isfinite(values[name]):
            raise NotFinite(
                f"the {name} of update {update} is {values[name]}: nothing from it on is published "
                "or saved"
            )
