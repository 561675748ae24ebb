"""Nested values of a config to frozen dataclasses, with an error that names what is wrong and its neighbours."""

import dataclasses
import difflib
import types
import typing
from typing import Any

from rlhf_jax.refusal import Refusal


def fill(cls: Any, values: dict[str, Any], where: str) -> Any:
    """`cls(**values)` with nested dataclasses.

    Raises Refusal that names an unknown or missing key with its neighbours, or a value of another type.
    """
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            close = difflib.get_close_matches(key, names, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; accepted: {', '.join(names)}"
            raise Refusal(f"{where} has no key {key!r}{hint}")
    filled = {}
    for name, value in values.items():
        kind = hints[name]
        if dataclasses.is_dataclass(kind):
            filled[name] = fill(kind, value, f"{where}.{name}")
        else:
            filled[name] = _checked(value, kind, f"{where}.{name}")
    return cls(**filled)


def _checked(value: Any, kind: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin is tuple:
        element = typing.get_args(kind)[0]
        return tuple(_checked(v, element, where) for v in value)
    if origin in (typing.Union, types.UnionType, typing.Literal):
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (int, float, str, bool) and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise Refusal(f"{where} is {value!r}, a {type(value).__name__}; accepted: {kind.__name__}")
    return value


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts by their keys joined by dots."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}.{key}" if prefix else key).items()}
