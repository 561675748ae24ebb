"""The clock of rows that are admitted one by one: the version of every token, where running rows
get new weights (in flight) and where they keep theirs (pinned).
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rlhf_jax.clock.exact import Clock
from rlhf_jax.refusal import Refusal


@dataclass(frozen=True)
class StreamState:
    """State of a `Stream` at a boundary: plain numbers, which `dataclasses.asdict` and JSON keep.

    Attributes:
      boundary: index of the boundary that comes next.
      next_row: first row that is not admitted yet.
      rounds_trained: T of the boundary before.
      row_of_slot: the row in each slot; -1: none.
      rows_left: (round, rows that are not harvested) of rounds that are partly harvested.
      ended_at: (round, E_r) of rounds that are harvested and have no F_r yet.
      trained_at: F_r of the rounds that have one, in order.
    """

    row_of_slot: tuple[int, ...]
    boundary: int = 0
    next_row: int = 0
    rounds_trained: int = 0
    rows_left: tuple[tuple[int, int], ...] = ()
    ended_at: tuple[tuple[int, int], ...] = ()
    trained_at: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, fields: Mapping[str, int | list[int] | list[list[int]]]) -> "StreamState":
        """The state whose `dataclasses.asdict` went through JSON: lists become tuples again."""

        def frozen(value: object) -> object:
            return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value

        return cls(**{name: frozen(value) for name, value in fields.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Boundary:
    """Decisions of a boundary after its harvest, and of the segment that follows.

    Attributes:
      index: k.
      version: V_k, the newest version in the segment. In flight it draws every token, first tokens
        included.
      rebuilds: the keys and values of all live rows are computed again under this version.
      rows: admitted, in stream order, into `slots`.
      row_of_slot: the row in each slot during the segment; -1: none. No row at all: time passes
        until the next round is trained, and nothing is drawn.
      version_of_slot: the version that draws the row in each slot; V_k where there is no row.
    """

    index: int
    version: int
    rebuilds: bool
    rows: tuple[int, ...]
    slots: tuple[int, ...]
    row_of_slot: tuple[int, ...]
    version_of_slot: tuple[int, ...]

    @property
    def is_idle(self) -> bool:
        """True where no row is being written."""
        return not any(row >= 0 for row in self.row_of_slot)


@dataclass(frozen=True)
class Stream:
    """The clock of a stream of rows: a pure state machine of the rows that have ended.

    Row i is of round i // B. `num_slots` rows are written at once, in segments of D =
    `segment_steps` decode steps. Time counts decode steps. Boundary k is at s_k = k * D, also where
    a segment was left early because all of its rows had ended.

        E_r     = s_k of the boundary at which the last row of round r is harvested (not monotone)
        F_r     = max(E_r, F_{r-1}) + tau, F_{-1} = 0: the virtual end of round r's training
        T(s)    = number of rounds with F_r <= s: those that are trained by then
        V_k     = u * T(s_k): the newest version in segment k
        v(i, k) = V_k in flight, u * max(0, r - lag) pinned: the version of the tokens that row i of
                  round r draws in segment k
        admit   at boundary k in stream order rows of rounds <= T(s_k) + lag, lowest free slot first
        order   harvest, settle F, V_k (wait for it), rebuild if due, admit, segment
        idle    no live row and none to admit: time goes to the first boundary >= the next F_r

    E_r is settled in order of r: a later round may end first. In flight the age of a token in
    update j of round r is between j and u * min(r, lag) + j, and versions never fall along a row.
    lag 0 is the synchronous loop: all of round r has version u * r.

    Pinned (`clock.pinned`) a row is drawn by one version, the exact lag of `Clock`, whatever S, D
    and tau are: these change when a row is drawn, and not by what. Rows of rounds T ... T + lag may
    run in one segment. So at most lag + 1 versions draw side by side, the last of V_k / u - lag ...
    V_k / u that exist. A version is needed from the boundary on where T first reaches it, also
    where T passes it there. `rebuild_every` has to be 0: keys never get old.

    Exact, bounded and replay are this recurrence with three sources of F. Exact: `tau`. Bounded:
    T is the number of rounds whose final version is published when boundary k is reached, and F_r
    is recorded as s_k. Replay: F_r = trained_boundaries[r] * D, the recorded boundary.

    Attributes:
      clock: has num_rounds, u, lag and bounded; `version_schedule` is empty.
      rows_per_round: B.
      num_slots: S.
      segment_steps: D.
      tau: virtual training time of a round, in decode steps. Bounded and replay do not read it.
      rebuild_every: keys and values of live rows are computed again whenever T passes a multiple of
        it; 0: never.
      trained_boundaries: replay. Entry r is the first boundary that sees round r trained; a round
        without an entry is never seen.
      num_slices: H, the slices that draw a round together, each with S slots and `rows_per_round`
        rows of it. Of several slices `clock.slices.Slices` settles F, which is the same for all.
    """

    clock: Clock
    rows_per_round: int
    num_slots: int
    segment_steps: int
    tau: int = 0
    rebuild_every: int = 0
    trained_boundaries: tuple[int, ...] | None = None
    num_slices: int = 1

    def __post_init__(self) -> None:
        least = dict.fromkeys(("rows_per_round", "num_slots", "segment_steps", "num_slices"), 1)
        for name, lowest in (least | {"tau": 0, "rebuild_every": 0}).items():
            if getattr(self, name) < lowest:
                raise Refusal(f"{name} is {getattr(self, name)}; accepted: {lowest} or more")
        recorded = self.trained_boundaries
        if self.clock.pinned and self.rebuild_every:
            raise Refusal(
                f"rebuild_every is {self.rebuild_every} for pinned rows, whose keys and values never "
                "get old; accepted: 0"
            )
        if self.clock.bounded and self.num_slices > 1:
            raise Refusal(
                f"num_slices is {self.num_slices} with a bounded clock, where each slice would take "
                "the newest version that it sees; accepted: 1, or an exact clock"
            )
        if self.clock.version_schedule:
            raise Refusal("a stream has no version schedule; accepted: trained_boundaries")
        if recorded is None:
            return
        if self.clock.bounded:
            raise Refusal("trained_boundaries are replayed, not bounded; accepted: one of them")
        if len(recorded) > self.clock.num_rounds or list(recorded) != sorted(recorded):
            raise Refusal(
                f"trained_boundaries are {list(recorded)}; accepted: at most {self.clock.num_rounds} "
                "boundaries (one a round) that never fall"
            )

    @property
    def num_rows(self) -> int:
        """Rows of the whole run."""
        return self.clock.num_rounds * self.rows_per_round

    def begin(self) -> StreamState:
        """Returns the state at boundary 0."""
        return StreamState((-1,) * self.num_slots)

    def is_drained(self, state: StreamState) -> bool:
        """True where every row of the run is harvested."""
        return state.next_row == self.num_rows and max(state.row_of_slot) < 0

    def harvest(
        self, state: StreamState, ended_S: Sequence[bool]
    ) -> tuple[tuple[int, ...], StreamState]:
        """Takes ended rows out of their slots, and settles F; of several slices F stays open.

        Args:
          state: after `admit`.
          ended_S: a flag for each slot: its row has its EOS or all of its tokens.

        Returns the rounds that are complete by it, in order, and the state. Raises Refusal where a
        replayed boundary comes before the round it trains on.
        """
        left, complete = dict(state.rows_left), []
        now = state.boundary * self.segment_steps
        slots = list(state.row_of_slot)
        for slot, row in enumerate(state.row_of_slot):
            if row < 0 or not ended_S[slot]:
                continue
            slots[slot], round_index = -1, row // self.rows_per_round
            left[round_index] = left.get(round_index, self.rows_per_round) - 1
            if not left[round_index]:
                del left[round_index]
                complete.append(round_index)
        ended = dict(state.ended_at) | dict.fromkeys(complete, now)
        trained = list(state.trained_at)
        settles = self.num_slices == 1 and not self.clock.bounded
        while settles and (r := len(trained)) in ended:
            if (end := self.training_end(r, ended[r], trained)) is None:
                break
            trained.append(end)
            del ended[r]
        return tuple(sorted(complete)), replace(
            state,
            row_of_slot=tuple(slots),
            rows_left=tuple(sorted(left.items())),
            ended_at=tuple(sorted(ended.items())),
            trained_at=tuple(trained),
        )

    def training_end(
        self, round_index: int, ended_at: int, trained_at: Sequence[int]
    ) -> int | None:
        """F of the next round; None: a replay never sees it.

        Args:
          round_index: r.
          ended_at: E_r.
          trained_at: F of the rounds before it.

        Raises Refusal where a replayed boundary comes before E_r or F_(r-1).
        """
        earliest = max(ended_at, trained_at[-1] if trained_at else 0)
        recorded = self.trained_boundaries
        if recorded is None:
            return earliest + self.tau
        if round_index >= len(recorded):
            return None
        if (end := recorded[round_index] * self.segment_steps) < earliest:
            raise Refusal(
                f"trained_boundaries has round {round_index} trained at boundary "
                f"{recorded[round_index]}; its last row, or the round before it, ends at "
                f"{earliest / self.segment_steps:g}: the schedule is of another run"
            )
        return end

    def rounds_trained(self, state: StreamState) -> int:
        """T at the next boundary. In bounded mode the least that may be waited for: T as it was, or
        where no row is live, that which admits the next one.
        """
        if not self.clock.bounded:
            return bisect_right(state.trained_at, state.boundary * self.segment_steps)
        if max(state.row_of_slot) >= 0 or self.is_drained(state):
            return state.rounds_trained
        return max(state.rounds_trained, state.next_row // self.rows_per_round - self.clock.lag)

    def idles(self, state: StreamState, rounds_trained: int) -> bool:
        """True where no row is live and none may be admitted at the next boundary.

        Args:
          state: after the harvest.
          rounds_trained: T of the boundary.
        """
        admissible = min(self.num_rows, self._admissible(rounds_trained))
        return max(state.row_of_slot) < 0 and state.next_row >= admissible

    def _admissible(self, rounds_trained: int) -> int:
        """Rows of the rounds that may be admitted where T rounds are trained."""
        return (rounds_trained + self.clock.lag + 1) * self.rows_per_round

    def rebuilds(self, state: StreamState, rounds_trained: int) -> bool:
        """True where T passes a multiple of `rebuild_every` at the next boundary.

        Args:
          state: after the harvest.
          rounds_trained: T of the boundary.
        """
        every = self.rebuild_every
        return bool(every) and rounds_trained // every > state.rounds_trained // every

    def admit(self, state: StreamState, rounds_trained: int) -> tuple[Boundary, StreamState]:
        """Decides a boundary, and passes to the next one.

        Args:
          state: after the harvest; not drained.
          rounds_trained: T of the boundary: `rounds_trained(state)`, in bounded mode that or more.

        Raises RuntimeError for a live row whose round is trained already or not yet admissible
        and for a T that is too small, and Refusal where a replayed schedule never admits the next
        row.
        """
        if rounds_trained < (least := self.rounds_trained(state)):
            raise RuntimeError(
                f"boundary {state.boundary} was given {rounds_trained} trained rounds; the least is {least}"
            )
        slots = list(state.row_of_slot)
        free = [slot for slot, row in enumerate(slots) if row < 0]
        admissible = self._admissible(rounds_trained)
        last = min(self.num_rows, admissible, state.next_row + len(free))
        rows = tuple(range(state.next_row, last))
        for slot, row in zip(free, rows, strict=False):
            slots[slot] = row
        version = rounds_trained * self.clock.updates_per_round
        for round_index in {row // self.rows_per_round for row in slots if row >= 0}:
            self._check_open(round_index, rounds_trained)
        boundary = Boundary(
            state.boundary,
            version,
            self.rebuilds(state, rounds_trained),
            rows,
            tuple(free[: len(rows)]),
            tuple(slots),
            tuple(self._version_of(row, version) for row in slots),
        )
        trained = state.trained_at
        if self.clock.bounded:
            trained += (state.boundary * self.segment_steps,) * (rounds_trained - len(trained))
        after = replace(
            state,
            row_of_slot=tuple(slots),
            next_row=state.next_row + len(rows),
            rounds_trained=rounds_trained,
            trained_at=trained,
            ended_at=tuple(each for each in state.ended_at if each[0] >= len(trained)),
        )
        index = self._after_idling(after) if boundary.is_idle else state.boundary + 1
        return boundary, replace(after, boundary=index)

    def _version_of(self, row: int, version: int) -> int:
        """The version that draws a row (-1: none) in a segment of V_k = `version`."""
        pinned = row >= 0 and self.clock.pinned
        return self.clock.version(row // self.rows_per_round) if pinned else version

    def _check_open(self, round_index: int, rounds_trained: int) -> None:
        """Raises RuntimeError unless rows of a round may be drawn where T rounds are trained."""
        if not self.clock.pinned:
            version = rounds_trained * self.clock.updates_per_round
            self.clock.check_version(round_index, version, version)
        elif not rounds_trained <= round_index <= rounds_trained + self.clock.lag:
            raise RuntimeError(
                f"round {round_index} is drawn where {rounds_trained} rounds are trained; the clock "
                f"draws rounds {rounds_trained} to {rounds_trained + self.clock.lag} there"
            )

    def _after_idling(self, state: StreamState) -> int:
        """The first boundary at which another round is trained."""
        if state.rounds_trained == len(state.trained_at):
            raise Refusal(
                f"row {state.next_row} waits for round {state.rounds_trained} to be trained, which "
                "trained_boundaries never sees: the schedule is of another run"
            )
        return -(-state.trained_at[state.rounds_trained] // self.segment_steps)

    def recorded(self, state: StreamState) -> tuple[int, ...]:
        """`trained_boundaries` that repeat a run up to this state, of any mode: the first boundary
        at or after F_r for each round that was seen trained.
        """
        seen = state.trained_at[: state.rounds_trained]
        return tuple(-(-end // self.segment_steps) for end in seen)


def full_throughput_lag(stream: Stream, max_completion_tokens: int, mean_length: float) -> int:
    """The least lag at which the slots are full: the longest row and a round's training, in rounds
    of decoding, ceil((C + tau) / (B * mean_length / S)). A larger lag changes nothing.

    Args:
      stream: of the run.
      max_completion_tokens: C.
      mean_length: of completions, in tokens.
    """
    round_steps = stream.rows_per_round * mean_length / stream.num_slots
    return max(0, math.ceil((max_completion_tokens + stream.tau) / round_steps))
