"""The planner's order of plans beside the order that was measured, and ReaLHF's claim, on two CPU
devices of one process that run at the same time.

    python -m experiments.bench.ranks --output experiments/bench/results/ranks.json    # a quiet machine
    python -m experiments.bench.ranks --smoke

A device is a thread of its own: XLA is kept from sharing a product over all cores
(`--xla_cpu_multi_thread_eigen=false`). `overlap` is measured beside: 1 where two devices together
take as long as the slower one alone, 0 where they take turns.

`ranks`: rounds of plans whose expected seconds are spread at least threefold, each measured in two
passes. The correlation of ranks of expected and measured seconds is given as a share of that of the
two measurements, with 95 % intervals of a bootstrap over plans. `realhf` (arXiv 2406.14088): PPO by
one mesh for every call, by the best plan that moves no params between calls of a role, and by the
searched plan; expected beside measured seconds with t-intervals.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from experiments.bench import measure, plans
from rlhf_jax.dataflow import Call
from rlhf_jax.devices.placement import text_of
from rlhf_jax.planner.api import CostModel
from rlhf_jax.planner.options import mesh_shapes, slices
from rlhf_jax.planner.search.branch_and_bound import exact
from rlhf_jax.planner.search.search import search
from rlhf_jax.planner.search.space import Space
from rlhf_jax.planner.simulation import simulate
from rlhf_jax.report.statistics import t_interval
from rlhf_jax.types import Placement, Plan

DEVICES = 2
FLAGS = f"--xla_cpu_multi_thread_eigen=false --xla_force_host_platform_device_count={DEVICES}"
HARDWARE = dataclasses.replace(plans.CPU, shared_cores=0)
"""Each device has a core of its own."""
MICRO_BATCHES = (1, 2, 4, 8)
LEAST_SPREAD = 3.0
RESAMPLES = 10_000
MAX_NODES = 20_000
SEARCHES = 4


def overlap(size: int = 768, steps: int = 20) -> float:
    """Share of the shorter of two devices' products that runs beside the longer one's."""

    def products(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, steps, lambda _, y: jnp.tanh(y @ x), x)

    run = jax.jit(products)
    given = [jax.device_put(jnp.ones((size, size)) / size, device) for device in jax.devices()]

    def seconds(arrays: Sequence[jax.Array]) -> float:
        began = time.perf_counter()
        jax.block_until_ready([run(array) for array in arrays])
        return time.perf_counter() - began

    sides = {"first": given[:1], "second": given[1:], "both": given}
    least = {
        name: min(found)
        for name, found in measure.interleaved(
            {name: partial(seconds, arrays) for name, arrays in sides.items()}, 7
        ).items()
    }
    alone = least["first"], least["second"]
    return (sum(alone) - least["both"]) / min(alone)


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's correlation of two rows: that of their ranks, of ties the mean."""
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def agreement(
    expected: Sequence[float], first: Sequence[float], second: Sequence[float]
) -> dict[str, float]:
    """Correlations of ranks: of expected and measured seconds (the mean of both passes), of the two
    passes, and the first as a share of the second.

    Args:
      expected: seconds of each plan.
      first: measured seconds of each, in one pass.
      second: in another.
    """
    ours = (correlation(expected, first) + correlation(expected, second)) / 2
    theirs = correlation(first, second)
    return {"expected_measured": ours, "measured_measured": theirs, "share": ours / theirs}


def intervals(
    expected: Sequence[float], first: Sequence[float], second: Sequence[float], seed: int = 0
) -> dict[str, list[float]]:
    """95 % intervals of `agreement` by a bootstrap over plans.

    Args:
      expected: seconds of each plan.
      first: measured seconds of each, in one pass.
      second: in another.
      seed: of the resamples.
    """
    random, rows = np.random.default_rng(seed), np.asarray([expected, first, second])
    found: dict[str, list[float]] = {}
    for _ in range(RESAMPLES):
        chosen = rows[:, random.integers(rows.shape[1], size=rows.shape[1])]
        for key, value in agreement(*(list(row) for row in chosen)).items():
            found.setdefault(key, []).append(value)
    return {
        key: [round(float(limit), 4) for limit in np.quantile(values, (0.025, 0.975))]
        for key, values in found.items()
    }


def spread(candidates: Sequence[Plan], seconds: Sequence[float], count: int) -> list[Plan]:
    """So many of the plans, their expected seconds spread evenly on a logarithmic scale.

    Raises ValueError where the slowest is expected to take less than threefold the fastest.
    """
    if max(seconds) < LEAST_SPREAD * min(seconds):
        raise ValueError(
            f"expected seconds are {min(seconds):.3g} to {max(seconds):.3g}: less than threefold"
        )
    left = dict(enumerate(np.log(seconds)))
    chosen = []
    for wanted in np.linspace(min(left.values()), max(left.values()), count):
        index = min(left, key=lambda each: abs(left[each] - wanted))
        del left[index]
        chosen.append(candidates[index])
    return chosen


