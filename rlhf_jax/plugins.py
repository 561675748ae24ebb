"""Finds a component by folder and file name: the folder is the registry."""

import importlib
import pkgutil
from types import ModuleType

from rlhf_jax.refusal import Refusal


def names(folder: str) -> list[str]:
    """Names of the components in `rlhf_jax/<folder>/`; `api` and names that begin with `_` are not components."""
    package = importlib.import_module(f"rlhf_jax.{folder}")
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if name != "api" and not name.startswith("_"))


def find(folder: str, name: str) -> ModuleType:
    """The module `rlhf_jax/<folder>/<name>.py`.

    Raises Refusal that lists the neighbours when there is no such file.
    """
    known = names(folder)
    if name not in known:
        raise Refusal(f"no {name!r} in rlhf_jax/{folder}/; there are: {', '.join(known)}")
    return importlib.import_module(f"rlhf_jax.{folder}.{name}")
