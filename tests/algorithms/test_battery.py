"""Every file of `rlhf_jax/algorithms/`, every preset of their table, one algorithm of groups kept
here, and those of `--component`, against every check.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import jax
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
SLOW = {checks.compiles, checks.prompts_may_be_permuted, lessons.lifts_the_toy_reward}
"""Checks that are slow for presets and quick for the algorithm that they are made of: they ask about
code that all presets share, and on-policy all of them have the same gradient.
"""


def keeps(name: str, check: Callable[[Algorithm], None]) -> None:
    """Raises AssertionError that names the algorithm and the promise which it does not keep."""
    algorithm = leave_one_out() if name == "leave_one_out" else algorithm_of(name, check)
    try:
        check(algorithm)
    except Exception as error:
        promise = " ".join(str(check.__doc__).split())
        raise AssertionError(
            f"the algorithm {name} does not keep a promise of every algorithm: {promise}"
        ) from error


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", SUBJECTS)
def test_battery(name, check):
    keeps(name, check)


@pytest.mark.parametrize("check", [c for c in CHECKS if c not in SLOW], ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", PRESETS)
def test_presets(name, check, monkeypatch):
    """Gradients are not compiled: a program for every preset takes longer than its operations do."""
    monkeypatch.setattr(examples, "_compiled", lambda loss: jax.value_and_grad(loss, has_aux=True))
    keeps(name, check)


@pytest.mark.parametrize("check", [c for c in CHECKS if c in SLOW], ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", PRESETS)
def test_presets_compiled(name, check):
    keeps(name, check)


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
