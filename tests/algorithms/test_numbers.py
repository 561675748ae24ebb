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
from rlhf_jax.ops.corrections import Correction
from rlhf_jax.ops.scalars import at, scalars_of_function, with_values
from rlhf_jax.types import Algorithm
from tests import components

from .checks import example

pytestmark = pytest.mark.usefixtures("quick_compiles")

CONSTANTS = {"low", "high"}
"""Fields of package algorithms that stay constants: ends of a range, which the config checks."""
VALUES = {
    "correction.cap": (1.2, 1.6),
    "correction.floor": (0.05, 0.9),
    "correction.second_moment": (0.3, 3.0),
}
CORRECTIONS = {
    "correction.cap": ("proximal", "truncate"),
    "correction.floor": ("proximal", "mask"),
    "correction.second_moment": ("behavior", "second_moment"),
}
"""The correction that uses a number."""


def declared(name: str) -> tuple[str, ...]:
    return getattr(registry.located("algorithms", name)[0], "SCALARS", ())


CASES = [(name, number) for name in components.names("algorithms") for number in declared(name)]


def made(name: str, correction: str, **numbers: float) -> Algorithm:
    """The algorithm with values of its numbers, and with the correction that uses one of them.

    Args:
      name: of the algorithm.
      correction: a key of `CORRECTIONS`, or "" for the algorithm's own.
    """
    config = registry.settings("algorithms", name)()
    if correction:
        ratio_to, by = CORRECTIONS[correction]
        level = "sequence" if name == "rloo" else "token"
        config = replace(config, correction=Correction(ratio_to, by, level))  # type: ignore[arg-type]
    config = with_values(config, numbers)
    return with_arguments(registry.make("algorithms", name, config), name, config)


def two_values(number: str) -> tuple[float, float]:
    return VALUES.get(number, (0.3, 0.4))


def correction_of(number: str) -> str:
    return number if number in CORRECTIONS else ""


def first_values(name: str, correction: str) -> dict[str, float]:
    """The first of the two values of each number that is used beside a correction."""
    numbers = [number for number in declared(name) if correction_of(number) in ("", correction)]
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
def programs(name: str, correction: str):
    """Parts of the algorithm at its first values, the text of each program, and the program."""
    parts = parts_of(made(name, correction, **first_values(name, correction)))
    lowered = {part: made_part.lowered() for part, made_part in parts.items()}
    texts = {part: lowering.as_text() for part, lowering in lowered.items()}
    return parts, texts, {part: lowering.compile() for part, lowering in lowered.items()}


@pytest.mark.parametrize(("name", "number"), CASES)
def test_two_values_have_the_same_programs_and_other_results(name, number):
    """A number that is a constant somewhere, or is not used, fails."""
    correction = correction_of(number)
    parts, texts, compiled = programs(name, correction)
    values = first_values(name, correction) | {number: two_values(number)[1]}
    others = parts_of(made(name, correction, **values))
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


USED = sorted({(name, correction_of(number)) for name, number in CASES})


@pytest.mark.parametrize(("name", "correction"), USED)
def test_numbers_as_arguments_are_the_numbers_as_constants(name, correction):
    parts, _, compiled = programs(name, correction)
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


def test_an_algorithm_without_declared_numbers_is_as_it_was():
    config = registry.settings("algorithms", "best_of_n")()
    algorithm = registry.make("algorithms", "best_of_n", config)
    assert with_arguments(algorithm, "best_of_n", config) is algorithm


def test_zero_leaves_out_the_reference():
    for weight, needs in ((0.0, set()), (0.1, {"reference"})):
        algorithm = made("grpo", "", kl_weight=weight)
        assert algorithm.needs == needs
        assert ("kl_weight" in scalars_of_function(algorithm.losses["policy"])) == bool(weight)
