"""Loads config files, Python whose `get_config` gives a config; a fault in one is a single line with its place."""

import difflib
import inspect
import linecache
import re
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.refusal import Refusal
from rlhf_jax.run_directory import history

NOT_THEIRS = (*(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")), str(Path(__file__).parent))

RENAMED = {"configs/tldr/relabel.py": "configs/tldr/comparisons.py"}
"""old path -> new path, for the error that names it."""


def listed() -> str:
    """The config files that come with the code."""
    return ", ".join(map(str, _files()))


def _files() -> list[Path]:
    return sorted(path for path in Path("configs").rglob("[!_]*.py") if path.parent.name not in ("studies", "common"))


def load(named: str) -> ConfigDict:
    """The config of `file.py[:argument]`.

    Raises Refusal where there is no such file or no config in it, and for whatever its code raises, with the file and line.
    """
    path, colon, argument = named.partition(":")
    if path in RENAMED and not Path(path).is_file():
        raise Refusal(f"--config={named}: the file is now called {RENAMED[path]}")
    if not Path(path).is_file():
        stems = {file.stem: str(file) for file in _files()}
        close = difflib.get_close_matches(Path(path).stem, stems, 1)
        near = f"; did you mean {stems[close[0]]}?" if close else ""
        raise Refusal(f"no config file {named!r}{near}; there are: {listed()}")
    try:
        config = _config(_module(path), path, argument if colon else None)
    except Refusal as error:
        raise Refusal(*(f"--config={named}: {message}" for message in error.messages)) from error
    except Exception as error:
        place = _place(error, path)
        raise Refusal(f"{place}: {type(error).__name__}: {_message(error)}{_renamed(place)}") from error
    if not isinstance(config, ConfigDict):
        raise Refusal(
            f"get_config of {path} gave a {type(config).__name__}; accepted: a ConfigDict, as build.default() is"
        )
    return config


def _module(path: str) -> ModuleType:
    module = ModuleType(f"config_file_{Path(path).stem}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where dataclasses look for the types that their annotations name
    exec(compile(Path(path).read_bytes(), path, "exec"), vars(module))
    return module


def _config(module: Any, path: str, argument: str | None) -> Any:
    if not hasattr(module, "get_config"):
        other = (
            f"it is a study: python -m experiments.sweep --config={path}"
            if hasattr(module, "get_study")
            else "it is none"
        )
        raise Refusal(f"the file has no get_config; {other}")
    if argument is None:
        return module.get_config()
    if not inspect.signature(module.get_config).parameters:
        raise Refusal(f"its get_config takes no argument; accepted: --config={path}")
    return module.get_config(argument)


def _place(error: Exception, path: str) -> str:
    """The file and line of a person's own code that an exception came from."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith((*NOT_THEIRS, "<"))]
    package = str(Path(inspect.getfile(Refusal)).parent)
    theirs = [frame for frame in theirs if not frame.filename.startswith(package)]
    return f"{theirs[-1].filename}:{theirs[-1].lineno}" if theirs else path


def _renamed(place: str) -> str:
    """The new names of the renamed keys that the line of a place (FILE:LINE) names, for the end of a message."""
    file, _, number = place.rpartition(":")
    line = linecache.getline(file, int(number)) if number.isdecimal() else ""
    keys = [".".join(found) for found in re.findall(r"\.(\w+)\.(\w+)", line)]
    return "".join(f"; {sentence}" for sentence in map(history.new_name, dict.fromkeys(keys)) if sentence)


def _message(error: Exception) -> str:
    return error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
