"""Overhead of the asynchronous loop, and the overlap of its calls.

Simulated: stages that wait without using the host, so that only the loop is measured; seconds of a
round beside max(generate, train), for every lag, balanced and unbalanced, each stage jittered
uniformly by ± 20 %; beside them the same recursion without any thread. Machinery: the loop with
stages that take no time, and the ledger's rows, as a share of a round of the quickstart. Real: that
round, synchronous and asynchronous in turn, at the lag where both have the same numbers.

    python -m experiments.bench.overlap
"""

import dataclasses
import os
import random
import tempfile
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from configs import quickstart
from experiments.bench import measure
from rlhf_jax import build
from rlhf_jax.clock import Clock
from rlhf_jax.records import ledger
from rlhf_jax.rewards import learned
from rlhf_jax.runtime import asynchronous, synchronous
from rlhf_jax.runtime.program import Program, Reward
from rlhf_jax.stages import rlhf
from rlhf_jax.types import Mean

ROUNDS = 120
ROUND_SECONDS = 0.1
SHAPES = {"balanced": (1.0, 1.0), "1:3": (1 / 3, 1.0), "3:1": (1.0, 1 / 3)}
JITTER = 0.2
PUBLISH_SHARE = 0.01
REAL_ROUNDS = 8


def _one_token(version: int) -> dict[str, np.ndarray]:
    """Versions and mask of samples of one token, of which the loops read no more."""
    return {"version_BC": np.full((1, 1), version), "mask_BC": np.ones((1, 1), bool)}


class Simulated:
    """The calls of a program as waits: seconds of (generate, train, publish), jittered by round and
    seed.
    """

    def __init__(self, clock: Clock, generate: float, train: float, publish: float, seed: int):
        self.spec = SimpleNamespace(clock=clock)
        random_of = random.Random(seed)
        self.seconds = [
            tuple(
                mean * random_of.uniform(1 - JITTER, 1 + JITTER)
                for mean in (generate, train, publish)
            )
            for _ in range(clock.num_rounds)
        ]

    def publish(self, states: int) -> int:
        time.sleep(self.seconds[states][2])
        return states

    def generate(self, params: int, round_index: int, version: int) -> Any:
        time.sleep(self.seconds[round_index][0])
        return SimpleNamespace(round_index=round_index, **_one_token(version))

    def score(self, states: int, samples: Any) -> tuple[Any, Any]:
        return SimpleNamespace(score_B=np.zeros(1)), SimpleNamespace(
            round_index=samples.round_index, sample_R=None
        )

    def minibatch(self, batch: Any, round_index: int, update: int) -> Any:
        return batch

    def update(self, states: int, batch: Any) -> tuple[int, Any]:
        time.sleep(self.seconds[batch.round_index][1])
        return states + 1, {"loss": Mean(np.float32(0.0), np.float32(1.0))}  # type: ignore[arg-type]


def run(loop: Any, program: Any, states: Any) -> float:
    """Seconds of a round of a whole run, from its begin to the end of the last round."""
    began = time.perf_counter()
    for _ in loop.run(program, states, 0, {}):
        pass
    return (time.perf_counter() - began) / program.spec.clock.num_rounds


def ideal(program: Simulated, lag: int) -> float:
    """Seconds of a round of the same stages without any thread: who can begin when."""
    published, sampled, trained = [], [], 0.0
    free = 0.0
    for round_index, (generate, train, publish) in enumerate(program.seconds):
        published.append(trained + publish)
        while len(sampled) <= min(round_index + lag, len(program.seconds) - 1):
            next_round = len(sampled)
            generate = program.seconds[next_round][0]
            free = max(free, published[max(0, next_round - lag)]) + generate
            sampled.append(free)
        trained = max(published[-1], sampled[round_index]) + train
    return trained / len(program.seconds)


def simulated(lag: int, shape: str, repeats: int) -> dict[str, Any]:
    """Seconds of a round beside the larger stage's, the least of some runs of one schedule."""
    generate, train = (ROUND_SECONDS * share for share in SHAPES[shape])
    program = Simulated(
        Clock(ROUNDS, lag=lag), generate, train, ROUND_SECONDS * PUBLISH_SHARE, seed=lag
    )
    longest = max(
        np.mean([seconds[0] for seconds in program.seconds]),
        np.mean([s[1] + s[2] for s in program.seconds]),
    )
    took = min(run(asynchronous, program, 0) for _ in range(repeats))
    return {
        "case": f"simulated {shape}, lag {lag}",
        "round_of_longest": round(float(took / longest), 4),
        "ideal": round(float(ideal(program, lag) / longest), 4),
    }


