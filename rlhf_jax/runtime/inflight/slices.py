"""The sampling sides of all slices, which draw the rounds together on one virtual clock.

Each of several processes has slices of its own. A slice tells the others its boundary and the rounds
that it has ended, as a notice that any thread may write (`devices/processes/messages.py`):

    [c, [[round, its end in the slice, *`Rows.slot_counts`], ...]]

Every process computes the same T from them, so that none decides.
"""

import json
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from rlhf_jax.clock import Slices, StreamState
from rlhf_jax.devices.processes.messages import Board
from rlhf_jax.runtime import activity
from rlhf_jax.runtime.buffer import WAKE_SECONDS
from rlhf_jax.runtime.inflight.cuts import Cuts, Saving
from rlhf_jax.runtime.inflight.held import published_to
from rlhf_jax.runtime.inflight.one_slice import StreamSampler
from rlhf_jax.runtime.inflight.rows import busy_figures, interleaved
from rlhf_jax.runtime.spec import Published
from rlhf_jax.types import Samples

POLL_SECONDS = 0.005  # between two looks at the notices of other processes
ENDED = 2**62  # T of a slice whose rows are all harvested: it needs no version any more


class SlicedSampler:
    """The slices of this process, one or several, and the time that they share with those of other
    processes. Methods take the index of a slice among those of this process.

    The simulated loop drives all of them from one thread, in the order of virtual time. The threaded
    loop has a thread for each, and `draw` of different slices may run at the same time.
    """

    def __init__(
        self,
        slices: Sequence[StreamSampler],
        cuts: Cuts | None = None,
        first: int = 0,
        states: Sequence[StreamState] = (),
    ):
        """Begins at the boundaries of the slices.

        Args:
          slices: each at boundary 0, or all from one `Cut`.
          cuts: whose records the slices were given; None: they keep none.
          first: the index of the first of them among the slices of all processes.
          states: of the slices of all processes; (): boundary 0, or all slices are here.
        """
        self.slices, self.stream, self.first = tuple(slices), slices[0].stream, first
        self._clock = Slices(self.stream)
        self._changed = threading.Condition()
        here = range(first, first + len(self.slices))
        begun = list(states) or [self.stream.begin()] * self.stream.num_slices
        begun[first : here.stop] = [each.state for each in slices]
        self._shared = self._clock.begin(begun)
        self._board = Board()
        self._others = dict.fromkeys(set(range(self.stream.num_slices)) - set(here), "")
        self._told: list[dict[int, list[int]]] = [{} for _ in slices]  # by slice and round
        self._counts: dict[int, dict[int, np.ndarray]] = {}  # of the others, by round and slice
        self._cuts = cuts or Cuts(Saving(), self.stream, 1, here)
        self._seen = [each.state.rounds_trained for each in self.slices]  # T by slice
        self._shares: dict[int, set[int]] = {}  # slices that have ended a round, by round
        for index, each in enumerate(self.slices):
            for round_index in each.complete(0):
                self._shares.setdefault(round_index, set()).add(index)
            self._tell(index)
            if each.is_drained:
                self.end(index)

    @property
    def is_drained(self) -> bool:
        """True where every row of the run is harvested."""
        return all(each.is_drained for each in self.slices)

    @property
    def recorded(self) -> tuple[int, ...]:
        """`Stream.recorded` of the slice that has come furthest."""
        return max((self.stream.recorded(each.state) for each in self.slices), key=len)

    def complete(self, first_round: int) -> list[int]:
        """Rounds from `first_round` on whose rows are all harvested."""
        whole = len(self.slices)
        return sorted(r for r, by in self._shares.items() if r >= first_round and len(by) == whole)

    def samples(self, round_index: int) -> Samples:
        """Samples of a complete round, arrays on the host."""
        return interleaved([each.rows.samples(round_index) for each in self.slices])

    def figures(self, round_index: int) -> dict[str, float]:
        """`rows.busy_figures` of a round that is complete in all processes, of the slots of all
        slices.
        """
        counts = [each.rows.slot_counts(round_index) for each in self.slices]
        with self._changed:
            self._read()
            others = self._counts.get(round_index, {})
            self._counts = {r: of_round for r, of_round in self._counts.items() if r > round_index}
        missing = sorted(self._others.keys() - others.keys())
        if missing:
            raise RuntimeError(f"slices {missing} have not told the end of round {round_index}")
        return busy_figures(np.sum(np.stack([*counts, *others.values()]), axis=0))

    def params_of(self, params: Published, slice_index: int) -> Published:
        """The published params of one slice."""
        return published_to(params, slice_index, len(self.slices))

    def next(self) -> list[int]:
        """The slices at the earliest boundary that may be passed: all of them see the same T. Waits
        for other processes.

        Raises RuntimeError where there is none, all slices are here, and one of them has rows left.
        """
        while not (awake := self._awake()):
            if not self._others:
                raise RuntimeError("every slice waits for another one")
            time.sleep(POLL_SECONDS)
            self._read()
        earliest = min(awake.values())
        return [index for index, boundary in awake.items() if boundary == earliest]

    def _awake(self) -> dict[int, int]:
        """The boundaries of the slices that may pass them."""
        return {
            index: each.state.boundary
            for index, each in enumerate(self.slices)
            if not each.is_drained and not self._clock.sleeps(self._shared, each.state)
        }

    def rounds_trained(self, slice_index: int) -> int:
        """T at the next boundary of a slice that does not sleep; in bounded mode the least."""
        state = self.slices[slice_index].state
        if self.stream.clock.bounded:
            return self.stream.rounds_trained(state)
        rounds_trained = self._clock.rounds_trained(self._shared, state.boundary)
        assert rounds_trained is not None, "the slice sleeps"
        return rounds_trained

    def wait_for_time(self, slice_index: int, check: Callable[[], None]) -> int:
        """Waits until T at the next boundary of a slice is known, and returns it.

        Args:
          slice_index: of the slice, whose thread this is.
          check: raises what made the run fail.
        """
        boundary = self.slices[slice_index].state.boundary
        self._wait(lambda: self._clock.rounds_trained(self._shared, boundary) is not None, check)
        return self.rounds_trained(slice_index)

    def wait_for_end_of_round(self, slice_index: int, check: Callable[[], None]) -> None:
        """Waits, where a slice has no row to draw, until the time at which it goes on is known.

        Args:
          slice_index: of the slice, whose thread this is.
          check: as `wait_for_time` takes it.
        """
        state = self.slices[slice_index].state
        self._wait(lambda: not self._clock.sleeps(self._shared, state), check)

    def _wait(self, ready: Callable[[], bool], check: Callable[[], None]) -> None:
        kind = "remote" if self._others else "wait"
        waits = activity.during("its wait for the other slices", kind)
        with waits, self._changed:
            while not ready():
                check()
                self._changed.wait(POLL_SECONDS if self._others else WAKE_SECONDS)
                self._read()

    def _read(self) -> None:
        """Reads the notices of the slices of other processes; the lock is held, or nobody waits."""
        for index, known in self._others.items():
            if (text := self._board.read(str(index))) and text != known:
                self._others[index] = text
                boundary, ended = json.loads(text)
                ended_at = tuple((round_index, end) for round_index, end, *_ in ended)
                told = StreamState((), boundary, ended_at=ended_at)
                self._shared = self._clock.heard(self._shared, index, told)
                for round_index, _, *counts in ended:
                    self._counts.setdefault(round_index, {})[index] = np.asarray(counts)

    def _tell(self, slice_index: int) -> None:
        """Writes the notice of a slice: its boundary, and the ends of the rounds that another process
        may not know yet, at most `lag` + 1 before the first that has no F here.
        """
        if not self._others:
            return
        each, told = self.slices[slice_index], self._told[slice_index]
        for round_index, end in each.state.ended_at:
            if round_index not in told and each.rows.holds(round_index):
                told[round_index] = [end, *each.rows.slot_counts(round_index).tolist()]
        oldest = len(self._shared.trained_at) - self.stream.clock.lag - 1
        for round_index in [r for r in told if r < oldest]:
            del told[round_index]
        text = json.dumps([each.state.boundary, [[r, *of_round] for r, of_round in told.items()]])
        self._board.write(str(self.first + slice_index), text)

    def wake(self) -> None:
        """Ends a pause of every wait, which then looks at its conditions."""
        with self._changed:
            self._changed.notify_all()

    def draw(
        self, slice_index: int, params: Published | None, rounds_trained: int
    ) -> tuple[int, ...]:
        """Passes a boundary of a slice and draws its segment. Returns the rounds that are complete
        with it, in all slices.

        Args:
          slice_index: of a slice that does not sleep.
          params: of the slice; see `StreamSampler.draw`.
          rounds_trained: T of the boundary.
        """
        each = self.slices[slice_index]
        each.state = self._clock.told(self._shared, each.state)
        ended = each.draw(params, rounds_trained)
        with self._changed:
            self._shared = self._clock.heard(self._shared, self.first + slice_index, each.state)
            self._tell(slice_index)
            for round_index in ended:
                self._shares.setdefault(round_index, set()).add(slice_index)
            self._changed.notify_all()
            whole = [r for r in ended if len(self._shares[r]) == len(self.slices)]
        return tuple(whole)

    def end(self, slice_index: int) -> bool:
        """Writes the last snapshots of a drained slice. Returns True where it is the last slice.

        Args:
          slice_index: of the slice.
        """
        self.slices[slice_index].save_rest()
        self._cuts.end(self.first + slice_index)
        return self.see(slice_index, ENDED) == ENDED

    def see(self, slice_index: int, rounds_trained: int) -> int:
        """Records T of a slice's boundary. Returns the least T of all slices: no slice needs an older
        version any more.

        Args:
          slice_index: of the slice.
          rounds_trained: T of its boundary.
        """
        with self._changed:
            self._seen[slice_index] = rounds_trained
            return min(self._seen)

    def save(self, round_index: int) -> None:
        """Writes the snapshot of a round, before which a checkpoint is taken; of slices that are at
        one boundary.
        """
        for each in self.slices:
            each.save(round_index)
