"""Lower bounds on seconds per round for plans that extend a partial assignment, vectorised over the
next call's options.

With p, g, t, c the seconds of publishing, generation, and the policy's and the critic's training,
and s those of the scores of a round (at least the longest, the sum of those that share a device,
and the devices' mean), a round takes at least

    synchronous    p + g + s + t,  and p + g + s + c (+ t where they share a device) if the next sampling waits for the critic
    asynchronous   g,  p + s + t,  and (p + g + s + t) / (lag + 1)
    both           the calls on a device, the devices' mean, and value + c (+ t), which wait for each other in turn

and where the devices share their host's cores, the sum of everything. These hold in whatever order
a queue is.
"""

from dataclasses import dataclass

import numpy as np

from rlhf_jax.planner.search.search_tables import Tables

ROUNDING = 1e-12
Seconds = np.ndarray | float
"""Seconds for each option of the next call `[option]`, or the same for all."""


@dataclass(frozen=True)
class State:
    """A partial plan: an option's number for each call that is placed, and what they add up to."""

    numbers: dict[int, int]
    load: np.ndarray  # by device: seconds of all calls
    score_load: np.ndarray
    resident: np.ndarray  # by device: bytes
    working: np.ndarray
    longest: float = 0.0  # of the scores, with what moves their params and data
    publish: float = 0.0
    value_move: float = 0.0  # of the critic's params to where it gives values
    total: float = 0.0  # seconds of the calls and reallocations
    score_area: float = 0.0  # seconds of devices
    area: float = 0.0