def machinery(repeats: int) -> dict[str, float]:
    """Seconds that each loop takes for a round whose stages take none."""
    program = Simulated(Clock(2000, lag=1), 0.0, 0.0, 0.0, seed=0)
    program.publish = program.generate = lambda *arguments: SimpleNamespace(**_one_token(0))  # type: ignore[assignment, misc]
    program.spec.clock = Clock(2000, version_schedule=(0,) * 2000)
    program.update = lambda states, batch: (
        states + 1,
        {"loss": Mean(np.float32(0.0), np.float32(1.0))},
    )  # type: ignore[assignment, misc, arg-type]
    program.score = lambda states, samples: (
        SimpleNamespace(score_B=np.zeros(1)),
        SimpleNamespace(sample_R=None),
    )  # type: ignore[assignment, misc]
    loops = {"asynchronous": asynchronous, "synchronous": synchronous}
    return {
        name: min(run(loop, program, 0) for _ in range(repeats)) for name, loop in loops.items()
    }


def real_program(lag: int) -> tuple[Program, Any]:
    """The quickstart's round with fresh params; its workspace decodes."""
    values = quickstart.get_config().to_dict()
    values["directory"] = tempfile.mkdtemp()
    workspace, stages = build.workspace(values), build.stages(values)
    params = jax.jit(workspace.model.init)(workspace.key("init"))
    reward = Reward(
        learned.make(workspace.value_model),
        workspace.value_model.init_from(params, workspace.key("head")),
    )
    algorithm = build.algorithm(build.component("algorithms", "grpo").to_dict())
    config = dataclasses.replace(
        stages.rlhf, lag=lag, total_prompts=REAL_ROUNDS * stages.rlhf.prompts_per_update
    )
    return rlhf.make_program(workspace, config, algorithm, reward, params), workspace


def ledger_seconds(program: Program, workspace: Any, repeats: int) -> float:
    """Seconds to make and write the rows of a round of the quickstart, texts decoded."""
    states = program.init(program.reference_params)
    samples = program.generate(program.publish(states), 0, 0)
    scores, batch = program.score(states, samples)
    round_ledger, best = ledger.Ledger(workspace.directory), float("inf")
    uses = {0: np.asarray(batch.sample_R)}
    for _ in range(repeats + 1):
        began = time.perf_counter()
        fetched = jax.device_get(samples)
        texts = workspace.completions(fetched)
        one_each = jax.tree.map(
            lambda x: x[:: program.spec.sampling.samples_per_prompt] if x.ndim else x, fetched
        )
        prompts = workspace.stream("train", "rlhf").texts_of(one_each)
        round_ledger.write(
            0,
            ledger.rows(
                0, fetched, scores, uses, batch, program.spec.algorithm, prompts, texts, None
            ),
        )
        best = min(best, time.perf_counter() - began)
    return best


def real(repeats: int) -> list[dict[str, Any]]:
    """A round of the quickstart (GRPO), synchronous and asynchronous at lag 1, and what the loop
    and ledger cost of it.
    """
    program, workspace = real_program(lag=1)

    def side(loop: Any) -> Callable[[], None]:
        return lambda: run(loop, program, program.init(program.reference_params)) and None

    sides = {"synchronous": side(synchronous), "asynchronous": side(asynchronous)}
    seconds = {
        name: min(of_side) / REAL_ROUNDS
        for name, of_side in measure.interleaved(sides, repeats, 1).items()
    }
    costs = machinery(repeats) | {"ledger": ledger_seconds(program, workspace, repeats)}
    whole = seconds["synchronous"]
    return [
        {
            "case": "real, lag 1",
            "synchronous_seconds": round(whole, 4),
            "asynchronous_seconds": round(seconds["asynchronous"], 4),
            "asynchronous_of_synchronous": round(seconds["asynchronous"] / whole, 3),
        },
        {
            "case": "machinery",
            **{f"{name}_seconds": round(value, 6) for name, value in costs.items()},
            "loop_share_of_a_round": round(costs["asynchronous"] / whole, 5),
            "ledger_share_of_a_round": round(costs["ledger"] / whole, 5),
        },
    ]


def main() -> None:
    options = measure.parser(__doc__).parse_args()
    load = os.getloadavg()
    cases = [simulated(lag, shape, 1) for shape in SHAPES for lag in (1, 2, 3, 4)]
    measure.report("overlap", cases + real(options.repeats), load, options.output)


if __name__ == "__main__":
    main()
