"""Numbers that only scale, such as a weight, a bound or a rate, as arguments of compiled programs.

A Python number that a traced function closes over is a constant of its program: with another number
it is another program, which is compiled again. A component therefore names those fields of its
config that only scale. Inside the trace its functions are made again from a config that has traced
numbers in these fields, so that all values share one program.

A field that is 0 stays a constant, because code may leave out a term there: see `is_zero`.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rlhf_jax.types import Array

Scalars = Mapping[str, float | Array]
"""Numbers by the dotted names of their fields, such as "correction.cap"."""
T = TypeVar("T")
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
OtherT = TypeVar("OtherT", bound=Callable[..., Any])


@dataclass(frozen=True, eq=False)
class Scaled(Generic[FunctionT]):
    """A function and the numbers that a compiled program may take as arguments.

    Called as it is, its numbers are constants. `at` gives the function of other numbers.

    Attributes:
      function: of the config's own numbers.
      make: makes the function of given numbers, which may be traced.
      scalars: the config's own numbers.
    """

    function: FunctionT
    make: Callable[[Scalars], FunctionT]
    scalars: Mapping[str, float]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def scaled(make: Callable[[T], FunctionT], config: T, names: Iterable[str]) -> FunctionT:
    """`make(config)`, whose numbers in the named fields are arguments of compiled programs.

    Args:
      make: makes the function of a config, and of a copy with traced numbers. It must not branch
        on them but by `is_zero`.
      config: a dataclass, which may hold others and tuples of them.
      names: dotted names of fields; a part of digits is an index of a tuple.
    """
    function: Any = Scaled(
        make(config),
        lambda scalars: make(with_values(config, scalars)),
        scalars_of(config, names),
    )
    return function if function.scalars else function.function


def scalars_of_function(function: Callable[..., object]) -> dict[str, float]:
    """The numbers of a function that a compiled program takes as arguments; {} of a plain one."""
    return dict(function.scalars) if isinstance(function, Scaled) else {}


def at(function: FunctionT, scalars: Scalars) -> FunctionT:
    """The function of the given numbers; a plain function has none and is returned as it is.

    Args:
      function: plain or `Scaled`.
      scalars: as `scalars_of_function` gives them, or traced in the same way. {}: the function's
        own numbers, as constants.
    """
    made: Any = function.make(scalars) if isinstance(function, Scaled) and scalars else function
    return made


def through(function: FunctionT, wrap: Callable[[FunctionT], OtherT]) -> OtherT:
    """`wrap(function)`, which has the same numbers as the function.

    Args:
      function: plain or `Scaled`.
      wrap: makes another function of it.
    """
    if not isinstance(function, Scaled):
        return wrap(function)
    wrapped: Any = Scaled(
        wrap(function.function), lambda scalars: wrap(function.make(scalars)), function.scalars
    )
    return wrapped


def scalars_of(config: object, names: Iterable[str]) -> dict[str, float]:
    """The numbers of a config that are not 0.

    Args:
      config: a dataclass, which may hold others and tuples of them.
      names: dotted names of fields; a part of digits is an index of a tuple.
    """
    values = {name: _value(config, name) for name in names}
    return {name: float(value) for name, value in values.items() if value}


def with_values(config: T, values: Mapping[str, object]) -> T:
    """A copy of a config with other values, which may be traced.

    Nothing is checked: `__post_init__` could not read a traced number, and the config's own were
    checked when it was made.

    Args:
      config: a dataclass, which may hold others and tuples of them.
      values: by the dotted names of fields.
    """
    changed: Any = copy.copy(config)
    for name, value in values.items():
        first, _, rest = name.partition(".")
        inner = with_values(_value(changed, first), {rest: value}) if rest else value
        if isinstance(changed, tuple):
            changed = (*changed[: int(first)], inner, *changed[int(first) + 1 :])
        else:
            object.__setattr__(changed, first, inner)
    return changed


def is_zero(number: float | Array) -> bool:
    """True for the number 0. A traced number is not 0, since a 0 stays a constant."""
    return not isinstance(number, Array) and not number


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = config[int(part)] if isinstance(config, tuple) else getattr(config, part)
    return config
