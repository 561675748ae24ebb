"""Both routes of the reward-variance kernel beside `jnp.sort` of the same array, compiled, the
sides in turn.

Uniform weights with ties kept are what training runs; both routes are timed with given weights too.
A kernel's time is that of the adjusted rewards; `select_everything` also returns what is logged.
`sort_of_bits` is the sort of the same rewards as int32, whose comparison is cheaper than that of
float32. One JSON line a shape, and one for all.

    python -m experiments.bench.variance_increase
"""

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import measure
from rlhf_jax.ops.variance_increase import increase_variance

SHAPES = [
    (1, 64),
    (1, 1024),
    (1, 16384),
    (1, 262144),
    (512, 8),
    (4096, 16),
    (4096, 64),
    (65536, 8),
    (64, 4096),
]
QUICK_ENTRIES = 70_000  # --quick leaves out what is larger
# a side is called this long at a time, so that the clock and a change of sides are small beside it
INNER_SECONDS = 0.002
LOW, HIGH = -6.0, 6.0


def adjusted(reward_PG: jax.Array, weight_PG: jax.Array | None = None, *, route: Any) -> jax.Array:
    return increase_variance(reward_PG, LOW, HIGH, weight_PG=weight_PG, route=route).adjusted_PG


def programs(num_groups: int, num_responses: int) -> dict[str, Callable[[], Any]]:
    """The sides, compiled, each with its arrays on the device."""
    rng = np.random.default_rng(0)
    shape = (num_groups, num_responses)
    reward_PG = jnp.asarray(rng.normal(size=shape).astype(np.float32))
    weight_PG = jnp.asarray(np.exp(rng.normal(size=shape)).astype(np.float32))
    sides: dict[str, Callable[[], Any]] = {"jnp_sort": partial(jax.jit(jnp.sort), reward_PG)}
    sides["sort_of_bits"] = partial(
        jax.jit(lambda values: jnp.sort(values.view(jnp.int32))), reward_PG
    )
    for route in ("sort", "select"):
        compiled = jax.jit(partial(adjusted, route=route))
        sides[route] = partial(compiled, reward_PG)
        sides[f"{route}_weighted"] = partial(compiled, reward_PG, weight_PG)
    everything = jax.jit(partial(increase_variance, low=LOW, high=HIGH, route="select"))
    return {**sides, "select_everything": partial(everything, reward_PG)}


def repeated(program: Callable[[], Any]) -> tuple[Callable[[], Any], int]:
    """The program called several times in a row, each finished before the next, and how often."""

    def once() -> None:
        jax.block_until_ready(program())

    least = min(measure.interleaved({"": once}, 3)[""])
    times = max(1, min(100, round(INNER_SECONDS / least)))

    def run() -> None:
        for _ in range(times):
            once()

    return run, times


def case(num_groups: int, num_responses: int, repeats: int) -> dict[str, Any]:
    """All sides in turn at one shape: minima in microseconds, and as shares of the sort's."""
    sides, times = {}, {}
    for side, program in programs(num_groups, num_responses).items():
        sides[side], times[side] = repeated(program)
    seconds = measure.interleaved(sides, repeats, warm_up=1)
    least = {side: min(values) / times[side] for side, values in seconds.items()}
    return {
        "case": f"{num_groups}x{num_responses}",
        "groups": num_groups,
        "responses": num_responses,
        "microseconds": {side: round(value * 1e6, 1) for side, value in least.items()},
        "of_a_sort": {
            side: round(value / least["jnp_sort"], 3)
            for side, value in least.items()
            if side != "jnp_sort"
        },
    }


def options() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.set_defaults(repeats=30)
    return parser.parse_args()


def main() -> None:
    chosen, load = options(), os.getloadavg()
    cases = []
    for num_groups, num_responses in SHAPES:
        small = num_groups * num_responses <= QUICK_ENTRIES
        if chosen.only in f"{num_groups}x{num_responses}" and (small or not chosen.quick):
            cases.append(case(num_groups, num_responses, chosen.repeats))
            print(json.dumps(cases[-1]), flush=True)
    measure.report("variance_increase", cases, load, chosen.output)


if __name__ == "__main__":
    main()
