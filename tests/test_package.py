"""The package as it is installed: the wheel's files, what the plain install has, and the library
without the rest of it.
"""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import rlhf_jax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MISSION = [
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "sentencepiece",
    "ml-collections",
    "chex",
]
LIBRARY = ["jax", "flax", "optax", "chex", "numpy"]
"""All that the types, steps, formulas, algorithms and models need."""
TINY = (ROOT / ".ci" / "tiny_quickstart").read_text().split()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def needed_by(name: str) -> frozenset[str]:
    """A distribution and all that it requires."""
    found: set[str] = set()
    waiting = [normal(name)]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            texts = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        asked = map(Requirement, texts)
        waiting += [
            normal(one.name)
            for one in asked
            if one.marker is None or one.marker.evaluate({"extra": ""})
        ]
    return frozenset(found)


def others(names: Iterable[str]) -> list[str]:
    """Installed third-party modules that neither the named distributions nor anything that they
    require has.
    """
    required = frozenset().union(*map(needed_by, names))
    known = importlib.metadata.packages_distributions()
    return [
        module
        for module, held in known.items()
        if module != "rlhf_jax" and not required & set(map(normal, held))
    ]


def of_a_process(code: str, cwd: Path, *arguments: str) -> str:
    """The last line that Python code prints.

    It finds the package in the checkout, whatever the folder.
    """
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}",
        *arguments,
    ]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """A wheel that is built from a copy of the files that git tracks."""
    clone, target = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("docs/", "notebooks/", "experiments/")):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((ROOT / name).read_bytes())
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(target)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = target.iterdir()
    return zipfile.ZipFile(path)


def test_a_wheel_has_the_package_its_configs_and_what_studies_record(wheel: zipfile.ZipFile):
    names = set(wheel.namelist())
    own = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "rlhf_jax").rglob("*.py*")
        if path.parent.name != "__pycache__"
    }
    own |= {
        f"rlhf_jax/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.py")
    }
    for pattern in ("*.jinja", "*.txt"):
        own |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "rlhf_jax").rglob(pattern)}
    own |= {"rlhf_jax/py.typed", "rlhf_jax/golden/steps.json"}
    (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    assert own == {name for name in names if not name.startswith(info)}
    assert f"{info}/licenses/LICENSE" in names
    assert (
        wheel.read("rlhf_jax/golden/steps.json")
        == (ROOT / "tests" / "golden" / "steps.json").read_bytes()
    )
    assert b"rlhf-jax = rlhf_jax.cli.main:main" in wheel.read(f"{info}/entry_points.txt")
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Provides-Extra: hub" in metadata


def test_configs_import_nothing_that_a_wheel_lacks():
    for path in (ROOT / "configs").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += (
                [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            )
            assert not [
                name
                for name in names
                if name.partition(".")[0] in ("configs", "experiments", "tests")
            ], path


def test_the_license_and_the_citation_agree_with_the_metadata():
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {rlhf_jax.__version__}\n" in citation
    assert f"license: {PROJECT['license']}\n" in citation


QUICKSTART = """
import sys
hidden, *sizes = sys.argv[1:]
sys.modules.update(dict.fromkeys(hidden.split(",")))
from rlhf_jax.cli import run
run.main(["run", "quickstart", *sizes])
print(*sorted({name.partition(".")[0] for name, module in sys.modules.items() if module is not None}))
"""


def test_the_plain_install_is_what_the_quickstart_and_a_comparison_import(tmp_path):
    """In an empty folder, by the config's short name, with every package hidden that the plain
    install does not bring.
    """
    declared = {normal(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert declared >= set(MISSION)
    hidden = others(declared)
    assert {"tokenizers", "safetensors", "tensorboardX", "torch"} <= set(hidden)
    imported = of_a_process(QUICKSTART, tmp_path, ",".join(hidden), *TINY).split()
    assert (tmp_path / "runs" / "quickstart" / "report.html").exists()
    assert not (tmp_path / "runs" / "quickstart" / "tensorboard").exists()
    known = importlib.metadata.packages_distributions()
    used = {normal(holder) for name in imported for holder in known.get(name, ())}
    brought = frozenset().union(*map(needed_by, MISSION))
    page = (ROOT / "rlhf_jax" / "report" / "rendering.py").read_text()
    rendered = set(re.findall(r"^(?:import|from) (jinja2|markupsafe)\b", page, re.MULTILINE))
    assert declared <= used | brought | rendered, (
        "no requirement that neither quickstart and comparison nor the eight packages need"
    )


ALONE = """
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
names = ["rlhf_jax"] + [f"rlhf_jax.{name}" for name in sys.argv[2].split(",")]
for name in sys.argv[3].split(","):
    package = importlib.import_module(f"rlhf_jax.{name}")
    names += [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
MODULES = [
    "types",
    "clock",
    "sampling",
    "scoring",
    "updating",
    "tasks.addition",
    "rewards.exact_match",
]
FOLDERS = ["algorithms", "ops", "models"]


def test_the_library_alone_needs_five_packages(tmp_path):
    """Nothing is importable but these five and what they require."""
    hidden = others(LIBRARY)
    assert {"matplotlib", "ml_collections", "tensorflow_datasets", "sentencepiece"} <= set(hidden)
    count = of_a_process(ALONE, tmp_path, ",".join(hidden), ",".join(MODULES), ",".join(FOLDERS))
    assert int(count) > 40
