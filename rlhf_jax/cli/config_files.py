"""Loads config files, Python whose `get_config` gives a config; a fault in one is a single line
with its place.
"""

import difflib
import inspect
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from rlhf_jax import config_modules
from rlhf_jax.cli import command
from rlhf_jax.refusal import Refusal

RENAMED = {"configs/tldr/relabel.py": "configs/tldr/comparisons.py"}
"""old path -> new path, for the error that names it."""


def listed() -> str:
    """The config files that come with the code."""
    return ", ".join(config_modules.shipped().values())


def load(named: str) -> ConfigDict:
    """The config of `file.py[:argument]` or `name[:argument]`; names are those of the configs that
    come with the code.

    Raises Refusal where there is no such file or no config in it, and for whatever its code raises,
    with the file and line.
    """
    given, colon, argument = named.partition(":")
    if given in RENAMED and not Path(given).is_file():
        raise Refusal(f"--config={named}: the file is now called {RENAMED[given]}")
    path = config_modules.path_of(given)
    if not Path(path).is_file():
        stems = {Path(name).stem: shown for name, shown in config_modules.shipped().items()}
        close = difflib.get_close_matches(Path(path).stem, stems, 1)
        near = f"; did you mean {stems[close[0]]}?" if close else ""
        raise Refusal(f"no config file {named!r}{near}; there are: {listed()}")
    with config_modules.faults_in(named, path):
        config = _config(config_modules.execute(path), path, argument if colon else None)
    if not isinstance(config, ConfigDict):
        raise Refusal(
            f"get_config of {path} gave a {type(config).__name__}; accepted: a ConfigDict, as "
            "build.default() is"
        )
    return config


def _config(module: ModuleType, path: str, argument: str | None) -> object:
    if not hasattr(module, "get_config"):
        hint = (
            f"it is a study: {command.program('sweep')} --config={path}"
            if hasattr(module, "get_study")
            else "it is none"
        )
        raise Refusal(f"the file has no get_config; {hint}")
    if argument is None:
        return module.get_config()
    if not inspect.signature(module.get_config).parameters:
        raise Refusal(f"its get_config takes no argument; accepted: --config={path}")
    return module.get_config(argument)
