"""Finds the plan of least seconds a round that fits in memory: exactly up to 16 devices, by
annealing above.

The optimum is that of the cost model. Errors of the costs favour plans whose seconds are
underestimated, so a real round of the best plan tends to take longer than expected.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf_jax.dataflow import Call
from rlhf_jax.planner.api import CostModel, Workload
from rlhf_jax.planner.options import ALL_HOST_RUNS, MICRO_BATCHES
from rlhf_jax.planner.search.anneal import anneal, descend
from rlhf_jax.planner.search.branch_and_bound import exact
from rlhf_jax.planner.search.explain import why_none_fits, why_worse
from rlhf_jax.planner.search.space import Choice, Space
from rlhf_jax.planner.simulation.simulate import Simulation, simulate
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Plan

EXACT_DEVICES = 16
MAX_NODES = 120_000
"""Partial plans that a branch and bound looks into: about a minute on one core."""
STARTS, EVALUATIONS = 4, 6000
"""Of the annealing that gives the branch and bound a plan to beat."""
MANY_STARTS, MANY_EVALUATIONS = 8, 20_000
"""Of the annealing that is all there is, above `EXACT_DEVICES`: within a minute on one core for 128
devices.
"""
LEAST_GAIN = 0.02
"""Of a round, for which a plan is worth what it moves: below it two plans are told apart by the
costs' errors.
"""
assert EXACT_DEVICES <= ALL_HOST_RUNS


@dataclass(frozen=True)
class Candidate:
    """A plan, what it is expected to do, and why it is worse than the best one ("" for that)."""

    plan: Plan
    simulation: Simulation
    why: str = ""


@dataclass(frozen=True)
class Found:
    """The result of a search.

    `others`: the next ones of those that it came by, each with other numbers of devices for its
    calls; they are not proven to be the next best. `default`: every call on all devices with the
    one mesh that is best for all, None where that does not fit. `proven`: no plan is faster; else
    none is faster than `lower_bound`, 0 where no bound is known.
    """

    best: Candidate
    others: tuple[Candidate, ...]
    default: Candidate | None
    proven: bool
    lower_bound: float
    num_evaluations: int
    num_nodes: int
    work: Workload
    shared_throughput: bool

    @property
    def advised(self) -> Candidate:
        """The best plan, or the default one where that takes no longer than costs may err: it moves
        nothing.
        """
        if self.default is None:
            return self.best
        least, simple = (
            candidate.simulation.seconds_per_round for candidate in (self.best, self.default)
        )
        return self.default if simple <= least * (1 + LEAST_GAIN) else self.best


def search(
    calls: Sequence[Call],
    costs: CostModel,
    work: Workload,
    num_devices: int,
    devices_per_host: int,
    *,
    seed: int = 0,
    num_best: int = 5,
    max_nodes: int = MAX_NODES,
    micro_batches: Sequence[int] = MICRO_BATCHES,
    costs_of: Callable[[int], CostModel] | None = None,
) -> Found:
    """The best plan, the next ones and the default one. The same arguments give the same plans,
    however fast the machine is.

    In the asynchronous loop, where a sampler and a trainer that share devices are served by who
    comes first, a slower call may by accident make a round faster, as in any list schedule; such
    accidents are not looked for.

    Args:
      num_best: plans to return, the best one among them.
      max_nodes: partial plans that the exact search may look into; where they do not suffice,
        `proven` is False.
      costs_of: costs for another number of devices, to say how many would do where nothing fits.

    Raises Refusal where nothing fits, naming the call that needs most and what would fit.
    """
    space = Space(calls, costs, work, num_devices, devices_per_host, micro_batches)
    if not all(space.options):
        raise Refusal(why_none_fits(space, costs_of))
    few = num_devices <= EXACT_DEVICES
    starts, evaluations = (STARTS, EVALUATIONS) if few else (MANY_STARTS, MANY_EVALUATIONS)
    choice, proven, bound, nodes = anneal(space, seed, starts, evaluations), False, 0.0, 0
    if few:
        proof = exact(space, choice, max_nodes)
        choice, proven, bound, nodes = (
            proof.choice,
            proof.proven,
            proof.lower_bound,
            proof.num_nodes,
        )
    if choice is None:
        raise Refusal(why_none_fits(space, costs_of))
    choice = descend(
        space, choice
    )  # leaves a proven plan as it is, after evaluating its neighbours
    default = space.default()
    best = _candidate(space, choice)
    others = [_candidate(space, other, best) for other in _next(space, choice, num_best - 1)]
    return Found(
        best=best,
        others=tuple(others),
        default=None if default is None else _candidate(space, default, best),
        proven=proven,
        lower_bound=bound,
        num_evaluations=space.evaluations,
        num_nodes=nodes,
        work=work,
        shared_throughput=costs.shared_throughput,
    )


def _candidate(space: Space, choice: Choice, best: Candidate | None = None) -> Candidate:
    plan = space.plan(choice)
    simulation = simulate(space.calls, plan, space.costs, space.work, space.num_devices)
    return Candidate(plan, simulation, why_worse(simulation, best.simulation) if best else "")


def _next(space: Space, choice: Choice, count: int) -> list[Choice]:
    """The fastest of what was asked for that take longer than the best one."""
    least = space.seconds(choice) * (1 + 1e-9)
    fitting = (
        candidate
        for seconds, candidate in space.best()
        if seconds > least and space.excess(candidate) <= 0
    )
    return [candidate for candidate, _ in zip(fitting, range(max(count, 0)), strict=False)]


def advice(synchronous: Found, asynchronous: Found) -> str:
    """One sentence: whether sampling beside training would make rounds shorter, by the best plans
    of both loops.
    """
    before, after = (
        result.best.simulation.seconds_per_round for result in (synchronous, asynchronous)
    )
    lag = asynchronous.work.lag
    figures = f"{after:.3g} s a round at lag {lag} against {before:.3g} s in the synchronous loop"
    if synchronous.shared_throughput:
        return f"Stay synchronous: these devices share one host's cores, so overlap gains nothing ({figures})."
    gain = 1 - after / before
    if gain > 0.05:
        return f"Sample asynchronously: a round is {100 * gain:.0f} % shorter, {figures}, with samples {lag} round(s) older."
    if gain > 0:
        return f"Stay synchronous: asynchrony would gain {100 * gain:.1f} %, {figures}, which its older samples hardly repay."
    return f"Stay synchronous: asynchrony gains nothing here, {figures}; all devices are worth more to each call in turn."
