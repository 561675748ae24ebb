"""Snapshots of all slices at one boundary, and the schedule of all slices in the order of time.

Slices come to a boundary one after another. A snapshot of the run is whole with the last of them,
and a line of the schedule is handed on once no slice can have an earlier one. So neither depends on
which slice is fast.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlhf_jax.clock import Boundary, Stream, run_row
from rlhf_jax.records.streams.snapshots import STATE
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime.inflight.one_slice import SliceSaving, Snapshot

PAST = 2**62  # a boundary after all others


@dataclass(frozen=True)
class Cut:
    """The sampling side of a run, slice by slice, at the boundary where T first reaches a round: the
    part of a checkpoint beside the train states. Of a slice whose rows have all ended it is the last
    state.

    Attributes:
      slices: of one process, or of all.
      first: the index of the first of them.
      num_slices: H, of all processes.
    """

    slices: tuple[Snapshot, ...]
    first: int = 0
    num_slices: int = 1

    @property
    def boundary(self) -> int:
        """The boundary that comes next."""
        return max(each.state.boundary for each in self.slices)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as named arrays, to be written to a file."""
        if self.num_slices == 1:
            return self.slices[0].arrays()
        return {
            f"slice{index}.{name}": array
            for index, each in enumerate(self.slices, self.first)
            for name, array in each.arrays().items()
        }

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], num_slices: int = 1) -> "Cut":
        """The snapshot whose `arrays` were written.

        Args:
          arrays: by name.
          num_slices: H of the run that goes on.

        Raises Refusal for the snapshot of a run with another number of slices.
        """
        saved = 1 if STATE in arrays else len({name.partition(".")[0] for name in arrays})
        if saved != num_slices:
            raise Refusal(
                f"the saved slots are those of {saved} slice(s), and this run has {num_slices}, "
                "whose prompts are others; resume with the rlhf.sampler_slices of the run"
            )
        if saved == 1:
            return cls((Snapshot.of(arrays),))
        parts: list[dict[str, np.ndarray]] = [{} for _ in range(saved)]
        for name, array in arrays.items():
            place, _, rest = name.partition(".")
            parts[int(place.removeprefix("slice"))][rest] = array
        return cls(tuple(map(Snapshot.of, parts)), num_slices=saved)


@dataclass(frozen=True)
class Saving:
    """Records of the sampling side of a run.

    Attributes:
      wanted: True for a round before which a checkpoint may be taken by its cadence.
      write: keeps the snapshot of a round: of the boundary where T first reaches it.
      note: is told each boundary of each slice in order, with the rows that ended in its segment and
        the slice. Rows are those of the run.
    """

    wanted: Callable[[int], bool] = lambda round_index: False
    write: Callable[[int, Cut], None] = lambda round_index, cut: None
    note: Callable[[Boundary, tuple[int, ...], int], None] = lambda boundary, ended, index: None


class Cuts:
    """Collects what the slices save and note; they may do so from a thread each."""

    def __init__(
        self,
        saving: Saving,
        stream: Stream,
        samples_per_prompt: int,
        here: range | None = None,
    ):
        """Collects nothing yet.

        Args:
          saving: gets snapshots that are whole, and lines in order.
          stream: the clock of each slice.
          samples_per_prompt: G.
          here: the slices of this process; None: all.
        """
        self._here = range(stream.num_slices) if here is None else here
        self._saving, self._stream, self._group = saving, stream, samples_per_prompt
        self._lock = threading.Lock()
        self._parts: dict[int, dict[int, Snapshot]] = {}
        self._lines: list[tuple[int, int, Boundary, tuple[int, ...]]] = []
        self._noted = dict.fromkeys(self._here, -1)  # the last boundary that each slice has passed

    def of(self, slice_index: int) -> SliceSaving:
        """The records of one slice, to be given to its sampler."""

        def write(round_index: int, snapshot: Snapshot) -> None:
            self._write(slice_index, round_index, snapshot)

        def note(boundary: Boundary, ended: tuple[int, ...]) -> None:
            self._note(slice_index, boundary, ended)

        return SliceSaving(self._saving.wanted, write, note)

    def _write(self, slice_index: int, round_index: int, snapshot: Snapshot) -> None:
        with self._lock:
            self._pass(slice_index, snapshot.state.boundary - 1)
            parts = self._parts.setdefault(round_index, {})
            parts[slice_index] = snapshot
            if len(parts) == len(self._here):
                del self._parts[round_index]
                whole = tuple(parts[index] for index in self._here)
                cut = Cut(whole, self._here.start, self._stream.num_slices)
                self._saving.write(round_index, cut)

    def _note(self, slice_index: int, boundary: Boundary, ended: tuple[int, ...]) -> None:
        named = replace(
            boundary,
            rows=self._run_rows(slice_index, boundary.rows),
            row_of_slot=self._run_rows(slice_index, boundary.row_of_slot),
        )
        with self._lock:
            line = boundary.index, slice_index, named, self._run_rows(slice_index, ended)
            self._lines.append(line)
            self._pass(slice_index, boundary.index)

    def _run_rows(self, slice_index: int, rows: Sequence[int]) -> tuple[int, ...]:
        num_slices = self._stream.num_slices
        return tuple(
            row if row < 0 else run_row(row, slice_index, num_slices, self._group) for row in rows
        )

    def end(self, slice_index: int) -> None:
        """Records that a slice has no more boundaries."""
        with self._lock:
            self._pass(slice_index, PAST)

    def _pass(self, slice_index: int, boundary: int) -> None:
        """Hands on the lines of the boundaries that every slice has passed."""
        self._noted[slice_index] = max(self._noted[slice_index], boundary)
        last = min(self._noted.values())
        passed = [line for line in self._lines if line[0] <= last]
        self._lines = [line for line in self._lines if line[0] > last]
        for _, index, named, ended in sorted(passed, key=lambda line: line[:2]):
            self._saving.note(named, ended, index)
