"""The numbers of every algorithm that compiled programs take as arguments."""

import dataclasses
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from rlhf_jax import registry
from rlhf_jax.algorithms.common.numbers import with_arguments
from rlhf_jax.algorithms.policy_gradient import Config
from rlhf_jax.config import flatten
from rlhf_jax.face.settings import plain
from rlhf_jax.ops.corrections import Correction
from rlhf_jax.ops.policy_gradient.advantages import Advantage
from rlhf_jax.ops.policy_gradient.penalties import Penalty
from rlhf_jax.ops.policy_gradient.row_filters import RowFilter
from rlhf_jax.ops.policy_gradient.surrogates import Surrogate
from rlhf_jax.ops.scalars import at, scalars_of_function, with_values
from rlhf_jax.types import Algorithm
from tests import components

from .checks import example

CONSTANTS = {"low", "high"}
"""Fields of package algorithms that stay constants: ends of a range, see `grpovi.SCALARS`."""
VALUES = {
    "correction.cap": (1.2, 1.6),
    "correction.floor": (1e-6, 0.9),
    "correction.second_moment": (0.3, 3.0),
    "surrogate.far": (1.5, 3.0),
    "surrogate.cap": (1.2, 1.6),
    "surrogate.floor": (0.05, 0.9),
    "filter.low": (0.05, 0.99),
    "filter.high": (1.1, 3.0),
    "filter.veto": (0.3, 1.5),
}
CORRECTIONS = {
    "correction.cap": ("proximal", "truncate"),
    "correction.floor": ("proximal", "mask"),
    "correction.second_moment": ("behavior", "second_moment"),
}
"""The correction that uses a number."""

BEHAVIOR = Correction("behavior", "none")
WEIGHED = Config(surrogate=Surrogate(flow="logprob", gate="none"))
SOFT = Config(surrogate=Surrogate(gate="soft"), correction=BEHAVIOR)
GAMMA = Config(
    surrogate=Surrogate("sequence", "logprob", "gamma", shape_negative=(0.2, 0.3)),
    correction=BEHAVIOR,
)
BAND = Config(filter=RowFilter("geometric", 0.5, 2.0))
PIECES = {
    "surrogate.floor": WEIGHED,
    "surrogate.cap": WEIGHED,
    "surrogate.shape_positive.0": SOFT,
    "surrogate.shape_positive.1": GAMMA,
    "surrogate.shape_negative.0": SOFT,
    "surrogate.shape_negative.1": GAMMA,
    "filter.low": BAND,
    "filter.high": BAND,
    "filter.veto": Config(filter=RowFilter(veto=1.0)),
    "advantage.noise": Config(advantage=Advantage(power=0.0)),
    "advantage.shift": Config(advantage=Advantage(power=0.0)),
    "penalty.kl_weight": Config(penalty=Penalty("k3_weighted")),
    "interpolation": Config(correction=BEHAVIOR),
}
"""The settings of `policy_gradient` that use a number; the defaults use the others."""


def declared(name: str) -> tuple[str, ...]:
    return getattr(registry.located("algorithms", name)[0], "SCALARS", ())


CASES = [(name, number) for name in components.names("algorithms") for number in declared(name)]


def made(name: str, setting: str, **numbers: float) -> Algorithm:
    """The algorithm with values of its numbers, and with the correction or the pieces that use one
    of them.

    Args:
      name: of the algorithm.
      setting: as `setting_of` gives it.
    """
    config = registry.settings("algorithms", name)()
    if setting in CORRECTIONS:
        ratio_to, by = CORRECTIONS[setting]
        level = "sequence" if name == "rloo" else "token"
        config = replace(config, correction=Correction(ratio_to, by, level))  # type: ignore[arg-type]
    if name == "policy_gradient":
        config = PIECES.get(setting, config)
    config = with_values(config, numbers)
    return with_arguments(registry.make("algorithms", name, config), name, config)


def two_values(number: str) -> tuple[float, float]:
    return VALUES.get(number, (0.3, 0.4))


def setting_of(name: str, number: str) -> str:
    """A number that has settings of its own; "" for one that the algorithm's own settings use."""
    return number if name == "policy_gradient" or number in CORRECTIONS else ""


def first_values(name: str, setting: str) -> dict[str, float]:
    """The first of the two values of each number that is used beside a setting."""
    numbers = [number for number in declared(name) if setting_of(name, number) in ("", setting)]
    return {number: two_values(number)[0] for number in numbers}


