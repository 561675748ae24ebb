"""The components of a run that are a user's own: their modules, and digests of their sources."""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf_jax import registry
from rlhf_jax.refusal import INSTALLED
from rlhf_jax.rewards.common.terms import parse
from rlhf_jax.run_directory import digests
from rlhf_jax.run_directory.stage_records import OWN_CODE

APART = (digests.PACKAGE, *(Path(place).resolve() for place in INSTALLED))
"""Places whose modules are not a user's own, unless a component is a package of them."""


def modules(values: Mapping[str, Any]) -> dict[str, ModuleType]:
    """The modules of a config's components that are not of this package, by their keys; of a reward
    by `reward.<label>`.

    Args:
      values: of a config, resolved or not.

    Raises as `registry.find`.
    """
    named = {
        "algorithm": ("algorithms", values["algorithm"]["name"]),
        "task": ("tasks", values["task"]["name"]),
        "job": ("stages", values["job"]),
    }
    named |= {f"reward.{term.label}": ("rewards", term.name) for term in parse(values["reward"])}
    if values["model"]["family"] != "pretrained":
        named["model"] = ("models", values["model"]["family"])
    found = {key: registry.located(folder, name)[0] for key, (folder, name) in named.items()}
    return {
        key: module
        for key, module in found.items()
        if not module.__name__.startswith(f"{registry.PACKAGE}.")
    }


def of_sources(values: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the sources of those modules, without comments, docstrings and layout: see
    `sources`.
    """
    return {f"{OWN_CODE}{key}": of_module(module) for key, module in modules(values).items()}


def of_module(module: ModuleType) -> str:
    """The digest of a module's source and of those that it is made of.

    It does not depend on where they are.
    """
    files = sources(module)
    if not files:
        return ""
    first, *others = map(_of_file, files)
    others = sorted(set(others) - {_of_nothing()})
    return digests.digest_text(first, *others) if others else first


def sources(module: ModuleType) -> list[Path]:
    """The file of a module, and those of its own package or folder that it imports, directly or
    indirectly.

    The package is the outermost one of the module; of a file, or of a module without a package, it
    is the folder. Imports are read from the sources, those inside functions too; a name is looked
    for in `sys.modules` and then in the folder. Installed packages and `rlhf_jax` are left out, as
    are names that are made while the program runs.
    """
    if module.__file__ is None:
        return []
    first = Path(module.__file__).resolve()
    package = "" if "@" in module.__name__ else module.__name__.rpartition(".")[0]
    top = sys.modules.get(package.partition(".")[0])
    paths = list(getattr(top, "__path__", ())) if package else []
    root = Path(paths[0]).resolve() if paths else first.parent
    base = root.parent if paths else root
    found = [first]
    waiting = [
        (first, package),
        *((path, "") for path in _files(_above(package), root, base) if path != first),
    ]
    found += [path for path, _ in waiting[1:]]
    while waiting:
        path, inside = waiting.pop(0)
        if path.suffix != ".py":
            continue
        for imported in _files(_imports(path, inside or _package_of(path, base)), root, base):
            if imported not in found:
                found.append(imported)
                waiting.append((imported, _package_of(imported, base)))
    return found


def _above(package: str) -> Iterator[str]:
    """A package and those around it, which are imported before it."""
    while package:
        yield package
        package = package.rpartition(".")[0]


def _imports(path: Path, package: str) -> Iterator[str]:
    """Names of what a source imports, and of the packages around it; `from a import b` may mean
    a.b.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # of a file that was not imported yet
        return
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            within = ".".join([*above, *filter(None, [node.module])])
            names = [
                within,
                *(f"{within}.{alias.name}" if within else alias.name for alias in node.names),
            ]
        for name in filter(None, names):
            yield from _above(name)


def _files(names: Iterator[str], root: Path, base: Path) -> list[Path]:
    """The files of modules that are below `root`, without those that are installed there or are of
    this package.
    """
    found = []
    for name in names:
        there = getattr(sys.modules.get(name), "__file__", None)
        place = base.joinpath(*name.split("."))
        options = [Path(there)] if there else [place.with_suffix(".py"), place / "__init__.py"]
        for path in options:
            path = path.resolve()
            # Installed beside or below the folder. A package that is itself installed has a folder
            # below that place.
            foreign = any(
                path.is_relative_to(other) and other.is_relative_to(root) for other in APART
            )
            if path.is_file() and path.is_relative_to(root) and not foreign and path not in found:
                found.append(path)
    return found


def _package_of(path: Path, base: Path) -> str:
    """The package that a file's relative imports are relative to."""
    return ".".join(path.relative_to(base).parts[:-1]) if path.is_relative_to(base) else ""


def _of_file(path: Path) -> str:
    try:
        return digests.digest_source(path) if path.suffix == ".py" else digests.digest_file(path)
    except SyntaxError:
        return digests.digest_file(path)


def _of_nothing() -> str:
    """The digest of a source without code, such as most `__init__.py`."""
    return digests.digest_text(ast.dump(ast.parse("")))
