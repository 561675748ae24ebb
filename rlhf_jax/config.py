"""Bounds of a config's values, written in the annotations of its fields, and the one place that
checks them.

A component's `Config` says of each number what it may be, beside its default:

    beta: Positive = 0.1
    heldout_percent: Annotated[int, Bounds(least=0, most=99)] = 10
    schedule: Literal["linear", "cosine"] = "linear"

`fill` turns a node of a config into such a dataclass. It refuses unknown and missing keys, values
of another type, numbers outside of their bounds, and texts that a Literal does not list. A float
has to be finite, and within its bounds, as the float32 that the compiled programs make of it.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np

from rlhf_jax.refusal import Refusal

LARGEST = 2**31 - 1
"""The largest number of the int32 arrays that count prompts, updates and tokens."""


class Settings(Protocol):
    """An instance of any dataclass, such as a component's `Config`."""

    __dataclass_fields__: ClassVar[dict[str, "dataclasses.Field[Any]"]]


SettingsT = TypeVar("SettingsT", bound=Settings)


@dataclass(frozen=True)
class Bounds:
    """The numbers that a key accepts.

    `least` and `most` are accepted themselves, `above` and `below` are not. `also` lists numbers
    outside of the bounds that have a meaning of their own, such as -1 for "as many as there are".
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    also: tuple[float, ...] = ()

    def accepts(self, value: float) -> bool:
        """True for a number within the bounds; NaN is in none."""
        inside = (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        return (inside and not math.isnan(value)) or value in self.also

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            inside = f"{self.least} to {_number(self.most)}"
        else:
            lower = [f"{self.least} or more"] if self.least is not None else []
            lower += [f"above {self.above}"] if self.above is not None else []
            upper = [f"at most {_number(self.most)}"] if self.most is not None else []
            upper += [f"below {self.below}"] if self.below is not None else []
            inside = ", ".join(lower + upper)
        return ", or ".join([inside, *map(_number, self.also)])


@dataclass(frozen=True)
class Unbounded:
    """Says that every finite number is accepted, and why."""

    reason: str

    def __str__(self) -> str:
        return "any finite number"


class Problems:
    """Collects the messages of several refusals, so that a person who made three mistakes is told
    of three.
    """

    def __init__(self) -> None:
        self._refusals: list[Refusal] = []

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Notes a refusal of the block; what follows the block runs all the same."""
        try:
            yield
        except Refusal as error:
            self._refusals.append(error)

    def note(self, message: str) -> None:
        """Notes one problem."""
        self._refusals.append(Refusal(message))

    def refuse(self) -> None:
        """Raises Refusal with everything that was noted; does nothing where there is nothing."""
        if len(self._refusals) == 1:
            raise self._refusals[0]  # with its own class
        if self._refusals:
            raise Refusal(
                *dict.fromkeys(message for error in self._refusals for message in error.messages)
            )


def _number(value: float) -> str:
    return "2**31 - 1" if value == LARGEST else str(value)


Count = Annotated[int, Bounds(least=1, most=LARGEST)]
Natural = Annotated[int, Bounds(least=0, most=LARGEST)]
Seed = Annotated[int, Bounds(least=0, most=LARGEST)]
Positive = Annotated[float, Bounds(above=0)]
NonNegative = Annotated[float, Bounds(least=0)]
Fraction = Annotated[float, Bounds(least=0, most=1)]


def fill(cls: type[SettingsT], values: object, where: str) -> SettingsT:
    """Returns `cls(**values)` with nested dataclasses, every value checked.

    Args:
      cls: a dataclass whose annotations say what is accepted.
      values: a mapping with its keys; those that are left out keep their defaults.
      where: the dotted key of the node, for messages; "" for the top of a config.

    Raises:
      Refusal: `values` is no mapping; or with a message per key that is unknown, missing, of
        another type or outside of its bounds.
    """
    if not isinstance(values, Mapping):
        raise Refusal(f"{where} is {values!r}; accepted: keys below it")
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    problems, filled = Problems(), {}
    for name, value in values.items():
        with problems.caught():
            if name not in fields:
                raise Refusal(
                    f"{where or 'the config'} has no key {name!r}{neighbours(name, fields)}"
                )
            filled[name] = _checked(value, hints[name], f"{where}.{name}" if where else name)
    absent = [name for name, field in fields.items() if name not in values and _is_required(field)]
    with problems.caught():
        if absent:
            raise Refusal(
                f"{where or 'the config'} lacks {', '.join(map(repr, absent))}, which has no "
                "default"
            )
    problems.refuse()
    try:
        return cls(**filled)
    except Refusal as error:
        raise type(error)(
            *(_with_whole_key(message, fields, where) for message in error.messages)
        ) from None


