"""The numbers of every algorithm that compiled programs take as arguments."""

import dataclasses
from dataclasses import replace
from functools import cache

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

pytestmark = pytest.mark.usefixtures("quick_compiles")

CONSTANTS = {"low", "high"}
"""Fields of package algorithms that stay constants: ends of a range, which the config checks."""
VALUES = {
    "correction.cap": (1.2, 1.6),
    "correction.floor": (0.05, 0.9),
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
    "advantage.shift": Config(advantage=Advantage(power=0.0)),
    "penalty.kl_weight": Config(penalty=Penalty("k3_weighted")),
    "interpolation": Config(correction=BEHAVIOR),
}
"""The settings of `policy_gradient` that use a number; the defaults use the others."""


def declared(name: str) -> tuple[str, ...]:
    return getattr(registry.located("algorithms", name)[0], "SCALARS", ())


CASES = [(name, number) for name in components.names("algorithms") for number in declared(name)]


def made(name: str, number: str, value: float) -> Algorithm:
    """The algorithm with a value of a number, and with the correction that uses it."""
    config = registry.settings("algorithms", name)()
    if number in CORRECTIONS:
        ratio_to, correction = CORRECTIONS[number]
        level = "sequence" if name == "rloo" else "token"
        config = replace(config, correction=Correction(ratio_to, correction, level))  # type: ignore[arg-type]
    if name == "policy_gradient":
        config = PIECES.get(number, config)
    config = with_values(config, {number: value})
    return with_arguments(registry.make("algorithms", name, config), name, config)


@cache
def programs(name: str, number: str, value: float):
    """Texts of the compiled credit and gradients with the numbers as arguments, their results, and
    the results of the same functions with the numbers as constants.
    """
    algorithm = made(name, number, value)
    samples, scores, batch, outputs = example(algorithm)
    functions = {
        "credit": (algorithm.credit, lambda credit: credit, (samples, scores)),
        **{
            role: (loss, lambda loss: jax.value_and_grad(loss, has_aux=True), (outputs, batch))
            for role, loss in algorithm.losses.items()
        },
    }
    texts, results, constants = {}, {}, {}
    for part, (function, of, arguments) in functions.items():
        numbers = scalars_of_function(function)
        assert number in numbers
        compiled = jax.jit(
            lambda numbers, *arguments, function=function, of=of: of(at(function, numbers))(
                *arguments
            )
        )
        texts[part] = compiled.lower(numbers, *arguments).as_text()
        results[part] = jax.tree.leaves(compiled(numbers, *arguments))
        constants[part] = jax.tree.leaves(jax.jit(of(function))(*arguments))
    return texts, results, constants


def two_values(number: str) -> tuple[float, float]:
    return VALUES.get(number, (0.3, 0.4))


@pytest.mark.parametrize(("name", "number"), CASES)
def test_two_values_have_the_same_programs_and_other_results(name, number):
    """A number that is a constant somewhere, or is not used, fails."""
    (texts, results, _), (other_texts, others, _) = (
        programs(name, number, value) for value in two_values(number)
    )
    assert texts == other_texts
    pairs = [(x, y) for part in results for x, y in zip(results[part], others[part], strict=True)]
    assert any(not np.array_equal(x, y) for x, y in pairs), f"{number} changes nothing"


@pytest.mark.parametrize(("name", "number"), CASES)
def test_a_number_as_argument_is_the_number_as_constant(name, number):
    _, results, constants = programs(name, number, two_values(number)[0])
    for part, arrays in results.items():
        for array, constant in zip(arrays, constants[part], strict=True):
            np.testing.assert_allclose(array, constant, rtol=1e-5, atol=1e-6, err_msg=part)


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
        algorithm = made("grpo", "kl_weight", weight)
        assert algorithm.needs == needs
        assert ("kl_weight" in scalars_of_function(algorithm.losses["policy"])) == bool(weight)
