"""Values of a published `config.json`, read with care: of one type, and the same wherever they are
written twice.
"""

from collections.abc import Mapping
from typing import Any, TypeGuard, TypeVar

from rlhf_jax.pretrained.published_families import NULL_IS_ZERO, REQUIRED
from rlhf_jax.refusal import Refusal

Value = TypeVar("Value", bool, int, float)
KeyPath = tuple[str, ...]  # keys from the outside in


def typed(
    published: Mapping[str, Any], field: str, kind: type[Value], key: str, default: object
) -> Value:
    """The value of a key as `kind`.

    Args:
      field: our name of it, which says what null means.
      default: of an absent key; REQUIRED where there is none.

    Raises Refusal, naming key and value, for a missing key or a value of another type.
    """
    if key not in published and default is REQUIRED:
        raise Refusal(f"there is no {key!r}, which the shape depends on")
    value = published.get(key, default)
    if value is None and field in NULL_IS_ZERO:
        return kind(0)
    if isinstance(value, bool) != (kind is bool) or not is_number(value) or kind(value) != value:
        raise Refusal(f"{key} is {value!r}; accepted: a value of type {kind.__name__}")
    converted, least = kind(value), 1 if default is REQUIRED else 0
    if converted < least:
        raise Refusal(f"{key} is {value!r}; accepted: at least {least}")
    return converted


def is_number(value: object) -> TypeGuard[float]:
    """A finite number or a truth value."""
    return isinstance(value, int | float) and value - value == 0


def at(published: Mapping[str, Any], path: KeyPath) -> object:
    """The value at a path of keys; None where a key is missing.

    Args:
      published: a parsed JSON object.
      path: keys from the outside in.
    """
    value: object = published
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def agreed(published: Mapping[str, Any], default: object, *paths: KeyPath) -> object:
    """The value that is written at one or more of several paths.

    Args:
      published: a parsed JSON object.
      default: the result where no path has a value; REQUIRED for none.
      *paths: where the value may be written. null is no value.

    Raises Refusal where two of them differ, or where there is none and the default is REQUIRED.
    """
    values = {".".join(path): at(published, path) for path in paths}
    values = {path: value for path, value in values.items() if value is not None}
    if any(value != next(iter(values.values())) for value in values.values()):
        raise Refusal(
            "keys contradict one another: "
            + ", ".join(f"{key} is {v!r}" for key, v in values.items())
        )
    if not values and default is REQUIRED:
        raise Refusal(f"there is no {' or '.join('.'.join(path) for path in paths)}")
    return next(iter(values.values()), default)


def number(published: Mapping[str, Any], default: object, *paths: KeyPath) -> float:
    """`agreed`, of a number that is not negative.

    Args:
      published: a folder's config, nested.
      default: where no path has a value.
      *paths: keys of the value, from the outermost node on.

    Raises Refusal for anything else, and as `agreed`.
    """
    value = agreed(published, default, *paths)
    if isinstance(value, bool) or not is_number(value) or value < 0:
        raise Refusal(f"{'.'.join(paths[0])} is {value!r}; accepted: a number from 0 on")
    return float(value)
