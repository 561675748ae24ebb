"""Finds and executes config files and studies: those that come with the code, and a user's own.

The files of `configs/` are the package `rlhf_jax.configs`. A wheel holds them inside of `rlhf_jax`,
a clone beside it. Relative imports of an executed file mean

    a file of `configs/`                        that package
    a file in a package of its own              its own package (folders with an `__init__.py`)
    any other file, such as a copy of a config  `rlhf_jax.configs`
"""

import ast
import contextlib
import hashlib
import importlib.util
import linecache
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from rlhf_jax.refusal import Refusal
from rlhf_jax.run_directory import history

PACKAGE = "rlhf_jax.configs"
SHARED, STUDIES = "common", "studies"
"""Folders of `configs/`: parts that configs share, and studies, which `sweep` runs."""
INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
CODE = Path(__file__).resolve().parent


def folder() -> Path:
    """The folder of the configs that come with the code."""
    inside = CODE / "configs"
    return inside if inside.is_dir() else CODE.parent / "configs"


def shipped(studies: bool = False) -> dict[str, str]:
    """The configs that come with the code, or the studies: the path that is shown for each, by its
    short name.

    In a clone under the working directory the path is shown, elsewhere the short name.
    """
    files = sorted(folder().rglob("[!_]*.py"))
    names = [file.relative_to(folder()).with_suffix("") for file in files]
    in_clone = folder().is_relative_to(Path.cwd()) and not folder().is_relative_to(CODE)
    return {
        name.as_posix(): str(file.relative_to(Path.cwd())) if in_clone else name.as_posix()
        for name, file in zip(names, files, strict=True)
        if name.parts[0] != SHARED and (name.parts[0] == STUDIES) == studies
    }


def path_of(named: str) -> str:
    """The path that a name means: a file's own, or that of a short name such as `tldr/ppo`; any
    other name as it is.
    """
    path = folder() / f"{named}.py"
    if Path(named).is_file() or named not in {*shipped(), *shipped(studies=True)}:
        return named
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def execute(path: str) -> ModuleType:
    """The module of a file. It is executed anew at every call, and writes no compiled file."""
    tree = ast.parse(Path(path).read_bytes(), path)
    code = compile(tree, path, "exec")
    module = ModuleType(f"config_file_{Path(path).stem}")
    module.__file__ = path
    module.__package__ = _package(Path(path).resolve(), tree)
    sys.modules[module.__name__] = (
        module  # dataclasses look up the types that their annotations name there
    )
    exec(code, vars(module))
    return module


def _package(path: Path, tree: ast.AST) -> str:
    """The package that relative imports of a file mean."""
    _register(PACKAGE, folder())  # absolute imports of it work too, where a clone is not installed
    if path.is_relative_to(folder()):
        return ".".join([PACKAGE, *path.parent.relative_to(folder()).parts])
    levels = max(
        (node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), default=0
    )
    packages, top = [], path.parent
    while (top / "__init__.py").is_file():
        packages, top = [top, *packages], top.parent
    if len(packages) >= levels > 0:
        name = f"config_package_{hashlib.sha256(str(packages[0]).encode()).hexdigest()[:12]}"
        _register(name, packages[0])
        return ".".join([name, *(inner.name for inner in packages[1:])])
    return ".".join(
        [PACKAGE, *["own"] * (levels - 1)]
    )  # `from ..common import tldr` is one folder below


def _register(name: str, directory: Path) -> None:
    """Makes a folder importable as a package of this name."""
    known = sys.modules.get(name)
    if known is not None and list(known.__path__) == [str(directory)]:
        return
    file = directory / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        name, file, submodule_search_locations=[str(directory)]
    )
    if spec is None or spec.loader is None or not file.is_file():
        raise Refusal(f"{file} is missing: install rlhf_jax again")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


@contextlib.contextmanager
def faults_in(named: str, path: str) -> Iterator[None]:
    """Refuses whatever the code of a file raises inside, in one line with the file and line.

    Args:
      named: the argument that named the file; a Refusal of the file's own code begins with it.
      path: the file.
    """
    try:
        yield
    except Refusal as error:
        raise Refusal(*(f"--config={named}: {message}" for message in error.messages)) from error
    except Exception as error:
        location = _place(error, path)
        raise Refusal(
            f"{location}: {type(error).__name__}: {_message(error)}{_renamed(location)}"
        ) from error


def _place(error: Exception, path: str) -> str:
    """The file and line of a person's own code that an exception came from."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    user_frames = [
        frame for frame in frames if not frame.filename.startswith((*INSTALLED, str(CODE), "<"))
    ]
    return f"{user_frames[-1].filename}:{user_frames[-1].lineno}" if user_frames else path


def _renamed(location: str) -> str:
    """The new names of the renamed keys that the line of a place (FILE:LINE) names, for the end of
    a message.
    """
    file, _, number = location.rpartition(":")
    line = linecache.getline(file, int(number)) if number.isdecimal() else ""
    keys = [".".join(parts) for parts in re.findall(r"\.(\w+)\.(\w+)", line)]
    return "".join(
        f"; {sentence}" for sentence in map(history.new_name, dict.fromkeys(keys)) if sentence
    )


def _message(error: Exception) -> str:
    message = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    missing = (error.name or "") if isinstance(error, ImportError) else ""
    if missing.partition(".")[0] == "configs" or missing.startswith(PACKAGE):
        message += (
            f"; the configs that come with the code are the package {PACKAGE}, which relative "
            "imports of a file "
            "outside of any package mean too"
        )
    return message
