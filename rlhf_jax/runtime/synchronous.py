"""The synchronous loop: the reference for the asynchronous one, for every lag and version schedule.

Each round: publish, sample the rounds that the clock issues at this version, score, credit, update.
The loop yields events. Its consumer writes, evaluates and saves between two events.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from rlhf_jax.devices import distributed
from rlhf_jax.records.timeline import Timeline
from rlhf_jax.refusal import NotFinite
from rlhf_jax.runtime import activity
from rlhf_jax.runtime.groups.selection import Selection
from rlhf_jax.runtime.program import Program
from rlhf_jax.runtime.sampler import version_range
from rlhf_jax.types import Array, Batch, Metrics, Samples, Scores, States

POLICY_FINITE = ("score", "loss", "update_norm")
CRITIC_FINITE = ("critic_loss", "critic_update_norm")
FINITE = (*POLICY_FINITE, *CRITIC_FINITE)
"""Metrics of an update that must be finite: a NaN score would count as a tie."""


@dataclass(frozen=True)
class Sampled:
    """A round was sampled; it may be trained on rounds later, and in several."""

    round_index: int
    samples: Samples


@dataclass(frozen=True)
class Scored:
    """A round is about to be trained on: `batch` is the result of credit.

    `samples` are the round's own, or groups that the clock chose from several sampled rounds.
    `selection` has the groups that the round kept, where more are sampled than are kept. `figures`
    are metrics of how the round was drawn.
    """

    round_index: int
    samples: Samples
    scores: Scores
    batch: Batch
    selection: Selection | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Updated:
    """Update `update` made version `update + 1`.

    `age` is that of the round's oldest token, in updates. `metrics` and `sample_R` are on the device; the latter
    has the rows of the round's samples that it trained on. `states` are those of version
    `update + 1`. The next update donates them, so any use of them must be dispatched before.
    """

    update: int
    age: int
    metrics: Metrics
    sample_R: Array | None
    states: States


@dataclass(frozen=True)
class RoundEnd:
    """A round is done.

    The next update donates `states`, so any use of them must be dispatched before. `stopping` is
    true for the last round of a run that was asked to stop.
    """

    round_index: int
    states: States
    stopping: bool


Event = Sampled | Scored | Updated | RoundEnd


def ended_update(event: Event) -> tuple[int, object] | None:
    """Number and metrics of the update that an event ends, or None."""
    return (event.update, event.metrics) if isinstance(event, Updated) else None


@dataclass
class LoopMonitor:
    """A loop's connections to its caller: the timeline that it writes, the request to stop after a
    round, and its notices.
    """

    timeline: Timeline = field(default_factory=Timeline)
    stopping: Callable[[], bool] = lambda: False
    unchecked: Sequence[Metrics] = ()  # of the round before, whose critic may still be training
    say: Callable[[str], None] = print
    # of rounds that may still be trained on; {} unless the run oversamples
    selections: dict[int, Selection] = field(default_factory=dict)
    # of rounds that are drawn and not trained on yet: metrics of how they were drawn, on the host
    figures: dict[int, Mapping[str, float]] = field(default_factory=dict)


def run(
    program: Program,
    states: States,
    start_round: int,
    pending: dict[int, Samples],
    monitor: LoopMonitor | None = None,
) -> Generator[Event, None, None]:
    """Trains from `start_round` to the end.

    Args:
      program: the compiled calls.
      states: at version start_round * updates_per_round; donated.
      start_round: the first round to train on.
      pending: samples of rounds that were issued before `start_round` and are trained on from it
        on (empty at round 0).
      monitor: of the loop; None: the run is never asked to stop.

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
        del sampler_params  # an update finds its memory free
        samples, selection = trained_on(program, round_index, pending, monitor)
        states, stopped = yield from train_round(
            program, states, round_index, samples, monitor, selection
        )
        if stopped:
            return
        for ended in [r for r in pending if r < clock.window(round_index + 1).start]:
            del pending[ended]