class Bounds:
    """Bounds of a search's partial plans."""

    def __init__(self, tables: Tables):
        self.tables, self.space = tables, tables.space
        self.num_devices = tables.space.num_devices
        self.critic = next(
            (index for role, index in tables.trains.items() if role == "critic"), None
        )
        calls = tables.space.calls
        self.value = next(
            (i for i in tables.scores if self.critic is not None and calls[i].role == "critic"),
            None,
        )

    def begin(self) -> State:
        """Nothing placed."""
        zeros = np.zeros(self.num_devices)
        return State({}, zeros, zeros, zeros, zeros)

    def _moves(self, state: State, index: int) -> np.ndarray:
        """Seconds of reallocation to each option of a call, whose role is placed where it trains.

        0 for publications of the asynchronous loop that not every round has.
        """
        tables = self.tables
        is_rare = self.space.flow.asynchronous and self.space.work.sync_every > 1
        if index not in tables.moves or (is_rare and index == tables.generate):
            return np.zeros(len(tables.seconds[index]))
        train = tables.trains[tables.calls[index].role]
        return tables.moves[index][
            tables.layout_of[train][state.numbers[train]], tables.layout_of[index]
        ]

    def _path(self, state: State, index: int, moves: np.ndarray) -> np.ndarray:
        """From the end of sampling to when the policy's training has a score: its params and the
        samples come, both at once.
        """
        tables = self.tables
        start, behind = moves, 0.0
        if tables.generate in state.numbers:
            row = tables.layout_of[tables.generate][state.numbers[tables.generate]]
            start = np.maximum(
                start, tables.transfers[tables.generate, index][row, tables.layout_of[index]]
            )
        if tables.policy in state.numbers:
            column = tables.layout_of[tables.policy][state.numbers[tables.policy]]
            behind = tables.transfers[index, tables.policy][tables.layout_of[index], column]
        return start + tables.seconds[index] + behind

    def _loads(self, state: State, index: int, moves: np.ndarray) -> np.ndarray:
        """Seconds by option and device, with the reallocation on the devices that it is sure to
        occupy.
        """
        tables, on = self.tables, self.tables.on[index]
        if index == tables.generate and self.space.flow.asynchronous:
            source = tables.on[tables.policy][state.numbers[tables.policy]]
            return state.load + tables.seconds[index][:, None] * on + moves[:, None] * source
        return state.load + (tables.seconds[index] + moves)[:, None] * on

    def _stays(self, state: State, index: int) -> np.ndarray:
        """Bytes that each option of the next call keeps on its devices."""
        tables, call, resident = self.tables, self.tables.calls[index], self.tables.resident[index]
        if call.kind == "generate":
            return resident * self.space.versions.in_training
        for other, number in state.numbers.items():
            if (
                call.kind == "infer"
                and tables.calls[other].role == call.role
                and other != tables.generate
            ):
                resident = np.where(
                    tables.layout_key[index] == tables.layout_key[other][number], 0.0, resident
                )
        return resident

    def fits(self, state: State, index: int) -> np.ndarray:
        """True for each option of the next call that fits beside the calls that are placed."""
        on = self.tables.on[index]
        resident = state.resident + self._stays(state, index)[:, None] * on
        working = np.maximum(state.working, self.tables.working[index][:, None] * on)
        return (resident + working).max(1) <= self.space.costs.device_bytes * (1 + ROUNDING)

    def place(self, state: State, index: int, number: int) -> State:
        """The partial plan with one call more."""
        tables, moves = self.tables, self._moves(state, index)
        seconds, on, move = (
            tables.seconds[index][number],
            tables.on[index][number],
            float(moves[number]),
        )
        score, area = index in tables.scores, float(seconds * on.sum())
        return State(
            numbers={**state.numbers, index: number},
            load=self._loads(state, index, moves)[number],
            score_load=state.score_load + (seconds + move) * on if score else state.score_load,
            resident=state.resident + self._stays(state, index)[number] * on,
            working=np.maximum(state.working, tables.working[index][number] * on),
            longest=max(state.longest, float(self._path(state, index, moves)[number]))
            if score
            else state.longest,
            publish=move if index == tables.generate else state.publish,
            value_move=move if index == self.value else state.value_move,
            total=state.total + float(seconds) + move,
            score_area=state.score_area + (area if score else 0.0),
            area=state.area + area,
        )

    def seconds(self, state: State, index: int) -> np.ndarray:
        """The bound of a round for each option of the next call."""
        tables, moves = self.tables, self._moves(state, index)
        waiting = [
            other
            for other in range(len(tables.calls))
            if other != index and other not in state.numbers
        ]
        if self.space.costs.shared_throughput:
            return (
                state.total
                + tables.seconds[index]
                + moves
                + sum(tables.least[other] for other in waiting)
            )
        area = tables.seconds[index] * tables.on[index].sum(1)
        bound = self._loads(state, index, moves).max(1)
        bound = np.maximum(
            bound,
            (state.area + area + sum(tables.least_area[i] for i in waiting)) / self.num_devices,
        )
        stage = self._stage(state, index, moves, area, waiting)
        every = self.space.work.sync_every
        publish = moves if index == tables.generate else state.publish
        generate, policy = (
            self._of(state, index, call) for call in (tables.generate, tables.policy)
        )
        if self.space.flow.asynchronous:
            ahead = self.space.work.lag + every
            bound = np.maximum(bound, np.maximum(generate, publish + stage + policy))
            bound = np.maximum(bound, (publish + generate + stage + policy) / ahead)
        else:
            bound = np.maximum(bound, publish + generate + stage + policy)
        if every > 1:  # the critic's circle has sampling in each round
            return bound
        return np.maximum(
            bound, self._with_critic(state, index, publish, generate + stage, policy, moves)
        )

    def _stage(
        self, state: State, index: int, moves: np.ndarray, area: np.ndarray, waiting: list[int]
    ) -> Seconds:
        """From the end of sampling to the begin of the policy's training."""
        tables = self.tables
        left = [other for other in waiting if other in tables.scores]
        least = max((tables.least[other] for other in left), default=0.0)
        score_area = state.score_area + sum(tables.least_area[other] for other in left)
        if index not in tables.scores:
            return max(
                state.longest, float(state.score_load.max()), score_area / self.num_devices, least
            )
        load = state.score_load + (tables.seconds[index] + moves)[:, None] * tables.on[index]
        longest = np.maximum(self._path(state, index, moves), max(state.longest, least))
        return np.maximum(np.maximum(longest, load.max(1)), (score_area + area) / self.num_devices)

    def _of(self, state: State, index: int, call: int) -> Seconds:
        """Seconds of a call: of each option where it is the next one, of its option where it is
        placed, else its least.
        """
        tables = self.tables
        if call == index:
            return tables.seconds[index]
        return (
            tables.seconds[call][state.numbers[call]]
            if call in state.numbers
            else tables.least[call]
        )

    def _shares(self, state: State, index: int, call: int, other_call: int) -> np.ndarray | bool:
        """True where two calls have a device in common; False where that is not yet known."""
        tables = self.tables
        ons = []
        for each in (call, other_call):
            if each != index and each not in state.numbers:
                return False
            ons.append(tables.on[each] if each == index else tables.on[each][state.numbers[each]])
        return (ons[0] * ons[1]).sum(-1) > 0

    def _with_critic(
        self,
        state: State,
        index: int,
        publish: Seconds,
        to_scores: Seconds,
        policy: Seconds,
        moves: np.ndarray,
    ) -> Seconds:
        """The rounds of the critic's own circle: its values, and the sampling that waits for it."""
        if self.critic is None or (self.critic != index and self.critic not in state.numbers):
            return 0.0
        with_policy = self._shares(state, index, self.critic, self.tables.policy)
        trains = self._of(state, index, self.critic) + np.where(with_policy, policy, 0.0)
        bound = trains
        if self.value is not None:
            bound = (
                bound
                + self._of(state, index, self.value)
                + (moves if index == self.value else state.value_move)
            )
        if not self.space.flow.asynchronous:
            waits = self._shares(state, index, self.critic, self.tables.generate) | (
                with_policy & (publish > 0)
            )
            bound = np.maximum(bound, np.where(waits, publish + to_scores + trains, 0.0))
        return bound
