"""The sampling side of one slice: clock, pool and rows, which change together, and the snapshots of
them that checkpoints need.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from rlhf_jax.clock import Boundary, Stream, StreamState
from rlhf_jax.records.streams.snapshots import STATE
from rlhf_jax.runtime.inflight.api import Drawn, Pool, PoolState
from rlhf_jax.runtime.inflight.held import Held
from rlhf_jax.runtime.inflight.rows import Rows
from rlhf_jax.runtime.spec import Published


@dataclass(frozen=True)
class Snapshot:
    """The sampling side of a slice at a boundary, after the harvest and before a version is applied."""

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
class SliceSaving:
    """Snapshots of a slice, which a checkpoint needs beside the train states.

    Attributes:
      wanted: True for a round before which a checkpoint may be taken by its cadence.
      write: keeps the snapshot of a round: of the boundary where T first reaches it.
      note: is told each boundary and the rows that ended in its segment.
    """

    wanted: Callable[[int], bool] = lambda round_index: False
    write: Callable[[int, Snapshot], None] = lambda round_index, snapshot: None
    note: Callable[[Boundary, tuple[int, ...]], None] = lambda boundary, ended: None


class StreamSampler:
    """The sampling side of one slice, which both loops drive through `slices.SlicedSampler`."""

    def __init__(
        self,
        stream: Stream,
        pool: Pool,
        rows: Rows,
        saving: SliceSaving | None = None,
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
        self.saving = saving or SliceSaving()
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

    def save_rest(self) -> None:
        """Writes the snapshots of the rounds that are trained after the slice's last row is harvested,
        which are all the same.
        """
        self.save_passed(self.stream.clock.num_rounds - 1)

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
