"""Finds a component by its name: a file of the package, or a module or a file of the user's own.

    name                        the component
    rloo                        rlhf_jax/<folder>/rloo.py
    gopo                        rlhf_jax/<folder>/<sub-folder>/gopo.py, of the sub-folders in `SUBFOLDERS`
    cispo                       a preset: an entry of the module in `PRESETS`
    my_lab.rewards              the module, found as `import` finds it
    my_lab.rewards:brevity      what the module calls `brevity`; also my_lab.rewards.brevity
    rewards/mine.py             the file; its own folder is added to the end of `sys.path`
    rewards/mine.py:brevity     what the file calls `brevity`

A name of the package comes first. The entry of a component, which makes or is it, is what is named
after the colon; of a whole module it is the first of these that the module has:

    algorithms   <the module's last name>, make    (config) -> Algorithm
    tasks        make                              (config) -> Task
    rewards      make, <last name>, reward         see `rewards/api.py`
    models       make                              (config) -> Model, beside `Config` and `PRESETS`: `models/common/family.py`
    stages       job                               (workspace, stages, algorithm) -> None
    records.trackers   make                        (directory, identity) -> Tracker: `records/trackers/api.py`

The settings of a component are its entry's `Config`, the dataclass that its entry takes as `config`
by annotation, or else its module's `Config`.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import typing
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from rlhf_jax.config import Settings
from rlhf_jax.refusal import Refusal, at_fault

PACKAGE = "rlhf_jax"
LAST_NAME = "<last name>"
SUBFOLDERS = {"algorithms": ("controls",)}
"""Folder -> its sub-folders whose files are components too. Names are unique in all of them."""
PRESETS = {"algorithms": "rlhf_jax.algorithms.presets.table"}
"""Folder -> the module whose `PRESETS` are settings of one of its components, each under a name of its
own, and whose attributes of these names are entries.
"""
RENAMED = {("stages", "relabel"): "comparisons"}
"""(folder, old name) -> new name, for the error that names it."""
ENTRIES = {
    "algorithms": (LAST_NAME, "make"),
    "tasks": ("make",),
    "rewards": ("make", LAST_NAME, "reward"),
    "models": ("make",),
    "stages": ("job",),
    "records.trackers": ("make",),
}


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """The settings of a component that has none."""


def names(folder: str) -> list[str]:
    """Names of the components in `rlhf_jax/<folder>/` and its `SUBFOLDERS`; `api` and packages are
    not components.
    """
    return sorted(_paths(folder))


def presets(folder: str) -> list[str]:
    """Names of the presets of a folder's components, in the order of their table."""
    return list(importlib.import_module(PRESETS[folder]).PRESETS) if folder in PRESETS else []


def _paths(folder: str) -> dict[str, str]:
    """The dotted path of the module of each component, by the component's name."""
    paths = {}
    for part in ("", *(f".{name}" for name in SUBFOLDERS.get(folder, ()))):
        package = importlib.import_module(f"{PACKAGE}.{folder}{part}")
        for module in pkgutil.iter_modules(package.__path__):
            if not module.ispkg and module.name != "api":
                paths[module.name] = f"{package.__name__}.{module.name}"
    return paths


def find(folder: str, name: str) -> Any:
    """The module that a name means, or what the name picks out of it.

    Args:
      folder: the folder of `rlhf_jax/` whose components are meant.
      name: see the table of this module.

    Raises Refusal for a name that means nothing, with the components of the folder; ComponentError
    for a module that raises while it is imported.
    """
    module, attribute = located(folder, name)
    if not attribute:
        return module
    if not hasattr(module, attribute):
        public = {
            key: value
            for key, value in vars(module).items()
            if not key.startswith("_") and not isinstance(value, ModuleType)
        }
        defined = [
            key
            for key, value in public.items()
            if getattr(value, "__module__", module.__name__) == module.__name__
        ]
        raise Refusal(
            f"{name}: {module.__file__} has no {attribute!r}; it has {', '.join(defined) or 'nothing'}"
        )
    return getattr(module, attribute)


