"""Invented results of a study of staleness: what is learned slows with age, along one frontier,
more so for some algorithms.
"""

import importlib
import math
import random
from typing import Any

from experiments import results
from rlhf_jax.clock import Clock
from rlhf_jax.sweeps import cells
from rlhf_jax.sweeps.study import Arm

LEARNED = {
    "online_dpo": 3.4,
    "rloo": 3.2,
    "ppo": 3.8,
    "best_of_n": 2.2,
    "gspo": 3.0,
    "cispo": 3.6,
    "oapl": 3.1,
}  # nats after 64 fresh updates
SENSITIVE = {
    "online_dpo": 0.04,
    "rloo": 0.16,
    "ppo": 0.2,
    "best_of_n": 0.1,
    "gspo": 0.12,
    "cispo": 0.08,
    "oapl": 0.05,
}  # what an age costs, per log
KEYS = ("lag", "num_minibatches", "num_epochs", "samples_per_prompt")


def result(arm: Arm, seed: int, num_updates: int = 64, every: int = 8) -> dict[str, Any]:
    """The result of a reported cell, with noise of its seed."""
    schedule = {"lag": 0, "num_minibatches": 1, "num_epochs": 1, "samples_per_prompt": 2}
    schedule |= {
        key: arm.overrides[f"rlhf.{key}"] for key in KEYS if f"rlhf.{key}" in arm.overrides
    }
    clock = Clock(
        num_updates // schedule["num_minibatches"],
        schedule["num_minibatches"],
        schedule["num_epochs"],
        schedule["lag"],
    )
    ages = [
        clock.age(*divmod(update, clock.updates_per_round)) for update in range(clock.num_updates)
    ]
    mean_age, noise = sum(ages) / len(ages), random.Random(f"{arm.name} {seed}")
    size = {"width 32": 0.8, "width 128": 1.2}.get(arm.policy, 1.0)
    speed = 1 - SENSITIVE[arm.algorithm] / size * math.log2(1 + mean_age)
    speed *= schedule["num_epochs"] ** 0.4 * (schedule["samples_per_prompt"] / 2) ** 0.5
    curve = []
    for update in (0, 1, 2, 4, *range(every, clock.num_updates + 1, every)):
        share = update / clock.num_updates
        kl = (
            LEARNED[arm.algorithm]
            * size
            * max(0.05, speed)
            * share**0.8
            * (1 + 0.03 * noise.gauss(0, 1))
        )
        gold = 0.24 + 2.0 * math.sqrt(kl) - 0.05 * kl + 0.03 * noise.gauss(0, 1) + 0.1 * (seed % 3)
        rate = 1 / (1 + math.exp(-0.45 * gold))
        curve.append(
            {
                "update": update,
                "kl": kl,
                "gold_mean": gold,
                "win_rate": rate,
                "reward_mean": gold / 2,
            }
            | {"win_rate_greedy": min(1.0, rate + 0.08), "kl_perplexity": 1.05 + 0.02 * kl}
        )
    prompts = num_updates * 32
    completions = prompts * schedule["samples_per_prompt"]
    rows = prompts * schedule["num_epochs"] * (1 if arm.algorithm == "best_of_n" else 2)
    trained = {"prompts": prompts, "completions": completions, "rows": rows, "tokens": rows * 17}
    return {
        "arm": arm.name,
        "algorithm": arm.algorithm,
        "policy": arm.policy,
        "reward": arm.reward,
        "setting": {"rlhf.optimizer.learning_rate": 1e-3},
        "config": {
            key: value for key, value in arm.overrides.items() if key.startswith("algorithm.")
        },
        "purpose": "report",
        "processor": "invented",
        "commit": "0123456789ab",
        "date": "2026-01-01",
        "seed": seed,
        "schedule": schedule,
        "ages": {"mean": mean_age, "max": max(ages)},
        "trained": trained | {"updates": clock.num_updates, "prompts_per_update": 32},
        "curve": curve,
    }


def ones(completions: list[str]) -> list[float]:
    """A reward that differs among the completions of any policy: the ones in each."""
    return [float(text.count("1")) for text in completions]


def lines_of(name: str, every: int = 8) -> list[dict[str, Any]]:
    """Results of every reported cell of a study, five seeds.

    Args:
      name: of a study of `experiments.results`.
      every: updates between evaluations.
    """
    study = cells.load(results.STUDIES[name])
    return [result(arm, seed, every=every) for arm in study.arms for seed in range(5)]


def pages_of(name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The files of a study's page.

    Args:
      name: of the study.
      lines: results of its cells.
    """
    return importlib.import_module(f"experiments.studies.{name}.findings").pages(lines)
