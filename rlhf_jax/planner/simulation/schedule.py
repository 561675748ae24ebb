"""Simulates rounds of a plan event by event: the dispatch, the waits, and the start and end of
every task.

A host thread dispatches its tasks in order and waits where the loops wait
(`runtime/synchronous.py`, `asynchronous.py`); a device runs what was dispatched to it first. Where
virtual devices share their host's cores, n tasks that run at a time each progress at 1 / n. Between
the threads of the asynchronous loop the one that comes to its task first is first in a queue that
both use, and of equals the trainer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rlhf_jax.planner.simulation.graph import Dataflow, Round, TaskKind


@dataclass(eq=False)
class Op:
    """A task of a round. `waits`: for what, and the seconds that data take to come once the task is
    dispatched; `host`: what the thread waits for before it dispatches the task; `ahead`: what was
    in the queues of its devices then.
    """

    name: str
    kind: TaskKind
    round_index: int
    mask: int
    left: float
    waits: list[tuple["Op", float]] = field(default_factory=list)
    host: list["Op"] = field(default_factory=list)
    ahead: list["Op"] = field(default_factory=list)
    dispatched: float = -1.0
    start: float = -1.0
    end: float = -1.0


def play(flow: Dataflow, plan_round: Round, num_rounds: int) -> list[Op]:
    """The tasks of `num_rounds` trained rounds, and of the sampling that the clock has ahead of
    them.
    """
    threads = _threads(flow, plan_round, num_rounds)
    _run(threads, flow.costs.shared_throughput)
    return [op for thread in threads for op in thread]


def _threads(flow: Dataflow, plan_round: Round, num_rounds: int) -> list[list[Op]]:
    """Every task of the rounds with what it waits for, by the thread that dispatches it; the
    trainer's thread first.
    """
    asynchronous = flow.work.loop == "asynchronous"
    # The simulated run goes on: it ends after all rounds that are sampled ahead.
    clock = flow.work.clock(num_rounds + flow.work.lag + flow.work.sync_every)
    ops: dict[tuple[int, int], Op] = {}

    def make(task_index: int, round_index: int) -> Op:
        kind, mask, seconds = (
            flow.kinds[task_index],
            plan_round.masks[task_index],
            plan_round.seconds[task_index],
        )
        ops[task_index, round_index] = Op(flow.names[task_index], kind, round_index, mask, seconds)
        return ops[task_index, round_index]

    trainer: list[Op] = []
    sampler: list[Op] = [] if asynchronous else trainer
    issued_last = 0
    for r in range(num_rounds):
        issued_rounds = clock.issued_at(r)
        trained = [ops[flow.policy, r - 1]] if r else []
        # The synchronous loop publishes every version, the asynchronous one those that are used.
        if issued_rounds or not asynchronous:
            publish = make(0, r + flow.work.lag)
            publish.host = trained
            trainer.append(publish)
            trained = [publish]
        for issued in issued_rounds:
            sampled = make(1, issued)
            sampled.host = [*trained, *([ops[1, issued - 1]] if issued else [])]
            sampler.append(sampled)
            issued_last = issued
        waited_for = clock.window(r)[-1] if asynchronous else issued_last
        for task_index in range(2, len(plan_round.seconds)):
            task = make(task_index, r)
            task.host = [*trained, ops[1, waited_for]]
            for earlier, latency in plan_round.after[task_index]:
                source = ops.get((earlier, r if earlier < task_index else r - 1))
                task.waits += [(source, latency)] if source else []
            trainer.append(task)
    return [trainer, sampler] if asynchronous else [trainer]


def _run(threads: Sequence[list[Op]], shared: bool) -> None:
    now, heads = 0.0, [0] * len(threads)
    queued: list[Op] = []  # dispatched, and not begun
    running: list[Op] = []
    while (
        queued
        or running
        or any(head < len(thread) for head, thread in zip(heads, threads, strict=True))
    ):
        while (
            _finish(running, now)
            or _begin(queued, running, now)
            or _dispatch(threads, heads, queued, running, now)
        ):
            pass
        if not queued and not running:
            continue
        rate = 1 / max(1, len(running)) if shared else 1.0
        soonest = min((op.left for op in running), default=float("inf"))
        arrivals = [_ready(op) - now for op in queued if _ready(op) < float("inf")]
        step = min([soonest / rate] + [arrival for arrival in arrivals if arrival > 0])
        for op in running:
            # the one that ends next ends exactly: a rounding error must not leave it a step of its
            # own
            op.left = 0.0 if op.left <= step * rate * (1 + 1e-12) else op.left - step * rate
        now += step


def _dispatch(
    threads: Sequence[list[Op]], heads: list[int], queued: list[Op], running: list[Op], now: float
) -> bool:
    for number, thread in enumerate(threads):
        if heads[number] < len(thread) and all(op.end >= 0 for op in thread[heads[number]].host):
            task = thread[heads[number]]
            task.ahead = [op for op in queued + running if op.mask & task.mask]
            task.dispatched = now
            queued.append(task)
            heads[number] += 1
            return True
    return False


def _ready(op: Op) -> float:
    """The time at which every dependency has arrived; infinite while one has not ended."""
    if any(earlier.end < 0 for earlier in op.ahead) or any(
        earlier.end < 0 for earlier, _ in op.waits
    ):
        return float("inf")
    return max(
        (max(earlier.end, op.dispatched) + latency for earlier, latency in op.waits), default=0.0
    )


def _begin(queued: list[Op], running: list[Op], now: float) -> bool:
    for op in queued:
        if _ready(op) <= now:
            op.start = now
            queued.remove(op)
            running.append(op)
            return True
    return False


def _finish(running: list[Op], now: float) -> bool:
    for op in running:
        if op.left <= 0:
            op.end = now
            running.remove(op)
            return True
    return False