@dataclasses.dataclass(frozen=True)
class Part:
    """A function of an algorithm: its credit, or the gradient of a loss."""

    numbers: Any  # by name, as arguments
    compiled: Any  # of (numbers, arguments)
    arguments: tuple[Any, ...]  # examples
    constant: Any  # the same function with its numbers as constants

    def lowered(self) -> Any:
        return self.compiled.lower(self.numbers, *self.arguments)


def parts_of(algorithm: Algorithm) -> dict[str, Part]:
    samples, scores, batch, outputs = example(algorithm)
    functions = {
        "credit": (algorithm.credit, lambda credit: credit, (samples, scores)),
        **{
            role: (loss, lambda loss: jax.value_and_grad(loss, has_aux=True), (outputs, batch))
            for role, loss in algorithm.losses.items()
        },
    }
    return {
        part: Part(
            scalars_of_function(function),
            jax.jit(
                lambda numbers, *arguments, function=function, of=of: of(at(function, numbers))(
                    *arguments
                )
            ),
            arguments,
            of(function),
        )
        for part, (function, of, arguments) in functions.items()
    }


@cache
def programs(name: str, setting: str):
    """Parts of the algorithm at its first values, the text of each program, and the program."""
    parts = parts_of(made(name, setting, **first_values(name, setting)))
    lowered = {part: made_part.lowered() for part, made_part in parts.items()}
    texts = {part: lowering.as_text() for part, lowering in lowered.items()}
    return parts, texts, {part: lowering.compile() for part, lowering in lowered.items()}


@pytest.mark.parametrize(("name", "number"), CASES)
def test_two_values_have_the_same_programs_and_other_results(name, number):
    """A number that is a constant somewhere, or is not used, fails."""
    setting = setting_of(name, number)
    parts, texts, compiled = programs(name, setting)
    values = first_values(name, setting) | {number: two_values(number)[1]}
    others = parts_of(made(name, setting, **values))
    assert all(number in part.numbers for part in others.values())
    assert {name: part.lowered().as_text() for name, part in others.items()} == texts
    # The programs are the same, so the first ones give the results at either value.
    results, others_results = (
        jax.tree.leaves(
            [compiled[name](part.numbers, *part.arguments) for name, part in of.items()]
        )
        for of in (parts, others)
    )
    pairs = zip(results, others_results, strict=True)
    assert any(not np.array_equal(x, y) for x, y in pairs), f"{number} changes nothing"


USED = sorted({(name, setting_of(name, number)) for name, number in CASES})


@pytest.mark.parametrize(("name", "setting"), USED)
def test_numbers_as_arguments_are_the_numbers_as_constants(name, setting):
    parts, _, compiled = programs(name, setting)
    for key, part in parts.items():
        results = compiled[key](part.numbers, *part.arguments)
        constants = jax.jit(part.constant)(*part.arguments)
        for array, constant in zip(
            jax.tree.leaves(results), jax.tree.leaves(constants), strict=True
        ):
            np.testing.assert_allclose(array, constant, rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", registry.names("algorithms"))
def test_every_number_of_the_package_is_an_argument(name):
    """A float that a new algorithm forgets to name would compile its programs once a value."""
    config = registry.settings("algorithms", name)()
    floats = {
        field.name
        for field in dataclasses.fields(config)
        if isinstance(getattr(config, field.name), float)
    }
    assert floats - CONSTANTS == {number for number in declared(name) if "." not in number}
    assert hasattr(config, "correction") == ("correction.cap" in declared(name))


def test_every_number_of_the_pieces_is_an_argument():
    leaves = flatten(plain(Config()))
    floats = {key for key, value in leaves.items() if isinstance(value, float)}
    pairs = {
        f"{key}.{n}" for key, value in leaves.items() if isinstance(value, tuple) for n in (0, 1)
    }
    assert floats | pairs == set(declared("policy_gradient"))


def test_an_algorithm_without_declared_numbers_is_as_it_was():
    config = registry.settings("algorithms", "best_of_n")()
    algorithm = registry.make("algorithms", "best_of_n", config)
    assert with_arguments(algorithm, "best_of_n", config) is algorithm


def test_zero_leaves_out_the_reference():
    for weight, needs in ((0.0, set()), (0.1, {"reference"})):
        algorithm = made("grpo", "", kl_weight=weight)
        assert algorithm.needs == needs
        assert ("kl_weight" in scalars_of_function(algorithm.losses["policy"])) == bool(weight)
