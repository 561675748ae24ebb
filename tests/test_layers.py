"""The layer table of the design: imports go down or within a layer, in no circle, and every module
says what it is for.
"""

import ast
import collections
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {
    "rlhf_jax": 0,  # the package itself, which imports nothing
    "rlhf_jax.refusal": 1,
    "rlhf_jax.extras": 1,
    "rlhf_jax.types": 1,
    "rlhf_jax.clock": 1,
    "rlhf_jax.config": 1,
    "rlhf_jax.randomness": 1,
    "rlhf_jax.registry": 2,
    "rlhf_jax.ops": 2,
    "rlhf_jax.text": 2,
    "rlhf_jax.models": 3,
    "rlhf_jax.pretrained": 3,
    "rlhf_jax.tasks": 3,
    "rlhf_jax.algorithms": 3,
    "rlhf_jax.rewards": 4,
    "rlhf_jax.micro_batches": 4,
    "rlhf_jax.prompt_buckets": 4,
    "rlhf_jax.sampling": 4,
    "rlhf_jax.slots": 4,
    "rlhf_jax.scoring": 4,
    "rlhf_jax.dataflow": 4,
    "rlhf_jax.updating": 4,
    "rlhf_jax.devices": 5,
    "rlhf_jax.records": 5,
    "rlhf_jax.runtime": 6,
    "rlhf_jax.run_directory": 6,
    "rlhf_jax.planner": 7,
    "rlhf_jax.report": 7,
    "rlhf_jax.stages": 8,
    "rlhf_jax.rewards.common.nodes": 8,
    "rlhf_jax.building": 9,
    "rlhf_jax.build": 9,
    "rlhf_jax.config_modules": 9,
    "rlhf_jax.face": 9,
    "rlhf_jax.sweeps": 10,
    "rlhf_jax.cli": 11,
    "experiments": 12,
    "configs": 12,
}


FLOORS = {
    "rlhf_jax.runtime": (
        {"activity", "spec"},
        {"buffer", "calls", "credit", "sampler"},
        {"groups", "shapes", "stopping"},
        {"program", "supervised"},
        {"synchronous"},
        {"asynchronous"},
        {"inflight"},
    ),
    "rlhf_jax.planner": (
        {"api"},
        {"options", "costs"},
        {"simulation", "compiled"},
        {"search"},
        {"problem"},
    ),
}
"""Inside a package: modules and sub-packages, the lowest floor first.

One imports only from floors below its own.
"""
MOST_MODULES = {"rlhf_jax.runtime": 12}
MOST_LINES = 260
MOST_IN_FOLDER = 14


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def path_of(package: str) -> Path:
    """The folder of a package."""
    return ROOT.joinpath(*package.split("."))


MODULES = {
    module_name(path): path
    for folder in ("rlhf_jax", "experiments", "configs")
    for path in (ROOT / folder).rglob("*.py")
}


def layer(name: str) -> int:
    """Of the longest entry of the table that the module lies in.

    A module that lies nowhere has no layer: KeyError.
    """
    package = (
        "rlhf_jax"
        if name == "rlhf_jax"
        else ".".join(name.split(".")[: 2 if name.startswith("rlhf_jax.") else 1])
    )
    return LAYERS[package]


