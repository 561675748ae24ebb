"""The extras suffice: everything that a folder or a notebook imports is declared by setup.py for those who run it."""

import ast
import importlib.metadata
import json
import re
import runpy
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OWN = {"rlhf_jax", "experiments", "configs", "tests", *(path.name for path in (ROOT / "tests").iterdir())}
OWN |= {path.stem for path in ROOT.joinpath("tests").rglob("*.py")}
SLURM = ROOT / "experiments" / "slurm.py"
BENCH = sorted((ROOT / "experiments" / "bench").rglob("*.py"))


def normal(name: str) -> str:
    """The name of a distribution as an index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def declared() -> Mapping[str, set[str]]:
    """Distributions by extra; "" has those that are always installed."""
    given = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **settings: given.update(settings))
        runpy.run_path(str(ROOT / "setup.py"))
    extras = {"": given["install_requires"]} | given["extras_require"]
    return {extra: {normal(re.split(r"[\s<>=!~\[;]", text)[0]) for text in texts} for extra, texts in extras.items()}


def imported(source: str) -> set[str]:
    """Top-level names of the modules that a source imports anywhere, our own and Python's aside."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    names = {name.partition(".")[0] for name in found}
    return {name for name in names if name not in sys.stdlib_module_names and name not in OWN}


def cells(path: Path) -> Iterator[str]:
    """The source of every code cell; a line of a magic is no Python, and a cell that is written to a file is."""
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            yield "".join(line for line in cell["source"] if not line.startswith(("%", "!")))


def blocks(path: Path) -> Iterator[str]:
    """The Python code of a page."""
    yield from re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


@cache
def holders_of_modules() -> Mapping[str, list[str]]:
    """Distributions by the module that they hold."""
    return importlib.metadata.packages_distributions()


def missing(sources: Iterator[str] | list[str], available: set[str]) -> dict[str, list[str]]:
    """Imported modules that none of the available distributions holds, with those that do.

    A module that is not installed here is taken to be in a distribution of its name.
    """
    holders = holders_of_modules()
    names = {name for source in sources for name in imported(source)}
    return {
        name: holders.get(name, [name])
        for name in sorted(names)
        if not available & {normal(holder) for holder in holders.get(name, [name])}
    }


def texts(paths: list[Path]) -> list[str]:
    return [path.read_text() for path in paths]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebooks_extra_suffices(path: Path, declared: Mapping[str, set[str]]):
    available = declared[""] | declared["notebooks"]
    assert not missing(cells(path), available)
    # What a notebook imports from the tests' folder has imports too.
    names = {name for cell in cells(path) for name in re.findall(r"^from algorithms import (.*)$", cell, re.MULTILINE)}
    modules = [name for line in names for name in line.split(", ")]
    assert not missing(texts([ROOT / "tests" / "algorithms" / f"{name}.py" for name in modules]), available)


def test_what_is_always_installed_suffices_for_the_package_and_its_commands(declared: Mapping[str, set[str]]):
    paths = [path for folder in ("rlhf_jax", "experiments", "configs") for path in (ROOT / folder).rglob("*.py")]
    assert not missing(texts([path for path in paths if path not in {*BENCH, SLURM}]), declared[""])


def test_the_other_extras_suffice(declared: Mapping[str, set[str]]):
    assert not missing(texts([SLURM]), declared[""] | declared["slurm"])
    assert not missing(texts(BENCH), declared[""] | declared["bench"])
    assert not missing(texts(list((ROOT / "tests").rglob("*.py"))), declared[""] | declared["test"])


def test_code_of_pages_needs_no_more_than_notebooks_do(declared: Mapping[str, set[str]]):
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert not missing([block for page in pages for block in blocks(page)], declared[""] | declared["notebooks"])


def test_a_module_that_nobody_declares_is_found():
    source = "def f():\n    from numpy import linalg\n    import torch.nn as nn\nimport json, rlhf_jax.types\n"
    assert imported(source) == {"numpy", "torch"}
    assert missing([source], {"numpy"}) == {"torch": ["torch"]}
    assert missing(["import no_such_module"], {"numpy"}) == {"no_such_module": ["no_such_module"]}
    assert not missing(["import absl.flags, PIL"], {"absl-py", "pillow"})