def trained_on(
    program: Program, round_index: int, sampled: Mapping[int, Samples], monitor: LoopMonitor
) -> tuple[Samples, Selection | None]:
    """The samples that a round is trained on: its own, or groups of the rounds of its window, those
    alone that were kept.

    Args:
      program: the compiled calls.
      round_index: of the round.
      sampled: has the rounds of its window.
      monitor: of the loop. It holds what was selected of the rounds of the window, so that the
        reward is asked once about a round in a process.

    Returns the samples, and where the run oversamples what was selected.
    """
    clock, selections = program.spec.clock, monitor.selections
    if program.spec.oversample == 1 and not clock.composes:
        return sampled[round_index], None
    sources = clock.sources(round_index)
    if program.spec.oversample > 1:
        for r in sources:
            if r not in selections:
                with activity.during(f"the selection of groups of round {r}", "call"):
                    selections[r] = program.select(sampled[r])
        for ended in [r for r in selections if r < sources.start]:
            del selections[ended]
    rounds = [sampled[r] for r in sources]
    with activity.during(f"the gathering of round {round_index}", "call"):
        return program.compose(rounds, round_index, [selections[r] for r in sources if selections])


def train_round(
    program: Program,
    states: States,
    round_index: int,
    samples: Samples,
    monitor: LoopMonitor,
    selection: Selection | None = None,
) -> Generator[Event, None, tuple[States, bool]]:
    """Trains on a round, for both loops.

    Args:
      program: the compiled calls.
      states: donated.
      round_index: of the round.
      samples: that it is trained on.
      monitor: of the loop.
      selection: has the raw scores of the samples; None: they are not known yet.

    Returns the states, checked to be finite, and True where a stop was requested.
    """
    clock, begin = program.spec.clock, monitor.timeline.now()
    oldest, newest = version_range(samples)
    first = round_index * clock.updates_per_round
    clock.check_version(round_index, oldest, newest)
    with activity.during(f"the scoring of round {round_index}", "call"):
        raw = None if selection is None else selection.raw
        scores, batch = program.score(states, samples, raw)
    if monitor.unchecked:
        check_updates(first - clock.updates_per_round, monitor.unchecked, CRITIC_FINITE)
    figures = monitor.figures.pop(round_index, {})
    yield Scored(round_index, samples, scores, batch, selection, figures)
    metrics_of_updates = []
    for update in range(clock.updates_per_round):
        with activity.during(f"update {first + update}", "call"):
            minibatch = program.minibatch(batch, round_index, update)
            states, metrics = program.update(states, minibatch)
        metrics_of_updates.append(metrics)
        age = clock.age(round_index, update, oldest)
        yield Updated(first + update, age, metrics, minibatch.sample_R, states)
    stopping = monitor.stopping()
    yield RoundEnd(round_index, states, stopping)
    # Only now, so that the consumer's work overlaps the updates.
    check_policy(first, scores, metrics_of_updates)
    # A critic on its own devices trains on while the next round is sampled. Its metrics are read
    # when that round has been scored.
    is_last = stopping or round_index + 1 == clock.num_rounds
    checks_later = program.critic_is_disaggregated and not is_last
    monitor.unchecked = metrics_of_updates if checks_later else []
    if not checks_later:
        check_updates(first, metrics_of_updates, CRITIC_FINITE)
    monitor.timeline.add("trainer", "train", round_index, begin)
    return states, stopping


def check_policy(first_update: int, scores: Scores, metrics_of_updates: Sequence[Metrics]) -> None:
    """Waits for the policy's updates of a round.

    Args:
      first_update: of the round.
      scores: of the round.
      metrics_of_updates: on the device.

    Raises FloatingPointError that names the first update with a metric that is not finite.
    """
    require_finite(first_update, {"score": float(np.mean(distributed.fetch(scores.score_B)))})
    check_updates(first_update, metrics_of_updates, POLICY_FINITE)


def check_updates(
    first_update: int, metrics_of_updates: Sequence[Metrics], names: Sequence[str]
) -> None:
    """Waits for some metrics of a round's updates.

    Args:
      first_update: of the round.
      metrics_of_updates: on the device.
      names: of the metrics; an update may lack some.

    Raises FloatingPointError for the first that is not finite.
    """
    for index, metrics in enumerate(metrics_of_updates):
        checked = {name: metrics[name] for name in names if name in metrics}
        # The update was dispatched before; reading its metrics waits for it.
        with activity.during(f"update {first_update + index}", "call"):
            values = {name: metric.value() for name, metric in jax.device_get(checked).items()}
        require_finite(first_update + index, values)


def require_finite(update: int, values: Mapping[str, float]) -> None:
    """Raises NotFinite for the first metric of `FINITE` that is in `values` and not finite."""
    for name in FINITE:
        if name in values and not math.isfinite(values[name]):
            raise NotFinite(
                f"the {name} of update {update} is {values[name]}: nothing from it on is published "
                "or saved"
            )