def imports(source: str, name: str = "", is_package: bool = False) -> set[str]:
    """Our modules that a source imports anywhere, inside functions too; `from package import
    module` is the module.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = name.split(".")[: len(name.split(".")) - node.level + is_package]
                base = ".".join([*above, *filter(None, [node.module])])
            found |= {
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base
                for alias in node.names
            }
    return {
        module for module in found if module.split(".")[0] in ("rlhf_jax", "experiments", "configs")
    }


GRAPH = {
    name: imports(path.read_text(), name, path.name == "__init__.py")
    for name, path in MODULES.items()
}


def upward(name: str, imported: set[str]) -> set[str]:
    return {other for other in imported if layer(other) > layer(name)}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down_or_within_a_layer(name):
    assert not upward(name, GRAPH[name])


@pytest.mark.parametrize("package", FLOORS)
def test_imports_inside_a_package_go_down(package):
    inside = {
        name: name.removeprefix(f"{package}.").split(".")[0]
        for name in GRAPH
        if name.startswith(f"{package}.")
    }
    floor = {room: level for level, rooms in enumerate(FLOORS[package]) for room in rooms}
    assert floor.keys() == set(inside.values()), "every module has a floor"
    modules = {room for room in inside.values() if not (path_of(package) / room).is_dir()}
    assert len(modules) <= MOST_MODULES.get(package, len(inside))
    wrong = {
        (name, other)
        for name, room in inside.items()
        for other in GRAPH[name] & inside.keys()
        if room != inside[other] and floor[inside[other]] >= floor[room]
    }
    assert not wrong


def lines_of_code(path: Path) -> int:
    """Lines of a module that are neither blank nor of a docstring."""
    tree, source = ast.parse(path.read_text()), path.read_text().splitlines()
    documented = [
        tree,
        *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)),
    ]
    texts = [node.body[0] for node in documented if ast.get_docstring(node) is not None]
    inside = {
        line for text in texts for line in range(text.lineno, (text.end_lineno or text.lineno) + 1)
    }
    return sum(bool(line.strip()) for number, line in enumerate(source, 1) if number not in inside)


def test_no_module_and_no_folder_is_too_large():
    modules = [path for path in (ROOT / "rlhf_jax").rglob("*.py") if path.name != "__init__.py"]
    long = {str(path.relative_to(ROOT)): lines_of_code(path) for path in modules}
    assert not {name: lines for name, lines in long.items() if lines > MOST_LINES}
    folders = collections.Counter(str(path.parent.relative_to(ROOT)) for path in modules)
    assert not {name: count for name, count in folders.items() if count > MOST_IN_FOLDER}


@pytest.mark.parametrize("package", MOST_MODULES)
def test_a_module_is_more_than_a_function_of_its_only_importer(package):
    inside = (name for name in MODULES if name.startswith(f"{package}."))
    for name in (name for name in inside if MODULES[name].name != "__init__.py"):
        importers = [other for other in GRAPH if name in GRAPH[other]]
        assert len(importers) > 1 or lines_of_code(MODULES[name]) >= 40, (
            f"{name} is for {importers} alone"
        )


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle, or nothing: what is left when modules without
    imports are taken away.
    """
    left = {name: set(imported) & graph.keys() - {name} for name, imported in graph.items()}
    while free := [name for name, imported in left.items() if not imported]:
        left = {name: imported - set(free) for name, imported in left.items() if name not in free}
    return sorted(left)


def test_no_circles():
    assert not circle(GRAPH)


def test_the_walk_sees_what_it_must():
    """An upward import, one inside a function, a relative one and a circle are found."""
    assert upward(
        "rlhf_jax.ops.masked", imports("def f():\n    from rlhf_jax.stages import sft")
    ) == {"rlhf_jax.stages.sft"}
    assert imports("from . import masked", "rlhf_jax.ops.losses") == {"rlhf_jax.ops.masked"}
    assert imports("from .masked import select", "rlhf_jax.ops.losses") == {"rlhf_jax.ops.masked"}
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}) == ["a", "b", "c"]
    assert "rlhf_jax.types" in GRAPH["rlhf_jax.sampling"]
    assert len(MODULES) > 50


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_says_what_it_is_for(name):
    source = MODULES[name].read_text()
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring
    assert len(docstring.split()) >= 3
    assert "TYPE_CHECKING" not in source
    assert not name.endswith("utils")


def test_no_module_is_ignored_by_git():
    """An ignored module works where it was written, and is absent from every clone."""
    names = [str(path.relative_to(ROOT)) for path in MODULES.values()]
    command = ["git", "check-ignore", "--no-index", "--stdin"]
    done = subprocess.run(command, cwd=ROOT, input="\n".join(names), capture_output=True, text=True)
    assert done.stdout == ""
