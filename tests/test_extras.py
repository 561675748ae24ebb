"""The extras suffice: everything that a folder or a notebook imports is declared in pyproject.toml
for those who run it.
"""

import ast
import importlib.metadata
import json
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OWN = {
    "rlhf_jax",
    "experiments",
    "configs",
    "tests",
    *(path.name for path in (ROOT / "tests").iterdir()),
}
OWN |= {path.stem for path in ROOT.joinpath("tests").rglob("*.py")}
OWN |= {
    path.name for path in (ROOT / "tests" / "third_party").iterdir()
}  # packages that stand for somebody else's
BENCH = sorted((ROOT / "experiments" / "bench").rglob("*.py"))


def normal(name: str) -> str:
    """The name of a distribution as an index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def declared() -> Mapping[str, set[str]]:
    """Distributions by extra; "" has those that are always installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {"": project["dependencies"]} | project["optional-dependencies"]

    def names(extra: str) -> set[str]:
        found = set()
        for text in extras[extra]:
            own = re.fullmatch(r"rlhf_jax\[(.*)\]", text)
            found |= (
                set().union(*map(names, own[1].split(",")))
                if own
                else {normal(re.split(r"[\s<>=!~\[;]", text)[0])}
            )
        return found

    return {extra: names(extra) for extra in extras}


def imported(source: str, extra: str | None = None) -> set[str]:
    """Top-level names of the modules that a source imports, our own and Python's aside;
    `import_module("name")` is one too.

    With an extra, only those in blocks `with needed(extra, ...)`; with "", only those in no such
    block.
    """
    found: set[str] = set()
    for node, needing in nodes(ast.parse(source)):
        if extra is not None and needing != extra:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_module":
            found |= {
                name.value
                for name in node.args
                if isinstance(name, ast.Constant) and isinstance(name.value, str)
            }
    names = {name.partition(".")[0] for name in found}
    return {name for name in names if name not in sys.stdlib_module_names and name not in OWN}


def nodes(tree: ast.AST, extra: str = "") -> Iterator[tuple[ast.AST, str]]:
    """Every node below a tree, with the extra of the innermost `with needed(extra, ...)` around it."""
    for node in ast.iter_child_nodes(tree):
        inner = extra
        if isinstance(node, ast.With):
            call = node.items[0].context_expr
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("needed", "extras.needed"):
                assert isinstance(call.args[0], ast.Constant)
                inner = str(call.args[0].value)
        yield node, inner
        yield from nodes(node, inner)


def cells(path: Path) -> Iterator[str]:
    """The source of every code cell; a line of a magic is no Python, and a cell that is written to
    a file is.
    """
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


def missing(
    sources: Iterator[str] | list[str], available: set[str], extra: str | None = None
) -> dict[str, list[str]]:
    """Imported modules that none of the available distributions holds, with those that do; `extra`
    is as in `imported`.

    A module that is not installed here is taken to be in a distribution of its name.
    """
    holders = holders_of_modules()
    names = {name for source in sources for name in imported(source, extra)}
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
    names = {
        name
        for cell in cells(path)
        for name in re.findall(r"^from algorithms import (.*)$", cell, re.MULTILINE)
    }
    modules = [name for line in names for name in line.split(", ")]
    assert not missing(
        texts([ROOT / "tests" / "algorithms" / f"{name}.py" for name in modules]), available
    )


def test_what_is_always_installed_suffices_for_the_package_and_its_commands(
    declared: Mapping[str, set[str]],
):
    """What an extra has is imported in `with needed(extra, ...)` alone, which names the command
    that installs it.
    """
    paths = [
        path
        for folder in ("rlhf_jax", "experiments", "configs")
        for path in (ROOT / folder).rglob("*.py")
    ]
    sources = texts([path for path in paths if path not in BENCH])
    assert not missing(sources, declared[""], "")
    for extra in ("hub", "slurm", "track", "sentiment", "browser"):
        assert any(imported(source, extra) for source in sources)
        assert not missing(sources, declared[extra], extra)


def test_the_other_extras_suffice(declared: Mapping[str, set[str]]):
    assert not missing(texts(BENCH), declared[""] | declared["bench"])
    assert not missing(
        texts(list((ROOT / "tests").rglob("*.py"))),
        declared[""] | declared["test"] | declared["slurm"],
    )
    assert (
        declared["hub"]
        | declared["track"]
        | declared["slurm"]
        | declared["sentiment"]
        | declared["notebooks"]
        == declared["all"]
    )


def test_code_of_pages_needs_no_more_than_notebooks_do(declared: Mapping[str, set[str]]):
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert not missing(
        [block for page in pages for block in blocks(page)], declared[""] | declared["notebooks"]
    )


def test_a_module_that_nobody_declares_is_found():
    source = "def f():\n    from numpy import linalg\n    import torch.nn as nn\nimport json, rlhf_jax.types\n"
    assert imported(source) == {"numpy", "torch"}
    assert missing([source], {"numpy"}) == {"torch": ["torch"]}
    assert missing(["import no_such_module"], {"numpy"}) == {"no_such_module": ["no_such_module"]}
    assert not missing(["import absl.flags, PIL"], {"absl-py", "pillow"})
    guarded = "with needed('hub', 'a file'):\n    x = import_module('no_such.part')\nimport torch\n"
    assert [imported(guarded, extra) for extra in (None, "hub", "")] == [
        {"no_such", "torch"},
        {"no_such"},
        {"torch"},
    ]
