"""Seconds of an update of every algorithm on one round beside GRPO's, and the share of a round that
GRPOVI's adjustment takes.

The quickstart's shapes, its model with fresh params, and a fresh value head as the reward. A round
is generate, score, credit and update. PPO's figure is its policy's update; its critic's stands
beside it. Algorithms that train on fewer rows say how many.

    python -m experiments.bench.algorithms
"""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax

from configs import quickstart
from experiments.bench import measure
from rlhf_jax import build, registry
from rlhf_jax.ops.variance_increase import increase_variance
from rlhf_jax.rewards import learned
from rlhf_jax.runtime.program import Program, Reward
from rlhf_jax.stages import rlhf
from rlhf_jax.types import Array, Samples, Scores


def programs() -> dict[str, Program]:
    """A program for every algorithm, on one workspace, params and reward."""
    values = quickstart.get_config().to_dict()
    workspace, stages = build.workspace(values), build.stages(values)
    params = jax.jit(workspace.model.init)(workspace.key("init"))
    reward = Reward(
        learned.make(workspace.value_model),
        workspace.value_model.init_from(params, workspace.key("head")),
    )
    found = {}
    for name in registry.names("algorithms"):
        algorithm = build.algorithm(build.component("algorithms", name).to_dict())
        found[name] = rlhf.make_program(workspace, stages.rlhf, algorithm, reward, params)
    return found


def one_round(program: Program) -> tuple[Samples, Scores]:
    """Samples of a round and everything that any algorithm may need to know of them; `program` has
    a critic.
    """
    states = program.init(program.reference_params)
    samples = program.generate(program.publish(states), 0, 0)
    scores, _ = program.score(states, samples)
    return samples, replace(scores, proximal_logprob_BC=samples.behavior_logprob_BC)


def updates(
    program: Program, samples: Samples, scores: Scores
) -> tuple[dict[str, Callable[[], Any]], int]:
    """An update of each trained role on the round, donating its state, and the rows that it trains
    on.
    """
    states = program.init(program.reference_params)
    batch = jax.jit(program.spec.algorithm.credit)(samples, scores)

    def run(role: str) -> None:
        updated, _ = jax.block_until_ready(program.update({role: states[role]}, batch))
        states.update(updated)

    return {role: partial(run, role) for role in states}, batch.tokens_RC.shape[0]


def whole_round(program: Program) -> Callable[[], None]:
    """Generate, score, credit and update, waited for."""
    held = [program.init(program.reference_params)]

    def run() -> None:
        samples = program.generate(program.publish(held[0]), 0, 0)
        _, batch = program.score(held[0], samples)
        held[0], _ = jax.block_until_ready(program.update(held[0], batch))

    return run


def adjustment(score_PG: Array) -> Callable[[], None]:
    """The kernel alone on the scores of a round."""
    compiled = jax.jit(lambda score_PG: increase_variance(score_PG, -6.0, 6.0).fraction_PG)
    return lambda: jax.block_until_ready(compiled(score_PG))


def main() -> None:
    options = measure.parser(__doc__).parse_args()
    load, program_by_name = os.getloadavg(), programs()
    sides, rows = {}, {}
    samples, scores = one_round(program_by_name["ppo"])
    for name, program in program_by_name.items():
        of_roles, rows[name] = updates(program, samples, scores)
        sides |= {
            name if role == "policy" else f"{name}_{role}": side for role, side in of_roles.items()
        }
    seconds = measure.interleaved(sides, options.repeats)
    least = {name: min(of_side) for name, of_side in seconds.items()}
    cases: list[dict[str, Any]] = [
        {
            "case": name,
            "rows": rows.get(name.removesuffix("_critic")),
            "update_seconds": round(least[name], 5),
            "of_grpo": round(least[name] / least["grpo"], 3),
        }
        for name in sides
    ]
    score_PG = scores.score_B.reshape(-1, samples.samples_per_prompt)
    parts = {"round": whole_round(program_by_name["grpovi"]), "adjustment": adjustment(score_PG)}
    timed = {
        name: min(of_part) for name, of_part in measure.interleaved(parts, options.repeats).items()
    }
    share = {"adjustment_share": round(timed["adjustment"] / timed["round"], 6)}
    cases.append(
        {
            "case": "grpovi round",
            **{f"{name}_seconds": round(value, 6) for name, value in timed.items()},
            **share,
        }
    )
    measure.report("algorithms", cases, load, options.output)


if __name__ == "__main__":
    main()
