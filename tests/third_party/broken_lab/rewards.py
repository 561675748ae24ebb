"""Rewards: one that says nothing of its noise, one that compares completions, one of another
length, one without a number.
"""

import random
from collections.abc import Sequence


def noise(completions: Sequence[str]) -> list[float]:
    return [random.SystemRandom().random() for _ in completions]


def ranked(completions: Sequence[str]) -> list[float]:
    order = sorted(completions)
    return [float(order.index(text)) for text in completions]


def short(completions: Sequence[str]) -> list[float]:
    return [0.0 for _ in completions[1:]]


def not_a_number(completions: Sequence[str]) -> list[float]:
    return [float("nan") for _ in completions]
