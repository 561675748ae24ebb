"""Settings of a component as a caller gives them: keywords, a `Config`, or a `Config` and keywords
that change it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from rlhf_jax import registry
from rlhf_jax.config import Settings, fill
from rlhf_jax.refusal import Refusal

C = TypeVar("C", bound=Settings)


def named(folder: str, name: object, config: object) -> tuple[str, Any]:
    """The name of a component, and the `Config` it was given with.

    Args:
      folder: the folder of `rlhf_jax/` whose component is meant.
      name: as `registry.find` takes it, or an instance of a component's `Config`, whose module is
        then the component.
      config: a `Config` instance, or None.

    Returns:
      The name, and the `Config` instance or None.

    Raises:
      Refusal: for a name that is neither.
    """
    if dataclasses.is_dataclass(name) and not isinstance(name, type):
        if config is not None:
            raise Refusal(
                f"{folder}: two Configs were given, {name!r} and {config!r}; accepted: one"
            )
        return type(name).__module__, name
    if not isinstance(name, str):
        raise Refusal(
            f"{name!r} names nothing in rlhf_jax/{folder}/; accepted: "
            f"{', '.join(registry.names(folder))}"
        )
    return name, config


def filled(kind: type[C], config: object, changes: Mapping[str, object], where: str) -> C:
    """Returns a `Config` of class `kind` with every value checked.

    Args:
      kind: the dataclass that is wanted.
      config: an instance of it, or None for its defaults.
      changes: values by key, over those of `config`; a nested dataclass or a dict of it may be
        given, and a dict changes only its own keys.
      where: the component, for messages.

    Raises:
      Refusal: for a `config` of another class, and with a message per key that is unknown or out of
        its bounds.
    """
    if config is not None and not isinstance(config, kind):
        raise Refusal(
            f"{where} was given a {type(config).__qualname__}; accepted: "
            f"{kind.__module__}.{kind.__qualname__}"
        )
    values = {} if config is None else plain(config)
    for key, value in changes.items():
        value = plain(value)
        before = values.get(key, _default(kind, key))
        values[key] = (
            before | value if isinstance(before, dict) and isinstance(value, dict) else value
        )
    return fill(kind, values, where)


def _default(kind: type[Settings], key: str) -> object:
    """The default of a field that is a dataclass, as nested dicts; None for any other field.

    The defaults of a component may differ from those of the dataclass itself.
    """
    field = next((f for f in dataclasses.fields(kind) if f.name == key), None)
    if field is None:
        return None
    if field.default_factory is not dataclasses.MISSING:
        return plain(field.default_factory())
    return None if field.default is dataclasses.MISSING else plain(field.default)


def plain(value: object) -> Any:
    """A dataclass as nested dicts by its fields; other values as they are."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    return value
