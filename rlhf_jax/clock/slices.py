"""The clock of rows that several slices draw together: which slice has which prompt, and the virtual
time that the slices share.

Prompt p of the run belongs to slice p mod H, for ever. A slice has its own S slots, and its prompts
are a stream of their own, with B / H rows of every round. All slices have one clock: boundary k is
at s_k = k * D in each of them.

    E_r    = the largest over the slices of the boundary at which a slice's last row of round r is
             harvested
    F_r, T, V_k as in `Stream`: the same numbers in every slice

Real time is not shared. A slice at boundary k has to know T(s_k), and another slice may still be at
an earlier boundary. With n the first round without an F, a slice that has not ended round n and has
harvested boundary c ends it at c + 1 or later. So

    F_n >= max(over slices: E_n of the slice, or (c + 1) * D; F_{n-1}) + tau

and T(s_k) is known once this bound is after s_k, whatever the other slices draw: conservative
simulation with the lookahead tau (Chandy and Misra 1979). A slice that has not ended round n itself
never waits. With a tau of several segments slices run as many segments apart; with tau 0 they meet
at the ends of rounds. There is no deadlock: of the slices that have not ended round n, none waits.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rlhf_jax.clock.stream import Stream, StreamState
from rlhf_jax.refusal import Refusal


def run_row(row: int, slice_index: int, num_slices: int, samples_per_prompt: int) -> int:
    """The row of the run that is a row of a slice's stream.

    Args:
      row: of the slice's stream; of its prompt row // G.
      slice_index: of the slice.
      num_slices: H.
      samples_per_prompt: G.
    """
    prompt, sample = divmod(row, samples_per_prompt)
    return (prompt * num_slices + slice_index) * samples_per_prompt + sample


@dataclass(frozen=True)
class Shared:
    """State that all slices know of each other.

    Attributes:
      boundaries: by slice, the boundary c up to which it has harvested.
      ended_at: by slice, the times at which it ended rounds.
      trained_at: F of the rounds that every slice has ended, in order.
    """

    boundaries: tuple[int, ...]
    ended_at: tuple[Mapping[int, int], ...]
    trained_at: tuple[int, ...] = ()


@dataclass(frozen=True)
class Slices:
    """The shared clock: pure functions of what the slices have harvested.

    Attributes:
      stream: of each slice, with its `num_slices`.
    """

    stream: Stream

    def begin(self, states: Sequence[StreamState]) -> Shared:
        """The shared state at boundary 0, or of slices that go on.

        Args:
          states: by slice, after a harvest.
        """
        if len(states) != self.stream.num_slices:
            raise ValueError(f"{len(states)} states of {self.stream.num_slices} slices")
        boundaries = tuple(state.boundary for state in states)
        trained_at = max((state.trained_at for state in states), key=len)
        ended_at = tuple(dict(state.ended_at) for state in states)
        return self._settled(Shared(boundaries, ended_at, trained_at))

    def heard(self, shared: Shared, slice_index: int, state: StreamState) -> Shared:
        """The shared state after a harvest of one slice.

        Args:
          shared: before it.
          slice_index: of the slice.
          state: of the slice, after the harvest.

        Raises Refusal where a replayed boundary comes before the round it trains on.
        """
        boundaries, ended_at = list(shared.boundaries), list(shared.ended_at)
        boundaries[slice_index] = state.boundary
        ended_at[slice_index] = {**ended_at[slice_index], **dict(state.ended_at)}
        trained_at = max(shared.trained_at, state.trained_at, key=len)
        return self._settled(Shared(tuple(boundaries), tuple(ended_at), trained_at))

    def _settled(self, shared: Shared) -> Shared:
        """F of the rounds that every slice has ended; their E is dropped."""
        trained_at, is_exact = list(shared.trained_at), not self.stream.clock.bounded
        while is_exact and all((r := len(trained_at)) in ended for ended in shared.ended_at):
            end = max(ended[r] for ended in shared.ended_at)
            if (trained := self.stream.training_end(r, end, trained_at)) is None:
                break
            trained_at.append(trained)
        self._check_replay(shared, len(trained_at))
        open_ends = tuple(
            {r: end for r, end in ended.items() if r >= len(trained_at)}
            for ended in shared.ended_at
        )
        return replace(shared, ended_at=open_ends, trained_at=tuple(trained_at))

    def _check_replay(self, shared: Shared, round_index: int) -> None:
        """Raises Refusal where a slice still draws a round at the boundary that is recorded as the
        end of its training.
        """
        recorded = self.stream.trained_boundaries
        if recorded is None or round_index >= len(recorded):
            return
        for slice_index, boundary in enumerate(shared.boundaries):
            is_open = round_index not in shared.ended_at[slice_index]
            if is_open and boundary >= recorded[round_index]:
                raise Refusal(
                    f"trained_boundaries has round {round_index} trained at boundary "
                    f"{recorded[round_index]}; slice {slice_index} still draws it there: the "
                    "schedule is of another run"
                )

    def rounds_trained(self, shared: Shared, boundary: int) -> int | None:
        """T(s_k), or None where it depends on slices that have not come so far.

        Args:
          shared: of the slices.
          boundary: k.
        """
        now = boundary * self.stream.segment_steps
        settled, next_round = bisect_right(shared.trained_at, now), len(shared.trained_at)
        if settled < next_round or next_round == self.stream.clock.num_rounds:
            return settled
        earliest = self._earliest(shared, next_round)
        return settled if earliest is None or earliest > now else None

    def _earliest(self, shared: Shared, round_index: int) -> int | None:
        """The least that F of the first round without one can be; None: a replay never sees it."""
        recorded, steps = self.stream.trained_boundaries, self.stream.segment_steps
        if recorded is not None:
            return recorded[round_index] * steps if round_index < len(recorded) else None
        ends = [
            ended.get(round_index, (boundary + 1) * steps)
            for ended, boundary in zip(shared.ended_at, shared.boundaries, strict=True)
        ]
        return self.stream.training_end(round_index, max(ends), shared.trained_at)

    def sleeps(self, shared: Shared, state: StreamState) -> bool:
        """True where a slice may not pass its boundary yet: T(s_k) is not known, or no row is live,
        none may be admitted, and the F to which time goes is not known.

        Args:
          shared: of the slices.
          state: of the slice, after its harvest.
        """
        rounds_trained = self.rounds_trained(shared, state.boundary)
        if rounds_trained is None:
            return True
        if not self.stream.idles(state, rounds_trained):
            return False
        recorded = self.stream.trained_boundaries
        is_never_seen = recorded is not None and rounds_trained >= len(recorded)
        return len(shared.trained_at) <= rounds_trained and not is_never_seen

    def told(self, shared: Shared, state: StreamState) -> StreamState:
        """A slice's state with F as of its boundary: that of the rounds that are trained by then,
        and of the next one where time goes there. So it depends on virtual time alone.

        Args:
          shared: of the slices.
          state: of a slice that does not sleep, after its harvest.
        """
        if self.stream.num_slices == 1:
            return state  # which settles F by itself
        rounds_trained = self.rounds_trained(shared, state.boundary)
        assert rounds_trained is not None, "the slice sleeps"
        known = rounds_trained + self.stream.idles(state, rounds_trained)
        trained_at = shared.trained_at[:known]
        ended_at = tuple(each for each in state.ended_at if each[0] >= len(trained_at))
        return replace(state, trained_at=trained_at, ended_at=ended_at)
