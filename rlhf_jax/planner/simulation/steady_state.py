"""Seconds of a round in the steady state: the planner's objective, computed in microseconds a plan.

Every device is a queue in the order of dispatch, so that the times of a round are maxima of sums of
the times of the round before (a max-plus system), and soon every round is the last one shifted:
that shift is the answer. `schedule.py` plays the same rules event by event, also where virtual
devices share their host's cores.
"""

from rlhf_jax.planner.simulation import schedule
from rlhf_jax.planner.simulation.graph import Dataflow, Round

MAX_ROUNDS = 16
TOLERANCE = 1e-9
"""Share of a round to which two rounds' shifts are the same: float64 rounding, and no more."""


def seconds_per_round(flow: Dataflow, plan_round: Round) -> float:
    """Seconds of a round in the steady state, of the loop and clock of the work."""
    if flow.costs.shared_throughput or flow.work.sync_every > 1:
        return _played(flow, plan_round)
    if flow.work.loop == "synchronous":
        return _synchronous(plan_round, flow.policy)
    return _asynchronous(plan_round, flow.policy, flow.work.lag)


def lower_bound(flow: Dataflow, relaxed: Round) -> float:
    """A lower bound on the seconds of any plan whose rounds do at least this work; 0 where devices
    share cores. Where several rounds are of one version, it is what one device has to do.

    In the asynchronous loop the queues that both threads use are left out: in what order they are
    served depends on times, and all other waits hold in any order.
    """
    if flow.costs.shared_throughput:
        return 0.0
    if flow.work.sync_every > 1:
        return _busiest(relaxed, flow.policy, flow.work.loop == "synchronous")
    if flow.work.loop == "synchronous":
        return _synchronous(relaxed, flow.policy)
    queue = [
        [earlier for earlier in queued if (earlier == 1) == (task == 1)]
        for task, queued in enumerate(relaxed.queue)
    ]
    return _asynchronous(relaxed._replace(queue=queue), flow.policy, flow.work.lag)


def _synchronous(plan_round: Round, policy: int) -> float:
    """The lag changes nothing here: the loop samples one round and trains another, one after the
    other, whichever it is.
    """
    seconds, _, after, queue = plan_round
    end, ends = [0.0] * len(seconds), []
    for _ in range(MAX_ROUNDS):
        before = list(end)
        floor = end[policy]  # found finite before anything of the next round is dispatched
        for task, duration in enumerate(seconds):
            start = floor
            for earlier, latency in after[task]:
                start = max(start, end[earlier] + latency)
            for earlier in queue[task]:
                start = max(start, end[earlier])
            end[task] = start + duration
            if task == 1:
                floor = end[1]  # the loop waits for the samples
        ends.append(max(end))
        shift = ends[-1] - max(before)
        if all(
            abs(now - then - shift) <= TOLERANCE * shift
            for now, then in zip(end, before, strict=True)
        ):
            return shift
    return _mean_shift(ends)


def _asynchronous(plan_round: Round, policy: int, lag: int) -> float:
    """Two threads dispatch: where both could, the one that comes to it first, and of equals the
    trainer.
    """
    seconds, _, after, queue = plan_round
    end, ends = [0.0] * len(seconds), []
    published: list[float] = []
    generated: list[float] = []
    rounds = MAX_ROUNDS + 2 * lag
    while len(ends) < rounds:
        r, version = len(ends), max(0, len(generated) - lag)
        sampler = trainer = float("inf")
        if version < len(published):
            sampler = max(published[version], generated[-1] if generated else 0.0)
        scoring = len(published) > r
        if not scoring:
            trainer = end[policy]
        elif len(generated) > r:
            trainer = max(published[r], generated[r])
        tasks = (
            range(1, 2) if sampler < trainer else range(2, len(seconds)) if scoring else range(1)
        )
        for task in tasks:
            start = min(sampler, trainer)
            for earlier in queue[task]:
                start = max(start, end[earlier])
            for earlier, latency in after[task] if task > 1 else ():
                # the samples are ready by now: they are moved when a task needs them
                start = max(
                    start, (min(sampler, trainer) if earlier == 1 else end[earlier]) + latency
                )
            end[task] = start + seconds[task]
        if sampler < trainer:
            generated.append(end[1])
        elif scoring:
            ends.append(max(end[2:]))
            if _settled(ends, lag + 2):
                return ends[-1] - ends[-2]
        else:
            published.append(end[0])
    return _mean_shift(ends)


def _settled(ends: list[float], window: int) -> bool:
    """True where the last rounds took equally long; one more than the rounds that a lag lets a fast
    sampler run ahead.
    """
    if len(ends) < 2 * window + 1:
        return False
    shifts = [ends[-i] - ends[-i - 1] for i in range(1, window + 1)]
    return max(shifts) - min(shifts) <= TOLERANCE * shifts[0]


def _busiest(relaxed: Round, policy: int, synchronous: bool) -> float:
    """Seconds that the busiest device works in a round; in the synchronous loop also those of
    sampling and the policy's training, of which one waits for the other. Publishing is left out: not
    every round has it.
    """
    seconds, masks, _, _ = relaxed
    union = max(masks).bit_length()
    loads = [
        sum(
            duration for duration, mask in zip(seconds[1:], masks[1:], strict=True) if mask >> d & 1
        )
        for d in range(union)
    ]
    return max([seconds[1] + seconds[policy] if synchronous else 0.0, *loads])


def _played(flow: Dataflow, plan_round: Round) -> float:
    """The mean over played rounds, of whole stages between two versions of the sampler."""
    every = flow.work.sync_every
    rounds = every * (6 + 2 * flow.work.lag)
    ends = [0.0] * rounds
    for op in schedule.play(flow, plan_round, rounds):
        if op.kind == "train":
            ends[op.round_index] = max(ends[op.round_index], op.end)
    return _mean_shift(ends[every - 1 :: every]) / every


def _mean_shift(ends: list[float]) -> float:
    half = len(ends) // 2
    return (ends[-1] - ends[half]) / (len(ends) - 1 - half)
