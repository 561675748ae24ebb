"""Every file of `rlhf_jax/algorithms/`, every preset of their table, one algorithm of groups kept
here, and those of `--component`, against every check.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

from rlhf_jax import registry
from rlhf_jax.ops import versions
from rlhf_jax.types import Algorithm
from tests import components

from . import checks, examples, lessons
from .leave_one_out import leave_one_out


def algorithm_of(name: str, check: Callable[..., None] | None = None) -> Algorithm:
    """The algorithm of a file with its defaults: the factory is named as the file.

    What is said of rewards alone is said at KL weight 0, for an algorithm that has one.
    """
    return _made(name, check in lessons.WITHOUT_KL)


@cache  # a loss that is made once is compiled once, for all checks
def _made(name: str, without_kl: bool) -> Algorithm:
    config = registry.settings("algorithms", name)()
    if without_kl and hasattr(config, "kl_weight"):
        config = replace(config, kl_weight=0.0)
    if without_kl and hasattr(config, "penalty"):
        config = replace(config, penalty=replace(config.penalty, kl_weight=0.0))
    made = registry.make("algorithms", name, config)
    assert isinstance(made, Algorithm), (
        f"the algorithm {name} makes a {type(made).__name__}; accepted: an Algorithm"
    )
    return made


SUBJECTS = [*components.names("algorithms"), "leave_one_out"]
PRESETS = [] if components.every_own() else registry.presets("algorithms")
CHECKS = [*checks.ALL, *lessons.ALL]
SLOW = {lessons.lifts_the_toy_reward}
"""Checks that are slow for a preset: on-policy its loss is that of the algorithm it is made of."""


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(
            name,
            check,
            id=f"{name}-{check.__name__}",
            marks=[pytest.mark.slow] if name in PRESETS and check in SLOW else [],
        )
        for name in (*SUBJECTS, *PRESETS)
        for check in CHECKS
    ],
)
def test_battery(name, check):
    algorithm = leave_one_out() if name == "leave_one_out" else algorithm_of(name, check)
    try:
        check(algorithm)
    except Exception as error:
        promise = " ".join(check.__doc__.split())
        raise AssertionError(
            f"the algorithm {name} does not keep a promise of every algorithm: {promise}"
        ) from error


def test_the_battery_has_rows_of_several_versions():
    samples = examples.random_samples(checks.SEED)
    is_mixed_B = versions.is_mixed(samples.version_BC, samples.mask_BC)
    assert 0.3 <= is_mixed_B.mean() < 1


@pytest.mark.parametrize("name", [*components.names("algorithms"), *PRESETS])
def test_is_named_as_its_file(name):
    algorithm = algorithm_of(name)
    assert algorithm.name == registry.label(name)
    assert "policy" in algorithm.losses
    assert ("critic" in algorithm.losses) == ("value" in algorithm.needs)


def test_every_file_is_among_the_subjects():
    assert {"online_dpo", *registry.names("algorithms")} <= set(SUBJECTS)