def ranks(case: plans.Case, count: int, draws: int, path: Path | None) -> dict[str, Any]:
    """Expected and measured seconds of plans whose expected seconds are spread.

    Args:
      case: sizes of the round.
      count: plans.
      draws: random plans that they are taken from.
      path: of a file of measurements of calls.
    """
    (spec, params), (calls, profile) = (
        plans.make_spec(case),
        plans.make_profile(case, path, HARDWARE),
    )
    drawn = [
        plans.random_plan(calls, profile, seed, DEVICES, MICRO_BATCHES) for seed in range(draws)
    ]

    def seconds_of(plan: Plan) -> float:
        simulated = simulate.simulate(calls, plan, profile, case.work(), DEVICES)
        return simulated.seconds_per_round

    formulas = [seconds_of(plan) for plan in drawn]
    chosen = spread(drawn, formulas, count)
    for plan in chosen:
        profile.measure(calls, plan)
    expected = [seconds_of(plan) for plan in chosen]
    if max(expected) < LEAST_SPREAD * min(expected):
        raise ValueError(f"measured calls expect {min(expected):.3g} to {max(expected):.3g} s")
    sides = {str(index): plans.one_round(spec, params, plan) for index, plan in enumerate(chosen)}
    passes = [measure.interleaved(sides, 3, warm_up=2) for _ in range(2)]
    first, second = ([min(side[str(index)]) for index in range(count)] for side in passes)
    found = agreement(expected, first, second)
    return {
        "case": "ranks",
        **dataclasses.asdict(case),
        "plans": count,
        "spread": round(max(expected) / min(expected), 3),
        **{key: round(value, 4) for key, value in found.items()},
        "intervals": intervals(expected, first, second),
        "expected_seconds": [round(value, 4) for value in expected],
        "measured_seconds": [[round(value, 4) for value in row] for row in (first, second)],
        "texts": [text_of(plan) for plan in chosen],
    }


def layouts() -> list[tuple[tuple[int, ...], tuple[int, int, int]]]:
    """Every slice and mesh shape of the devices."""
    return [
        (devices, shape)
        for devices in slices(DEVICES, DEVICES)
        for shape in mesh_shapes(len(devices), DEVICES)
    ]


def without_moves(
    calls: Sequence[Call], costs: CostModel, case: plans.Case, shared: bool
) -> Plan | None:
    """The fastest plan in which all calls of a role have one layout, so that params never move; None
    where there is none.

    Args:
      calls: of a round.
      costs: of placed calls.
      case: sizes of the round.
      shared: True: all roles have the same layout too, which is one mesh for everything.
    """
    trained = sorted({call.role for call in calls if call.kind == "train"})
    best: tuple[float, Plan] | None = None
    options = [(each,) * len(trained) for each in layouts()]
    for chosen in options if shared else product(layouts(), repeat=len(trained)):
        of_role = dict(zip(trained, chosen, strict=True))

        def accepted(call: Call, place: Placement, of_role: dict = of_role) -> bool:
            fixed = of_role.get(call.role, next(iter(of_role.values())) if shared else None)
            return fixed is None or (place.devices, place.mesh_shape) == fixed

        space = Space(calls, costs, case.work(), DEVICES, DEVICES, MICRO_BATCHES, accepted)
        choice = exact(space, None, MAX_NODES).choice if all(space.options) else None
        if choice is not None and (best is None or space.seconds(choice) < best[0]):
            best = space.seconds(choice), space.plan(choice)
    return None if best is None else best[1]


def realhf(case: plans.Case, repeats: int, path: Path | None) -> dict[str, Any]:
    """PPO by one mesh, by the best plan that moves no params, and by the searched plan.

    Args:
      case: sizes of the round.
      repeats: rounds of each that are kept.
      path: of a file of measurements of calls.
    """
    (spec, params), (calls, profile) = (
        plans.make_spec(case),
        plans.make_profile(case, path, HARDWARE),
    )

    def found() -> dict[str, Plan]:
        best = search(
            calls, profile, case.work(), DEVICES, DEVICES, micro_batches=MICRO_BATCHES
        ).best.plan
        one, still = (without_moves(calls, profile, case, shared) for shared in (True, False))
        assert one is not None
        assert still is not None
        return {"one mesh": one, "moves no params": still, "searched": best}

    sides = found()
    for _ in range(SEARCHES):
        if not any(profile.missing(calls, plan) for plan in sides.values()):
            break
        for plan in sides.values():
            profile.measure(calls, plan)
        sides = found()
    seconds = measure.interleaved(
        {name: plans.one_round(spec, params, plan) for name, plan in sides.items()}, repeats
    )
    rows = {}
    for name, plan in sides.items():
        expected = simulate.simulate(calls, plan, profile, case.work(), DEVICES)
        mean, half = t_interval(seconds[name])
        rows[name] = {
            "expected_seconds": round(expected.seconds_per_round, 4),
            "measured_seconds": round(mean, 4),
            "half_width": round(half, 4),
            "least_seconds": round(min(seconds[name]), 4),
            "plan": text_of(plan),
        }
    return {"case": "realhf", **dataclasses.asdict(case), "repeats": repeats, "rows": rows}


def main() -> None:
    """Runs the benchmark."""
    parser = measure.parser(__doc__)
    parser.add_argument("--plans", type=int, default=40, help="plans whose rounds are measured")
    parser.add_argument("--profile", type=Path, help="a file of measurements to use again")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes; no figures")
    options: argparse.Namespace = parser.parse_args()
    load = os.getloadavg()
    # XLA reads its flags when the first device is asked for.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
    jax.config.update("jax_platforms", "cpu")
    case, count, draws = plans.Case(num_devices=DEVICES), options.plans, 400
    if options.smoke:
        case = dataclasses.replace(
            case, width=16, num_layers=1, num_prompts=8, prompt_tokens=5, completion_tokens=7
        )
        count, draws = 3, 40
    cases: list[dict[str, Any]] = [{"case": "overlap", "share": round(overlap(), 4)}]
    if options.only in "ranks":
        cases.append(ranks(case, count, draws, options.profile))
        print(json.dumps(cases[-1]), file=sys.stderr, flush=True)
    if options.only in "realhf":
        cases.append(realhf(case, 2 if options.smoke else options.repeats, options.profile))
    measure.report("ranks", cases, load, options.output)


if __name__ == "__main__":
    main()