def located(folder: str, name: str) -> tuple[ModuleType, str]:
    """The module of a component, and the attribute of it that its name means ("": the module).

    Args:
      folder: the folder of `rlhf_jax/` whose components are meant.
      name: see the table of this module.

    Raises as `find`.
    """
    paths = _paths(folder)
    short = next((key for key, path in paths.items() if name == path), name)
    if short in paths:
        return importlib.import_module(paths[short]), ""
    if name in presets(folder):
        return importlib.import_module(PRESETS[folder]), name
    if (folder, short) in RENAMED:
        raise Refusal(f"{name!r} in {PACKAGE}/{folder}/ is now called {RENAMED[folder, short]!r}")
    module_name, attribute = _parted(name)
    if module_name.endswith(".py"):
        return _file(folder, Path(module_name)), attribute
    module = _module(module_name)
    if module is not None:
        return module, attribute
    above, _, last = module_name.rpartition(".")
    module = None if attribute else _module(above)
    if module is not None:
        return module, last
    place, known = folder.replace(".", "/"), ", ".join(sorted(paths))
    known += f"; presets: {', '.join(presets(folder))}" if presets(folder) else ""
    raise Refusal(
        f"no {name!r} in {PACKAGE}/{place}/; there are: {known}; or name your own: a "
        "module that Python finds "
        "(my_lab.mine, my_lab.mine:NAME) or a file (PATH.py, PATH.py:NAME)"
    )


def entry(folder: str, name: str) -> Callable[..., Any]:
    """The function that makes a component, or that is one: see the table of this module.

    Args:
      folder: the folder of `rlhf_jax/` whose components are meant.
      name: see the table of this module.

    Raises as `find`; Refusal for a module without such a function, and for a name of something
    else.
    """
    component = find(folder, name)
    if not isinstance(component, ModuleType):
        if not callable(component):
            raise Refusal(f"{name} is {component!r}; accepted: a function or a class")
        return component
    last = component.__name__.partition("@")[0].rpartition(".")[2]
    wanted = [last if accepted == LAST_NAME else accepted for accepted in ENTRIES[folder]]
    for accepted in wanted:
        if callable(getattr(component, accepted, None)):
            return getattr(component, accepted)
    functions = [
        key
        for key, value in vars(component).items()
        if inspect.isfunction(value) and value.__module__ == component.__name__
    ]
    offer = f"; it has {', '.join(f'{name}:{key}' for key in functions)}" if functions else ""
    raise Refusal(f"{name} ({component.__file__}) has no function {' or '.join(wanted)}{offer}")


def settings(folder: str, name: str) -> type[Settings]:
    """The dataclass of a component's settings; `NoSettings` for a component without any.

    Args:
      folder: the folder of `rlhf_jax/` whose components are meant.
      name: see the table of this module.

    Raises as `entry`; Refusal for settings that are no dataclass, or that lack a default.
    """
    maker = entry(folder, name)
    parameter = takes_settings(folder, maker)
    if parameter is None:
        return NoSettings
    config = (
        getattr(maker, "Config", None)
        or annotated(maker, parameter)
        or getattr(sys.modules.get(maker.__module__), "Config", None)
    )
    if config is None:
        return NoSettings
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise Refusal(
            f"{name}: its settings {config!r} are no dataclass, so they cannot be a node of the "
            "config"
        )
    missing = dataclasses.MISSING
    fields = [
        f
        for f in dataclasses.fields(config)
        if f.init and f.default is missing and f.default_factory is missing
    ]
    if fields:
        raise Refusal(
            f"{name}: {', '.join(f.name for f in fields)} of its settings have no default"
        )
    return config


def takes_settings(folder: str, function: Callable[..., object]) -> str | None:
    """The name of the parameter that takes the settings: `config`, or the first one that makes an
    algorithm, task or model.
    """
    parameters = inspect.signature(function).parameters
    if "config" in parameters:
        return "config"
    return next(iter(parameters), None) if folder in ("algorithms", "tasks", "models") else None


