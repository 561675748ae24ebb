"""Branch and bound over plans: the best one, and the proof that none is better.

Calls are placed one after the other, those that weigh most first. A partial plan is left as soon as no plan that begins so can
be faster than the best one known (`bounds.py`), or fit.
"""

from dataclasses import dataclass, field
from math import inf

import numpy as np

from rlhf_jax.planner.bounds import Bounds, State
from rlhf_jax.planner.space import Choice, Space
from rlhf_jax.planner.tables import Tables

TOLERANCE = 1e-9
"""Share of a round by which a plan must be better to be looked for."""


@dataclass
class Proof:
    """What a search found. `proven`: whether it has seen every plan that could be better; else it ended at its limit, and
    `lower_bound` is what no plan can be faster than."""

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
            """Params that are moved come from where a role trains, so that is placed before its other calls."""
            first = 0 if index == self.tables.policy else ranks[self.space.calls[index].kind]
            return first, -self.tables.least[index]

        self.order = sorted(range(len(self.space.calls)), key=rank)

    def visit(self, state: State) -> None:
        """Every way to go on that could be better, the most promising first."""
        index = self.order[len(state.numbers)]
        bounds = self.bounds.seconds(state, index)
        placed = [state.numbers[earlier] for earlier in self.order[: len(state.numbers)]]
        fresh = self.tables.fresh(list(zip(self.order, placed, strict=False)), index)
        numbers = np.flatnonzero(self.bounds.fits(state, index) & fresh)
        for number in numbers[np.argsort(bounds[numbers], kind="stable")]:
            if bounds[number] >= self.best * (1 - TOLERANCE):
                return
            if self.num_nodes >= self.max_nodes:
                self.left = min(self.left, float(bounds[number]))
                return
            self.num_nodes += 1
            longer = self.bounds.place(state, index, int(number))
            if len(longer.numbers) < len(self.order):
                self.visit(longer)
            else:
                self._finish(longer)

    def _finish(self, state: State) -> None:
        choice = tuple(state.numbers[index] for index in range(len(self.order)))
        if self.space.excess(choice) <= 0 and (seconds := self.space.seconds(choice)) < self.best:
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
