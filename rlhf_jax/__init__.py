"""Reinforcement learning from human feedback in JAX, with asynchrony as an exact experimental
variable.

    import rlhf_jax as rl

Public names are imported when they are first used, so that `import rlhf_jax` costs nothing.
`__init__.pyi` has their types.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "task": "components",
    "tokenizer": "components",
    "model": "components",
    "algorithm": "components",
    "reward": "reward",
    "encode": "calls",
    "init": "calls",
    "sample": "calls",
    "score": "calls",
    "update": "calls",
    "run": "loop",
}
"""The module of `rlhf_jax/face/` that has each public function. No module of `rlhf_jax/` has the
name of one: importing a module binds its name here, and the function would be replaced.
"""

_ROOMS = ("algorithms", "models", "ops", "rewards", "tasks")
"""Packages that are reached as attributes: `rl.algorithms`."""

__all__ = [*_HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Returns a public function, or a package of components.

    Raises AttributeError for another name.
    """
    if name in _HOMES:
        found = getattr(importlib.import_module(f"{__name__}.face.{_HOMES[name]}"), name)
        globals()[name] = found
        return found
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}"
    )


def __dir__() -> list[str]:
    """Returns the public names and the packages that are reached as attributes."""
    return sorted({*globals(), *__all__, *_ROOMS})
