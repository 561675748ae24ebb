"""Overlap of calls on devices of their own: generating and training, each in a process pinned to a
core of its own.

Virtual devices of one process share its threads, so that overlap there says nothing. Here each side
has a core, as it would have an accelerator: seconds of each alone, and of both at once, over the
longer of the two alone (1: all of it overlaps).

    python -m experiments.bench.pinned
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.bench import measure

SIDES = ("generate", "train_policy")
SECONDS = 4.0


def side(name: str) -> Callable[[], None]:
    """One run of a call, waited for."""
    import jax

    from experiments.bench import plans
    from rlhf_jax.planner.costs.measure import filled
    from rlhf_jax.runtime.program import Program

    spec, params = plans.make_spec(plans.Case())
    program = Program(spec, params)
    compiled, held = program.lowered(name).compile(), [filled(program.arguments(name))]

    def run() -> None:
        results = jax.block_until_ready(compiled(*held[0]))
        if name.startswith("train_"):
            held[0] = (results[0], *held[0][1:])  # what was donated

    return run


def serve(name: str, core: int) -> None:
    """A child: pinned before any thread of the backend is there; runs for a while each time it is
    asked, and says how often.
    """
    os.sched_setaffinity(0, {core})
    run = side(name)
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < SECONDS:
            run()
            count += 1
        print((time.perf_counter() - began) / count, flush=True)


def ask(children: list[subprocess.Popen[str]]) -> list[float]:
    """Seconds of one run of every child process. They run at the same time."""
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    return [float(child.stdout.readline()) for child in children if child.stdout is not None]


def compare(repeats: int) -> dict[str, Any]:
    cores = sorted(os.sched_getaffinity(0))[: len(SIDES)]
    if len(cores) < len(SIDES):
        raise SystemExit(f"two cores are needed, and there are {len(cores)}")
    command = [sys.executable, "-m", "experiments.bench.pinned", "--serve"]
    children = [
        subprocess.Popen(
            [*command, name, str(core)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for name, core in zip(SIDES, cores, strict=True)
    ]
    try:
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        alone, together = [], []
        for _ in range(repeats):
            alone.append([ask([child])[0] for child in children])
            together.append(ask(children))
    finally:
        for child in children:
            child.kill()
    least_alone, least_together = (
        [min(seconds) for seconds in zip(*of, strict=True)] for of in (alone, together)
    )
    slowdown = [both / one for one, both in zip(least_alone, least_together, strict=True)]
    one, other = least_alone
    return {
        "case": "generate beside train_policy",
        "alone_seconds": dict(zip(SIDES, (round(value, 4) for value in least_alone), strict=True)),
        "at_once_seconds": dict(
            zip(SIDES, (round(value, 4) for value in least_together), strict=True)
        ),
        "slowdown": dict(zip(SIDES, (round(value, 3) for value in slowdown), strict=True)),
        "at_once_of_longer": round(max(least_together) / max(one, other), 3),
        "at_once_of_sum": round(max(least_together) / (one + other), 3),
    }


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], int(sys.argv[3]))
        return
    options = measure.parser(__doc__).parse_args()
    load = os.getloadavg()
    measure.report("pinned", [compare(options.repeats)], load, options.output)


if __name__ == "__main__":
    main()