def _with_whole_key(message: str, names: Iterable[str], where: str) -> str:
    """A message of a dataclass's own check, whose key is the whole one, as it is typed.

    Args:
      message: begins with a field, or with the dataclass's own key.
      names: of its fields.
      where: its dotted key.
    """
    above, _, own = where.rpartition(".")
    first = message.partition(" ")[0].partition(".")[0]
    if above and first == own:
        return f"{above}.{message}"
    return f"{where}.{message}" if where and first in names else message


def neighbours(key: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown key: the nearest name, or all names.

    Args:
      key: the unknown one.
      names: those that are accepted.
    """
    names = list(names)
    close = difflib.get_close_matches(key, names, 1)
    return (
        f"; did you mean {close[0]!r}?"
        if close
        else f"; accepted: {', '.join(names) or 'no keys below it'}"
    )


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _checked(value: object, kind: object, where: str, finite: str = "a finite number") -> object:
    """The value as the annotation `kind` has it.

    Raises Refusal that names it; `finite` says what a NaN should have been.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return fill(kind, value, where)
    if origin is Annotated:
        bounds = [bound for bound in arguments[1:] if isinstance(bound, Bounds)]
        value = _checked(value, arguments[0], where, ", ".join(map(str, bounds)) or finite)
        if isinstance(value, int | float):
            _check_bounds(value, bounds, where)
        return value
    if origin is Literal:
        if not any(type(value) is type(text) and value == text for text in arguments):
            raise Refusal(f"{where} is {value!r}; accepted: {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        return _tuple(value, arguments, where)
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, arguments, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(kind, type) and kind in (int, float, str, bool):
        is_bool_for_int = kind is int and isinstance(value, bool)
        if is_bool_for_int or not isinstance(value, kind):
            raise Refusal(
                f"{where} is {value!r}, a {type(value).__name__}; accepted: {kind.__name__}"
            )
    if isinstance(value, float) and not math.isfinite(in_float32(value)):
        raise Refusal(f"{where} is {value}; accepted: {finite}")
    return value


def _check_bounds(value: float, bounds: Sequence[Bounds], where: str) -> None:
    """Raises Refusal for a number outside of its bounds, also as float32 has it."""
    for bound in bounds:
        if (
            isinstance(value, float)
            and bound.accepts(value)
            and not bound.accepts(in_float32(value))
        ):
            raise Refusal(
                f"{where} is {value!r}, which is {in_float32(value)} in float32; accepted: {bound}"
            )
        if not bound.accepts(value):
            # The end of the int32 range is of interest only to who went past it.
            hide = bound.most == LARGEST and value < LARGEST
            shown = dataclasses.replace(bound, most=None) if hide else bound
            raise Refusal(f"{where} is {value!r}; accepted: {shown}")


def in_float32(value: float) -> float:
    """A number as the compiled programs have it: what is too large is infinite there, and what is
    subnormal is 0.
    """
    if math.isfinite(value) and abs(value) < float(np.finfo(np.float32).tiny):
        return 0.0
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def _tuple(value: object, kinds: tuple[object, ...], where: str) -> tuple[object, ...]:
    if not isinstance(value, tuple | list):
        raise Refusal(f"{where} is {value!r}, a {type(value).__name__}; accepted: a tuple")
    if kinds[-1:] == (...,):
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise Refusal(f"{where} is {value!r}; accepted: {len(kinds)} values")
    return tuple(_checked(element, kind, where) for element, kind in zip(value, kinds, strict=True))


def _one_of(value: object, kinds: tuple[object, ...], where: str) -> object:
    """The value as the first of a union's members that accepts it."""
    refused = []
    for kind in kinds:
        if kind is type(None):
            if value is None:
                return None
            continue
        try:
            return _checked(value, kind, where)
        except Refusal as error:
            refused += error.messages
    raise Refusal("; or ".join(dict.fromkeys(refused)))


def flatten(tree: object, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts by their keys joined by dots.

    Args:
      tree: nested dicts; anything else is a leaf.
      prefix: of every key; "" for none.
    """
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        k: v
        for key, value in tree.items()
        for k, v in flatten(value, f"{prefix}.{key}" if prefix else key).items()
    }


def with_leaves(tree: dict[str, Any], leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Changes the tree, in place, to have these values, and returns it: the inverse of `flatten`.

    Args:
      tree: nested dicts; a missing one is made.
      leaves: values by keys joined by dots.
    """
    for key, value in leaves.items():
        node, (*above, last) = tree, key.split(".")
        for part in above:
            node = node.setdefault(part, {})
        node[last] = value
    return tree
