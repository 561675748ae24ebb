"""The public names are functions whatever was imported before, cost nothing to import, and are
typed.
"""

import ast
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rlhf_jax as rl

ROOT = Path(__file__).parents[2]
FUNCTIONS = [name for name in rl.__all__ if name != "__version__"]
HEAVY = (
    "tensorflow_datasets", "tensorflow", "matplotlib", "tokenizers", "sentencepiece", "pyarrow", "orbax", "torch",
    "transformers", "scipy", "ml_collections", "tensorboardX", "jinja2", "safetensors",
)  # fmt: skip


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout


def test_no_module_takes_the_place_of_a_function():
    """In an interpreter of its own: every submodule is imported before a public name is asked for."""
    printed = python(
        "import importlib, inspect, pkgutil, rlhf_jax\n"
        "for module in pkgutil.walk_packages(rlhf_jax.__path__, 'rlhf_jax.'):\n"
        "    importlib.import_module(module.name)\n"
        "import rlhf_jax as rl\n"
        "print([n for n in rl.__all__ if n != '__version__' and not inspect.isfunction(getattr(rl, "
        "n))], rl.sample.__module__)"
    )
    assert printed.split() == ["[]", "rlhf_jax.face.calls"]


def test_no_top_module_has_a_public_name():
    assert not set(FUNCTIONS) & {module.name for module in pkgutil.iter_modules(rl.__path__)}


def test_the_names_are_those_of_the_page_on_the_house():
    wanted = [
        "algorithm",
        "encode",
        "init",
        "model",
        "reward",
        "run",
        "sample",
        "score",
        "task",
        "tokenizer",
        "update",
    ]
    assert sorted(FUNCTIONS) == wanted
    assert set(rl.__all__) <= set(dir(rl))
    for module in (rl.algorithms, rl.models, rl.rewards, rl.tasks, rl.ops):
        assert inspect.ismodule(module)


def test_another_name_lists_the_names():
    with pytest.raises(AttributeError, match=r"no attribute 'smaple'; it has task, .* update, run"):
        _ = rl.smaple


def test_the_stub_has_the_same_names_and_homes():
    """pyright reads `__init__.pyi`; the package itself imports a name when it is first used."""
    stub = ast.parse((ROOT / "rlhf_jax" / "__init__.pyi").read_text())
    imported = {
        (node.module, a.asname)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for a in node.names
    }
    assert imported == {(f"rlhf_jax.face.{home}", name) for name, home in rl._HOMES.items()} | {
        ("rlhf_jax", room) for room in rl._ROOMS
    }
    assert (ROOT / "rlhf_jax" / "py.typed").exists()


def test_nothing_heavy_is_imported_before_it_is_used():
    found = f"print([name for name in {HEAVY!r} if name in sys.modules])"
    assert python(f"import sys, rlhf_jax\n{found}") == "[]\n"
    assert "jax" not in python(
        "import sys, rlhf_jax\nprint([n for n in ('jax', 'numpy') if n in sys.modules])"
    )
    one_update = "\n".join(blocks()[0].splitlines())
    assert python(f"import sys\n{one_update}\n{found}") == "[]\n"


def blocks() -> list[str]:
    """The Python blocks of the page on the library."""
    return re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "guides" / "library.md").read_text(), re.DOTALL
    )


def test_the_ten_lines_of_the_readme_are_those_of_the_page():
    """The README shows them too; where it does, they are the same."""
    shown = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert all(block in blocks() for block in shown if "import jax, optax, rlhf_jax as rl" in block)
    lines = [line for line in blocks()[0].splitlines() if line.strip()]
    assert len(lines) - 1 == 10  # and one of imports


def test_the_page_runs_as_printed(capsys):
    """One block after the other, as a reader would type them."""
    ten, loop_of_events, of_components = blocks()
    known: dict = {}
    exec(ten, known)
    assert known["samples"].tokens_BC.shape == (256, 4)
    assert int(known["state"].step) == 1
    exec(loop_of_events.replace("num_rounds=64", "num_rounds=3"), known)
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["0", "0"],
        ["1", "1"],
        ["2", "1"],
    ]
    exec(of_components, known)
    assert {role: int(state.step) for role, state in known["states"].items()} == {
        "policy": 1,
        "critic": 1,
    }


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_say_what_they_take_give_and_raise(name):
    function = getattr(rl, name)
    text = inspect.getdoc(function) or ""
    assert all(f"\n{section}:\n" in text for section in ("Args", "Raises"))
    assert "Returns" in text or "Yields" in text or "yields" in text
    arguments = text.partition("Args:")[2].partition("\nRaises:")[0]
    for parameter in inspect.signature(function).parameters.values():
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        assert f"  {stars}{parameter.name}:" in arguments


def test_the_version_is_that_of_the_package():
    """The build reads it from the package; no other file of the build states a version."""
    texts = "\n".join((ROOT / name).read_text() for name in ("setup.py", "pyproject.toml"))
    assert re.findall(r"^\s*version\s*=\s*(.+)$", texts, re.MULTILINE) == [
        '{ attr = "rlhf_jax.__version__" }'
    ]