def make(folder: str, name: str, config: Settings) -> Any:
    """The algorithm or the task that a name means.

    Args:
      folder: "algorithms" or "tasks".
      name: see the table of this module.
      config: of the class that `settings` returns. An entry without settings is called without it.

    Raises as `entry`; ComponentError for an exception of its own code.
    """
    maker = entry(folder, name)
    with at_fault(f"making {name} ({PACKAGE}/{folder})"):
        return maker(config) if takes_settings(folder, maker) else maker()


def is_of_package(folder: str, name: str) -> bool:
    """True for a component of the package, False for a user's own. Raises as `find`."""
    return located(folder, name)[0].__name__.startswith(f"{PACKAGE}.{folder}.")


def canonical(folder: str, name: str) -> str:
    """One text for every name of a component.

    A component of the package has its own name. Any other has its module or file, and its entry:
    `mine.py`, `/home/me/mine.py` and `mine.py:reward` are the same where `reward` is the entry of
    the file, as are `my_lab.mine:brevity` and `my_lab.mine.brevity`.

    Args:
      folder: the folder of `rlhf_jax/` whose components are meant.
      name: see the table of this module.

    Raises as `entry`.
    """
    module, attribute = located(folder, name)
    if module.__name__ == PRESETS.get(folder):
        return attribute
    for short, path in _paths(folder).items():
        if module.__name__ == path:
            return short
    maker = entry(folder, name)
    module_name = str(module.__file__) if "@" in module.__name__ else module.__name__
    keys = [key for key, value in vars(module).items() if value is maker]
    return f"{module_name}:{keys[0]}" if keys else f"{module_name}:{_parted(name)[1]}"


def label(name: str) -> str:
    """A short name for what a name means: its last part, or its module's where that part is
    `reward` or `make`.
    """
    module_name, attribute = _parted(name)
    parts = [Path(module_name).stem] if module_name.endswith(".py") else module_name.split(".")
    parts += [attribute] * bool(attribute)
    return parts[-2] if len(parts) > 1 and parts[-1] in ("reward", "make") else parts[-1]


def _parted(name: str) -> tuple[str, str]:
    """The module or file of a name, and what it picks out of it ("": nothing)."""
    module_name, colon, attribute = name.rpartition(":")
    return (module_name, attribute) if colon and attribute.isidentifier() else (name, "")


def _module(name: str) -> ModuleType | None:
    """The module of a dotted name, or None where Python finds none."""
    if not all(part.isidentifier() and not part.startswith("__") for part in name.split(".")):
        return None
    with at_fault(f"importing {name}"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{name}.".startswith(f"{error.name}."):
                return None
            raise  # a module that this one imports is missing


def _there(path: Path) -> Path:
    path = path.expanduser()
    if not path.is_file():
        raise Refusal(f"no file {str(path)!r} (looked for in {Path.cwd()})")
    return path.resolve()


class _FromText(SourceFileLoader):
    """Loader that compiles a file's text and reads no bytecode, which is kept for a time in seconds
    and a size: a file that is written twice in a second may have both of its older text.
    """

    def get_code(self, fullname: str) -> CodeType:
        """The compiled text."""
        del fullname
        return self.source_to_code(self.get_data(self.path), self.path)


def _file(folder: str, path: Path) -> ModuleType:
    """The module of a file. It is read again where its text has changed since."""
    path = _there(path)
    text = hashlib.sha256(f"{path}\n".encode() + path.read_bytes()).hexdigest()
    name = f"{path.stem}@{text[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = _FromText(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(
            str(path.parent)
        )  # what it imports from its own folder, now or when it is called
    sys.modules[name] = module  # dataclasses look their module up while it is executed
    try:
        with at_fault(f"importing {path} ({PACKAGE}/{folder})"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def annotated(function: Callable[..., object], parameter: str) -> type[Settings] | None:
    """The dataclass that a parameter takes by its annotation; None where that is none.

    Args:
      function: a function, or a class, whose `__init__` is meant.
      parameter: its name.
    """
    try:
        hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except (TypeError, NameError, AttributeError):
        return None
    hint = hints.get(parameter)
    options = [hint, *typing.get_args(hint)]
    return next(
        (
            option
            for option in options
            if inspect.isclass(option) and dataclasses.is_dataclass(option)
        ),
        None,
    )
