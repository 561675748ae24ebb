"""The layer table of the design: imports go down or within a layer, in no circle, and every module says what it is for."""

import ast
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
    "rlhf_jax.sampling": 4,
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
    "rlhf_jax.build": 9,
    "rlhf_jax.config_modules": 9,
    "rlhf_jax.sweeps": 10,
    "rlhf_jax.cli": 11,
    "experiments": 12,
    "configs": 12,
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for folder in ("rlhf_jax", "experiments", "configs")
    for path in (ROOT / folder).rglob("*.py")
}


def layer(name: str) -> int:
    """Of the longest entry of the table that the module lies in. A module that lies nowhere has no layer: KeyError."""
    package = (
        "rlhf_jax" if name == "rlhf_jax" else ".".join(name.split(".")[: 2 if name.startswith("rlhf_jax.") else 1])
    )
    return LAYERS[package]


def imports(source: str, name: str = "", is_package: bool = False) -> set[str]:
    """Our modules that a source imports anywhere, inside functions too; `from package import module` is the module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = name.split(".")[: len(name.split(".")) - node.level + is_package]
                base = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
    return {module for module in found if module.split(".")[0] in ("rlhf_jax", "experiments", "configs")}


GRAPH = {name: imports(path.read_text(), name, path.name == "__init__.py") for name, path in MODULES.items()}


def upward(name: str, imported: set[str]) -> set[str]:
    return {other for other in imported if layer(other) > layer(name)}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down_or_within_a_layer(name):
    assert not upward(name, GRAPH[name])


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle, or nothing: what is left when modules without imports are taken away."""
    left = {name: set(imported) & graph.keys() - {name} for name, imported in graph.items()}
    while free := [name for name, imported in left.items() if not imported]:
        left = {name: imported - set(free) for name, imported in left.items() if name not in free}
    return sorted(left)


def test_no_circles():
    assert not circle(GRAPH)


def test_the_walk_sees_what_it_must():
    """An upward import, one inside a function, a relative one and a circle are found."""
    assert upward("rlhf_jax.ops.masked", imports("def f():\n    from rlhf_jax.stages import sft")) == {
        "rlhf_jax.stages.sft"
    }
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
