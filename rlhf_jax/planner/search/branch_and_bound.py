"""Branch and bound over plans: the best one, and the proof that none is better.

Calls are placed one after the other, those that weigh most first. A partial plan is left as soon as
no plan that begins so can be faster than the best one known (`bounds.py`), or fit.
"""

from dataclasses import dataclass, field
from math import inf

import numpy as np

from rlhf_jax.planner.search.bounds import Bounds, State
from rlhf_jax.planner.search.search_tables import Tables
from rlhf_jax.planner.search.space import Choice, Space
from rlhf_jax.planner.simulation import steady_state

NUM_FIRST = 2
"""Calls that are always placed first: the policy's training and generation, which weigh most."""
TOLERANCE = 1e-9
"""Share of a round by which a plan must be better to be looked for."""


@dataclass
class Proof:
    """The result of a search. `proven` is True where every plan that could be better was seen; else
    it ended at its limit, and `lower_bound` is what no plan can be faster than.
    """

    choice: Choice | None
    proven: bool
    lower_bound: float
    num_nodes: int


@dataclass
class Search:
    """The best plan so far, and how far the search has come."""

    space: Space
    tables: Tables
    max_nodes: int
    choice: Choice | None = None
    best: float = inf
    num_nodes: int = 0
    left: float = inf  # the least bound of what was not looked into
    order: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bounds = Bounds(self.tables)
        ranks = {"generate": 1, "train": 2, "infer": 3}

        def rank(index: int) -> tuple[int, float]:
            """Params that are moved come from where a role trains, so that is placed before its
            other calls.
            """
            first = 0 if index == self.tables.policy else ranks[self.space.calls[index].kind]
            return first, -self.tables.least[index]

        self.order = sorted(range(len(self.space.calls)), key=rank)

    def visit(self, state: State) -> None:
        """Every way to go on that could be better, by the call that has fewest; of those the most
        promising first.
        """
        branches = self._branches(state)
        if branches is None:
            return
        index, numbers, bounds = branches
        for number, bound in zip(numbers, bounds, strict=True):
            if bound >= self.best * (1 - TOLERANCE):
                return
            if self.num_nodes >= self.max_nodes:
                self.left = min(self.left, float(bound))
                return
            self.num_nodes += 1
            longer = self.bounds.place(state, index, int(number))
            if len(longer.numbers) == len(self.order):
                self._finish(longer)
            elif len(longer.numbers) <= NUM_FIRST or self._relaxed(longer) < self.best * (
                1 - TOLERANCE
            ):
                self.visit(longer)

    def _relaxed(self, state: State) -> float:
        """The bound by rounds of what is placed, in the order of the queues: dearer than `Bounds`,
        which it completes.
        """
        chosen = [
            candidates[state.numbers[index]] if index in state.numbers else None
            for index, candidates in enumerate(self.space.options)
        ]
        flow = self.space.flow
        return steady_state.lower_bound(flow, flow.relaxed(chosen, self.tables.least))

    def _branches(self, state: State) -> tuple[int, np.ndarray, np.ndarray] | None:
        """The next call with its options and their bounds, the least first; None where some call
        has no place left.
        """
        fewest = None
        for index in self._ready(state):
            bounds = self.bounds.seconds(state, index)
            viable = (
                self.tables.worth_trying[index]
                & (bounds < self.best * (1 - TOLERANCE))
                & self.bounds.fits(state, index)
            )
            count = int(viable.sum())
            if not count:
                return None
            if fewest is None or count < fewest[0]:
                fewest = count, index, viable, bounds
        assert fewest is not None
        _, index, viable, bounds = fewest
        numbers = np.flatnonzero(viable & self.tables.fresh(list(state.numbers.items()), index))
        numbers = numbers[np.argsort(bounds[numbers], kind="stable")]
        return index, numbers, bounds[numbers]

    def _ready(self, state: State) -> list[int]:
        """Calls that may come next: the policy's training and generation first, and what has params
        to move after their role's training.
        """
        left = [index for index in self.order if index not in state.numbers]
        if len(state.numbers) < NUM_FIRST:
            return left[:1]
        trains = {
            index: self.tables.trains[self.space.calls[index].role] for index in self.tables.moves
        }
        return [
            index
            for index in left
            if trains.get(index, left[0]) in state.numbers or index not in trains
        ]

    def _finish(self, state: State) -> None:
        choice = tuple(state.numbers[index] for index in range(len(self.order)))
        if (seconds := self.space.seconds(choice)) < self.best:
            self.choice, self.best = choice, seconds


def exact(space: Space, incumbent: Choice | None, max_nodes: int) -> Proof:
    """The best plan that fits.

    Args:
      incumbent: a plan that fits, the better the sooner it ends.
      max_nodes: partial plans to look into; then it ends without a proof.
    """
    search = Search(space, Tables(space), max_nodes)
    if incumbent is not None:
        search.choice, search.best = incumbent, space.seconds(incumbent)
    search.visit(search.bounds.begin())
    proven = search.left == inf
    return Proof(search.choice, proven, min(search.best, search.left), search.num_nodes)
