"""Breaks algorithms on purpose in whole runs on templated reviews: what a threshold on held-out gold
must notice.

Each of `--algorithms` is run whole, and with each fault: its rewards' sign wrong; its mask missing,
so that what follows the EOS is trained on; its rewards in another order than its groups (sample g
of prompt p gets that of another prompt). SFT and reward model are trained once. Figures are those
of the last evaluation. The sizes are those of the studies.

    python -m experiments.bench.sabotage --algorithms grpo,online_dpo
"""

import dataclasses
import os
import tempfile
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from configs.common import reviews
from experiments.bench import measure
from rlhf_jax import build
from rlhf_jax.records.metrics import read
from rlhf_jax.stages import pipeline, rlhf
from rlhf_jax.types import Algorithm, Batch, Samples, Scores

Credit = Callable[[Samples, Scores], Batch]


def wrong_sign(credit: Credit) -> Credit:
    """The worst is taken for the best."""
    return lambda samples, scores: credit(
        samples, dataclasses.replace(scores, score_B=-scores.score_B)
    )


def missing_mask(credit: Credit) -> Credit:
    """Every position is trained on, whatever was sampled there."""

    def broken(samples: Samples, scores: Scores) -> Batch:
        return credit(dataclasses.replace(samples, mask_BC=jnp.ones_like(samples.mask_BC)), scores)

    return broken


def wrong_group_order(credit: Credit) -> Credit:
    """Scores come sample by sample where they should come prompt by prompt."""

    def broken(samples: Samples, scores: Scores) -> Batch:
        score_GP = scores.score_B.reshape(-1, samples.samples_per_prompt).T
        return credit(samples, dataclasses.replace(scores, score_B=score_GP.reshape(-1)))

    return broken


FAULTS = {"whole": lambda credit: credit}
FAULTS |= {fault.__name__: fault for fault in (wrong_sign, missing_mask, wrong_group_order)}


def last_figures(name: str, fault: str, folder: str, params: Any, reward: Any) -> dict[str, Any]:
    """One run of RLHF, and its last evaluation."""
    config = reviews.base(name)
    config.directory = f"{folder}/{name}-{fault}"
    config.rlhf.evaluate_every = config.rlhf.checkpoint_every = config.rlhf.log_samples = 0
    workspace, stages, algorithm = build.prepare(config)
    broken: Algorithm = dataclasses.replace(algorithm, credit=FAULTS[fault](algorithm.credit))
    try:
        rlhf.run(workspace, stages, broken, reward, params)
    except FloatingPointError as error:
        return {"case": f"{name}, {fault}", "ended": str(error)}
    line = [line for line in read(workspace.metrics.path) if line["stage"] == "evaluate"][-1]
    return {"case": f"{name}, {fault}"} | {
        key: round(line[key], 3) for key in ("gold_mean", "win_rate", "kl")
    }


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--algorithms", default="grpo,online_dpo,rloo")
    options = parser.parse_args()
    load, cases = os.getloadavg(), []
    with tempfile.TemporaryDirectory() as folder:
        config = reviews.base()
        config.directory = f"{folder}/shared"
        workspace, stages, _ = build.prepare(config)
        params, reward = pipeline.before_rlhf(workspace, stages)
        for name in options.algorithms.split(","):
            cases += [last_figures(name, fault, folder, params, reward) for fault in FAULTS]
            print(cases[-len(FAULTS) :], flush=True)
    measure.report("sabotage", cases, load, options.output)


if __name__ == "__main__":
    main()
