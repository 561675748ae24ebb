"""The quantities of a run and their units, which its config decides: one figure is not in one unit
in every run.

Training samples have the reward that the run trains on (`reward_standardized`), evaluations the
learned reward (`reward_mean`). A learned reward is in standard deviations of the SFT policy's
samples where `reward_model.standardize` is on, and else in the reward model's own unit. Exact match
is a share, the gold reward is in points.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_jax.records.jsonl import Line

EVALUATED_AT = 1.0  # temperature of an evaluation's samples; of "greedy" figures it is 0
FEW_PROMPTS = 24
"""With fewer prompts, 1.96 standard errors hold a mean clearly less often than 95 times of 100
(Student's t).
"""


@dataclass(frozen=True)
class Quantity:
    """A quantity as panels and cards name it; a share is printed in per cent."""

    title: str
    unit: str
    share: bool = False


@dataclass(frozen=True)
class Units:
    """The quantities and units of a run's figures.

    `reward` is the one that is trained on, `learned` the reward model's. `learned_std` is the
    learned reward's standard deviation over SFT samples, in `learned`'s unit; NaN where it is not
    known.
    """

    reward: Quantity
    learned: Quantity
    gold: Quantity
    learned_std: float
    temperature: float | None
    num_prompts: int | None

    @property
    def interval(self) -> str:
        """A sentence that says what ± means."""
        if self.num_prompts is not None and self.num_prompts < FEW_PROMPTS:
            return "1.96 standard errors over prompts"
        return "95 %"

    @property
    def half(self) -> str:
        """The number after ± in words."""
        return "half of a 95 % interval" if self.interval == "95 %" else self.interval


def value(config: Mapping[str, Any] | None, path: str) -> Any:
    """The entry of a resolved config at a dotted path; None where an older or a partial config
    lacks it.
    """
    node: object = config
    for key in path.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return None
        node = node[key]
    return node


def resolve(
    config: Mapping[str, Any] | None, lines: Sequence[Line], texts: Sequence[Line] = ()
) -> Units:
    """The units of a run.

    Args:
      config: the resolved config, or None.
      lines: of metrics.jsonl.
      texts: lines of samples.jsonl; their prompts count where they are fewer than the config asks
        for.
    """
    reward = value(config, "reward")
    standard = value(config, "reward_model.standardize")
    learned = Quantity("Learned reward", "unit not recorded")
    if standard is not None:
        learned = Quantity(
            "Learned reward", "SFT standard deviations" if standard else "reward model's unit"
        )
    gold = Quantity("Gold score", "points of the gold judge")
    trained = Quantity("Reward", "unit not recorded" if reward is None else "reward's own unit")
    if reward == "learned":
        trained = learned
    elif reward == "gold":
        trained = Quantity("Reward (gold)", gold.unit)
    elif reward == "exact_match":
        gold = Quantity("Exact match", "share of samples", share=True)
        trained = Quantity("Reward (exact match)", "share of samples", share=True)
    return Units(
        reward=trained,
        learned=learned,
        gold=gold,
        learned_std=1.0 if standard else _raw_std(lines),
        temperature=value(config, "rlhf.temperature"),
        num_prompts=_num_prompts(config, texts),
    )


def _raw_std(lines: Sequence[Line]) -> float:
    """The raw learned reward's standard deviation over SFT samples, as the reward model's stage
    measured it.
    """
    stds = [
        line["raw_std"] for line in lines if line.get("of") == "reward_model" and "raw_std" in line
    ]
    return float(stds[-1]) if stds else math.nan


def _num_prompts(config: Mapping[str, Any] | None, texts: Sequence[Line]) -> int | None:
    """The most prompts that the last evaluation can have had: as many as asked for, fewer where a
    split holds fewer.
    """
    shown = len({text["ordinal"] for text in texts if text["kind"] == "after"})
    known = [value(config, "evaluate.num_prompts")] + ([shown] if 0 < shown < FEW_PROMPTS else [])
    return min((count for count in known if count is not None), default=None)
