"""The simulated in-flight loop, the definition of the threaded one: at each boundary it trains the
rounds that the clock calls trained, and then draws a segment with their version.

    while a row of the run is not harvested:
        T       rounds trained by this boundary, by the clock
        train   the rounds before T that are not trained yet
        admit   rows into free slots, under version u * T (pinned: under that of their round)
        segment of at most `segment_steps` decode steps
        harvest rows that have ended; a round is complete with its last one
    train the rest

Pinned rows need every version that T reaches, so that the sampler takes each of them before the next
round is trained. The events are those of `synchronous.run`.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

import jax
import numpy as np

from rlhf_jax.clock import Boundary, Stream, StreamState
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime import activity
from rlhf_jax.runtime.inflight.api import Drawn, Pool, PoolState
from rlhf_jax.runtime.inflight.held import Held
from rlhf_jax.runtime.inflight.rows import Rows
from rlhf_jax.runtime.program import Program
from rlhf_jax.runtime.spec import Published
from rlhf_jax.runtime.synchronous import Event, LoopMonitor, Sampled, train_round
from rlhf_jax.types import Samples, States

STATE = "stream"
"""The name of the clock's state among the arrays of a snapshot."""


@dataclass(frozen=True)
class Snapshot:
    """The sampling side at a boundary, after the harvest and before a version is applied: the part
    of a checkpoint beside the train states.
    """

    state: StreamState
    rows: Mapping[str, np.ndarray]
    pool: PoolState
    versions: Mapping[str, np.ndarray] = field(default_factory=dict)  # of `Held`, for pinned rows

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as named arrays, to be written to a file."""
        text = json.dumps(dataclasses.asdict(self.state)).encode()
        named = {f"rows.{name}": array for name, array in self.rows.items()}
        named |= {f"pool.{name}": array for name, array in self.pool.items()}
        named |= {f"versions.{name}": array for name, array in self.versions.items()}
        return named | {STATE: np.frombuffer(text, np.uint8)}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Snapshot":
        """The snapshot whose `arrays` were written."""

        def part(prefix: str) -> dict[str, np.ndarray]:
            return {n.removeprefix(prefix): x for n, x in arrays.items() if n.startswith(prefix)}

        state = StreamState.from_json(json.loads(arrays[STATE].tobytes().decode()))
        return cls(state, part("rows."), part("pool."), part("versions."))


@dataclass(frozen=True)
class Saving:
    """Snapshots of the sampling side, which a checkpoint needs beside the train states.

    Attributes:
      wanted: True for a round before which a checkpoint may be taken by its cadence.
      write: keeps the snapshot of a round: of the boundary where T first reaches it.
      note: is told each boundary and the rows that ended in its segment.
    """

    wanted: Callable[[int], bool] = lambda round_index: False
    write: Callable[[int, Snapshot], None] = lambda round_index, snapshot: None
    note: Callable[[Boundary, tuple[int, ...]], None] = lambda boundary, ended: None


class StreamSampler:
    """The sampling side of both loops: clock, pool and rows, which change together."""

    def __init__(
        self,
        stream: Stream,
        pool: Pool,
        rows: Rows,
        saving: Saving | None = None,
        snapshot: Snapshot | None = None,
        dispatch_lock: contextlib.AbstractContextManager[object] | None = None,
        held: Held | None = None,
    ):
        """Begins at boundary 0, or goes on from a snapshot.

        Args:
          stream: the clock.
          pool: with `stream.num_slots` slots, empty.
          rows: empty.
          saving: of snapshots; None: none is kept.
          snapshot: of an equal sampler.
          dispatch_lock: is held while the pool's programs run, where the trainer shares their
            devices; None: no lock.
          held: of a pinned clock, empty; None: rows are in flight.
        """
        if stream.clock.pinned != (held is not None):
            raise ValueError("a pinned clock, and no other, holds versions side by side")
        self.stream, self.pool, self.rows, self.held = stream, pool, rows, held
        self._lock = dispatch_lock or contextlib.nullcontext()
        self.saving = saving or Saving()
        self.state = stream.begin() if snapshot is None else snapshot.state
        if snapshot is not None:
            rows.restore(snapshot.rows)
            pool.restore(snapshot.pool)
            if held is not None:
                held.restore(snapshot.versions)

    @property
    def is_drained(self) -> bool:
        """True where every row of the run is harvested."""
        return self.stream.is_drained(self.state)

    @property
    def oldest_round(self) -> int:
        """The first round with a row that is not harvested; the spans of a timeline are its."""
        left = [r for r, _ in self.state.rows_left]
        live = [row // self.stream.rows_per_round for row in self.state.row_of_slot if row >= 0]
        return min([*left, *live, self.state.next_row // self.stream.rows_per_round])

    def complete(self, first_round: int) -> list[int]:
        """Rounds from `first_round` on whose rows are all harvested."""
        partly = [r for r, _ in self.state.rows_left]
        live = [row // self.stream.rows_per_round for row in self.state.row_of_slot if row >= 0]
        return [r for r in self.rows.complete([*partly, *live]) if r >= first_round]

    def due(self, rounds_trained: int) -> range:
        """The versions to `take` at this boundary, in trained rounds: its own, or with pinned rows
        all that are not held yet.

        Args:
          rounds_trained: T of this boundary.
        """
        first = rounds_trained if self.held is None else self.held.newest + 1
        return range(first, rounds_trained + 1)

    def take(self, params: Published, version: int) -> None:
        """Takes a version that is `due`. In flight `draw` is given it, and nothing is kept here.

        Args:
          params: of the version.
          version: in trained rounds.
        """
        if self.held is not None:
            self.held.take(params, version)

    def save_passed(self, rounds_trained: int) -> None:
        """Writes the snapshots of the rounds that T reaches at this boundary and that are wanted.

        Args:
          rounds_trained: T of this boundary, or a version that is due there and not taken yet.
        """
        passed = self.state.rounds_trained
        passed = passed if self.held is None else max(passed, self.held.newest)
        for round_index in range(passed + 1, rounds_trained + 1):
            if self.saving.wanted(round_index):
                self.save(round_index)

    def save(self, round_index: int) -> None:
        """Writes the snapshot of a round, before which a checkpoint is taken.

        The cache is left out where going on rebuilds it.
        """
        rebuilds = self.stream.rebuilds(self.state, round_index)
        pool = self.pool.saved(keeps_cache=not rebuilds)
        rows, versions = self.rows.saved(round_index), self.held.saved() if self.held else {}
        self.saving.write(round_index, Snapshot(self.state, rows, pool, versions))

    def draw(self, params: Published | None, rounds_trained: int) -> tuple[int, ...]:
        """Passes a boundary and draws its segment. Returns the rounds that are then complete.

        Args:
          params: of version u * rounds_trained; None with pinned rows: those that were taken.
          rounds_trained: T of this boundary.
        """
        boundary, self.state = self.stream.admit(self.state, rounds_trained)
        self.rows.forget_before(rounds_trained)
        complete, ended = (), ()
        with self._lock:
            drawn = self._segment(params, boundary)
        if drawn is not None:
            self.rows.add(drawn, boundary.row_of_slot, boundary.version_of_slot)
            complete, self.state = self.stream.harvest(self.state, drawn.ended_S.tolist())
            slots = zip(boundary.row_of_slot, self.state.row_of_slot, strict=True)
            ended = tuple(row for row, left in slots if row != left)
        self.saving.note(boundary, ended)
        return complete

    def _segment(self, params: Published | None, boundary: Boundary) -> Drawn | None:
        """The pool's part of a boundary; None where no row is being written."""
        if self.held is not None:
            return self._pinned_segment(self.held, boundary)
        assert params is not None
        if boundary.rebuilds:
            self.pool.rebuild(params)
        if boundary.is_idle:
            return None
        if boundary.rows:
            self.pool.admit(params, boundary.rows, boundary.slots)
        return self.pool.segment(params)

    def _pinned_segment(self, held: Held, boundary: Boundary) -> Drawn | None:
        if boundary.is_idle:
            return None
        updates = self.stream.clock.updates_per_round
        place_S = [held.place(version // updates) for version in boundary.version_of_slot]
        if boundary.rows:
            places = [place_S[slot] for slot in boundary.slots]
            self.pool.admit(held.params, boundary.rows, boundary.slots, places)
        return self.pool.segment(held.params)


def run(
    program: Program,
    sampler: StreamSampler,
    place: Callable[[Samples], Samples],
    states: States,
    start_round: int,
    monitor: LoopMonitor | None = None,
) -> Generator[Event, None, None]:
    """Trains from `start_round` to the end; see `synchronous.run`.

    Args:
      program: the compiled calls; its clock is the stream's.
      sampler: at boundary 0, or from the snapshot of `start_round`.
      place: puts samples of the host on the mesh of the trainer.
      states: at version start_round * updates_per_round; donated.
      start_round: the first round to train on.
      monitor: of the loop; None: the run is never asked to stop.

    Raises as `synchronous.run`, and Refusal for a bounded clock.
    """
    clock, monitor = program.spec.clock, monitor or LoopMonitor()
    if clock.bounded:
        raise Refusal("a bounded clock needs the threaded loop: here nothing overlaps")
    pending = {r: taken(sampler, r, place, monitor) for r in sampler.complete(start_round)}
    next_round, published, params = start_round, -1, None
    while not sampler.is_drained:
        rounds_trained = sampler.stream.rounds_trained(sampler.state)
        for version in sampler.due(rounds_trained):
            sampler.save_passed(version)
            while next_round < version:
                states, stopped = yield from train_round(
                    program, states, next_round, pending.pop(next_round), monitor
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
            sampler.take(params, version)
        for round_index in draw(sampler, params, rounds_trained, monitor):
            pending[round_index] = taken(sampler, round_index, place, monitor)
            yield Sampled(round_index, pending[round_index])
    save_rest(sampler)
    for round_index in range(next_round, clock.num_rounds):
        states, stopped = yield from train_round(
            program, states, round_index, pending.pop(round_index), monitor
        )
        if stopped:
            sampler.save(round_index + 1)
            return


def draw(
    sampler: StreamSampler, params: Published | None, rounds_trained: int, monitor: LoopMonitor
) -> tuple[int, ...]:
    """`StreamSampler.draw` as a span of the timeline and an activity of the thread, for both loops."""
    call = activity.during(f"segment {sampler.state.boundary} of the slots", "call")
    with monitor.timeline.span("sampler", "generate", sampler.oldest_round), call:
        return sampler.draw(params, rounds_trained)


def taken(
    sampler: StreamSampler,
    round_index: int,
    place: Callable[[Samples], Samples],
    monitor: LoopMonitor,
) -> Samples:
    """The placed samples of a complete round, whose figures the monitor gets, for both loops."""
    monitor.figures[round_index] = sampler.rows.figures(round_index)
    return place(sampler.rows.samples(round_index))


def save_rest(sampler: StreamSampler) -> None:
    """Writes the snapshots of the rounds that are trained after the last row is harvested, which
    are all the same.
    """
    sampler.save_passed(sampler.stream.clock.num_rounds - 1)
