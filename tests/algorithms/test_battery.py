"""Every file of `rlhf_jax/algorithms/`, and one algorithm of groups kept here, against every check."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from rlhf_jax import registry
from rlhf_jax.types import Algorithm

from . import checks, lessons
from .leave_one_out import leave_one_out


def algorithm_of(name: str, check: Callable[..., None] | None = None) -> Algorithm:
    """The algorithm of a file with its defaults: the factory is named as the file.

    What is said of rewards alone is said at KL weight 0, for an algorithm that has one.
    """
    module = registry.find("algorithms", name)
    config = module.Config()
    if check in lessons.WITHOUT_KL and hasattr(config, "kl_weight"):
        config = replace(config, kl_weight=0.0)
    return getattr(module, name)(config)


SUBJECTS = [*registry.names("algorithms"), "leave_one_out"]


@pytest.mark.parametrize("check", [*checks.ALL, *lessons.ALL], ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", SUBJECTS)
def test_battery(name, check):
    check(leave_one_out() if name == "leave_one_out" else algorithm_of(name, check))


@pytest.mark.parametrize("name", registry.names("algorithms"))
def test_is_named_as_its_file(name):
    algorithm = algorithm_of(name)
    assert algorithm.name == name
    assert "policy" in algorithm.losses
    assert ("critic" in algorithm.losses) == ("value" in algorithm.needs)


def test_online_dpo_is_among_the_subjects():
    assert "online_dpo" in SUBJECTS
