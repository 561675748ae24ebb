"""Times of collapse, as a run's evaluations tell: first passage below its best win-rate."""

import math
from dataclasses import dataclass

import numpy as np

from experiments.studies.censored import area, fit
from rlhf_jax.report.statistics import Result

DROP = 0.20  # of win-rate below its largest value so far (protocol.md)
RATE = "rlhf.optimizer.learning_rate"
AHEAD = 8  # updates within which a collapse is predicted
BEHIND = 4  # rounds that a predictor looks back on


@dataclass(frozen=True)
class Passage:
    """The time of collapse of one run lies in (low, high]: updates; high is inf for a run that never
    did.
    """

    cyclic: bool  # the sampler is renewed every so many rounds
    oldest: int  # age of the clock in updates
    rate: float
    low: float
    high: float

    @property
    def happened(self) -> bool:
        return math.isfinite(self.high)

    @property
    def too_early(self) -> bool:
        """It happened at or before twice the largest age, of which the runs of larger ages are the
        same.
        """
        return self.high <= 2 * self.oldest

    @property
    def bounds(self) -> tuple[float, float]:
        """Bounds of the updates at full age. Of a constant lag S, whose ages grow from 0 to S at
        first, they are S/2 fewer. A collapse that is too early is known to lie below its bound alone.
        """
        ramp = 0.0 if self.cyclic else self.oldest / 2
        low = 0.0 if self.too_early else self.low
        high = 2 * self.oldest if self.too_early else self.high
        return max(0.0, low - ramp), high - ramp


def oldest_of(arm: str) -> tuple[bool, int]:
    """A clock by an arm's name (`lag4`, `sync5`): is its sampler renewed in cycles, and its largest age."""
    if arm.startswith("lag"):
        return False, int(arm.removeprefix("lag"))
    return True, int(arm.removeprefix("sync")) - 1


def below(line: Result, drop: float = DROP) -> list[bool]:
    """For each evaluation, whether its win-rate is more than `drop` below the largest one so far."""
    rates = [evaluation["win_rate"] for evaluation in line["curve"]]
    rates = [-math.inf if rate is None else rate for rate in rates]
    return [
        rate < largest - drop
        for rate, largest in zip(rates, np.maximum.accumulate(rates), strict=True)
    ]


def passage(line: Result, drop: float = DROP) -> Passage:
    """The first passage of a run. A run that diverged collapsed after its last evaluation at the
    latest.

    Args:
      line: of the run.
      drop: Δ.
    """
    updates = [evaluation["update"] for evaluation in line["curve"]]
    fallen = below(line, drop)
    cyclic, oldest = oldest_of(line["arm"])
    low, high = float(updates[-1]), math.inf
    if any(fallen):
        first = fallen.index(True)
        low, high = float(updates[first - 1]), float(updates[first])
    elif line.get("diverged"):
        planned = (*line["config"]["rlhf.evaluate_at"], line["num_updates"])
        high = float(min(update for update in planned if update > updates[-1]))
    return Passage(cyclic, oldest, line["setting"][RATE], low, high)


def slopes(passages: list[Passage]) -> dict[str, float]:
    """Coefficients of log T = a − b_S (log S + δ [cyclic]) − b_η log η, T in updates at full age.

    Returns "age" (b_S), "rate" (b_η), "constant" (a), and "cycle" (δ, the logarithm of the effective
    age of a cyclic clock over its largest; 0 without such runs).
    """
    bounds = np.array([item.bounds for item in passages])
    cyclic_N = np.array([float(item.cyclic) for item in passages])
    columns = [
        np.ones(len(passages)),
        [-math.log(item.oldest) for item in passages],
        [-math.log(item.rate) for item in passages],
    ]
    if cyclic_N.any():
        columns.append(-cyclic_N)
    found = fit(bounds[:, 0], bounds[:, 1], np.stack(columns, axis=1))
    named = dict(zip(("constant", "age", "rate"), map(float, found[:3]), strict=True))
    return named | {"cycle": float(found[3]) / named["age"] if cyclic_N.any() else 0.0}


PREDICTORS = {  # name -> how a run's recent rounds give a larger value before a collapse
    "row ESS": lambda recent: -min(recent["ess_share_row"]),
    "token ESS": lambda recent: -min(recent["ess_share_token"]),
    "largest log-ratio of a row": lambda recent: max(recent["row_log_ratio"]),
    "KL, trainer from sampler": lambda recent: max(recent["kl"]),
    "gradient norm": lambda recent: max(recent["grad_norm"]),
    "update norm": lambda recent: max(recent["update_norm"]),
}
AGE, LAW = "age alone", "age × learning rate"


def landmarks(line: Result) -> list[tuple[bool, dict[str, float]]]:
    """For each evaluation after twice the largest age and before the collapse: whether the run
    collapses within the next `AHEAD` updates, and its predictors' values then.
    """
    item, series, found = passage(line), line["measured"], []
    for evaluation in line["curve"]:
        update = evaluation["update"]
        if update <= 2 * item.oldest or update > item.low or update + AHEAD > line["num_updates"]:
            continue
        recent = {
            name: [
                math.inf if value is None else value
                for value in values[max(0, update - BEHIND) : update]
            ]
            for name, values in series.items()
        }
        values = {name: float(predictor(recent)) for name, predictor in PREDICTORS.items()}
        values |= {AGE: float(item.oldest), LAW: item.oldest * item.rate}
        found.append((item.high <= update + AHEAD, values))
    return found


def areas(lines: list[Result]) -> dict[str, float]:
    """The area under the operating curve of every predictor, over all evaluations of these runs."""
    pairs = [pair for line in lines for pair in landmarks(line)]
    event_N = np.array([event for event, _ in pairs])
    names = (*PREDICTORS, AGE, LAW)
    return {name: area(event_N, np.array([values[name] for _, values in pairs])) for name in names}
