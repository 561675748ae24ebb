"""Writes the page of the study of reward models of three sizes from its ended cells; the rules are
those of `protocol.md`.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.studies import model_sizes
from experiments.studies.markdown import table, with_interval
from experiments.studies.offpolicyness.measures import reported
from rlhf_jax.report.statistics import Result, by_seed, final

ROUNDS = 8


def spread(line: Result) -> float:
    """The spread of rewards within prompts over the first rounds of a run, in deviations of the reward
    over samples of the SFT policy.
    """
    within = line["measured"]["within_prompt_std"][:ROUNDS]
    return float(np.mean(within)) / line["reward_model"]["raw_std"]


def gain(line: Result) -> float:
    """Gold at the end − gold of the SFT policy."""
    return final(line, "gold_mean") - line["curve"][0]["gold_mean"]


def reward_models(lines: Sequence[Result]) -> str:
    """A row for each size of reward model: accuracy and spread beside the gain in gold at N = 1."""
    fresh = [line for line in reported(lines) if line["schedule"]["num_minibatches"] == 1]
    rows = []
    for name in sorted({line["reward"] for line in fresh}, key=model_sizes.width):
        runs = [line for line in fresh if line["reward"] == name]
        rows.append(
            [
                str(model_sizes.width(name)),
                with_interval(
                    by_seed(runs, lambda line: line["reward_model"]["heldout_accuracy"]), 3
                ),
                with_interval(by_seed(runs, spread), 2),
                with_interval(by_seed(runs, gain), 2, signed=True),
            ]
        )
    head = ("width", "held-out accuracy", f"spread within prompts, first {ROUNDS} rounds")
    return table((*head, "gain in gold"), rows)


def pages(lines: Sequence[Result]) -> dict[str, str | Figure]:
    """The files of the page by their names in `docs/results/`."""
    return model_sizes.pages("reward_size", lines, "reward", models=reward_models(lines))
