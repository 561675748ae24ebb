"""Numbers of a config as arguments of compiled functions."""

from dataclasses import dataclass, field

import jax
import pytest

from rlhf_jax.ops import scalars


@dataclass(frozen=True)
class Inner:
    cap: float = 2.0

    def __post_init__(self):
        if self.cap <= 0:
            raise ValueError("cap")


@dataclass(frozen=True)
class Outer:
    weight: float = 0.5
    inner: Inner = field(default_factory=Inner)
    terms: tuple[Inner, ...] = (Inner(3.0), Inner(5.0))


NAMES = ("weight", "inner.cap", "terms.1.cap")


def product(config: Outer):
    """A function that leaves out its first factor where the weight is 0."""

    def function(x):
        x = x if scalars.is_zero(config.weight) else x * config.weight
        return x * config.inner.cap * config.terms[1].cap

    return function


def lowered(function) -> str:
    numbers = scalars.scalars_of_function(function)
    compiled = jax.jit(lambda x, numbers: scalars.at(function, numbers)(x))
    return compiled.lower(1.0, numbers).as_text()


def test_values_of_nested_fields_are_read_and_replaced():
    config = Outer()
    values = scalars.scalars_of(config, NAMES)
    assert values == {"weight": 0.5, "inner.cap": 2.0, "terms.1.cap": 5.0}
    changed = scalars.with_values(config, {"inner.cap": -1.0, "terms.1.cap": 7.0})
    assert (changed.inner.cap, [term.cap for term in changed.terms]) == (-1.0, [3.0, 7.0])
    assert config == Outer(), "the config that was given stays as it is"


def test_two_values_have_one_program_and_their_own_results():
    one = scalars.scaled(product, Outer(), NAMES)
    other = scalars.scaled(product, Outer(0.25, Inner(4.0), (Inner(), Inner(9.0))), NAMES)
    assert lowered(one) == lowered(other)
    for function in (one, other):
        numbers = scalars.scalars_of_function(function)
        through_arguments = jax.jit(lambda n, f=function: scalars.at(f, n)(1.0))(numbers)
        assert through_arguments == function(1.0)
    assert one(1.0) != other(1.0)


def test_a_number_that_is_not_named_is_a_constant():
    one = scalars.scaled(product, Outer(), NAMES[:2])
    other = scalars.scaled(product, Outer(terms=(Inner(), Inner(9.0))), NAMES[:2])
    assert lowered(one) != lowered(other)


def test_zero_is_a_constant_that_code_may_branch_on():
    function = scalars.scaled(product, Outer(weight=0.0), NAMES)
    assert "weight" not in scalars.scalars_of_function(function)
    assert function(1.0) == 10.0
    assert lowered(function).count("multiply") == 2
    with pytest.raises(jax.errors.TracerBoolConversionError):
        lowered(
            scalars.scaled(lambda config: lambda x: x if config.weight else 0.0, Outer(), NAMES)
        )


def test_wrapping_keeps_the_numbers():
    function = scalars.scaled(product, Outer(), NAMES)
    doubled = scalars.through(function, lambda inner: lambda x: 2 * inner(x))
    assert scalars.scalars_of_function(doubled) == scalars.scalars_of_function(function)
    assert doubled(1.0) == 2 * function(1.0)
    assert scalars.at(doubled, {"weight": 3.0})(1.0) == 2 * 3.0 * 2.0 * 5.0


def test_a_plain_function_has_no_numbers():
    def function(x):
        return x

    assert scalars.scalars_of_function(function) == {}
    assert scalars.at(function, {"weight": 1.0}) is function
    assert scalars.scaled(lambda config: function, Outer(), ()) is function
