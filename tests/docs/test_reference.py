"""The generated pages of the reference: every key has a meaning, and no command is left out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from experiments import reference
from rlhf_jax.cli import main
from rlhf_jax.config import Bounds
from rlhf_jax.run_directory import keys


@dataclass(frozen=True)
class Base:
    kept: int = 1  # of the base


@dataclass(frozen=True)
class Example(Base):
    # Above the field,
    # on two lines.
    above: Annotated[int, Bounds(least=2, most=5)] = 3
    kind: Literal["a", "b"] = "a"  # beside it
    # above and
    both: tuple[int, ...] = ()  # beside
    nothing: str = ""
    ignored: str = ""  # type: ignore[assignment]


def test_the_meaning_of_a_key_is_the_comment_of_its_field():
    assert reference.meanings(Example) == {
        "kept": "of the base",
        "above": "Above the field, on two lines.",
        "kind": "beside it",
        "both": "above and beside",
    }


def test_a_key_has_its_default_and_bounds():
    found = {key.name: key for key in reference.keys_of(Example, "node")}
    assert found["node.above"].default == "3"
    assert found["node.above"].accepted == "int, 2 to 5"
    assert found["node.kind"].accepted == "`a`, `b`"
    assert found["node.both"].accepted == "several of: int"
    assert found["node.kept"].kind is keys.Class.NUMBERS


def test_every_key_of_every_component_has_a_meaning():
    silent = [
        f"{cls.__module__}: {key.name}"
        for _, _, cls, found in reference.sections()
        for key in found
        if not key.meaning
    ]
    assert not silent, f"no comment stands beside or above {', '.join(silent)}"


def test_every_command_has_a_section_with_its_help():
    page = reference.commands()
    for name in main.COMMANDS:
        _, _, section = page.partition(f"\n## {name}\n")
        assert "usage: rlhf-jax" in section.partition("\n## ")[0]


def test_a_page_that_nothing_makes_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "pages", lambda: {"kept.md": "text\n"})
    (tmp_path / "old.rst").write_text("")
    reference.write(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"kept.md": "text\n"}


def test_a_docstring_becomes_restructured_text():
    lines = [
        "Returns *args.",
        "",
        "    a = b",
        "",
        "Args:",
        "  x: one",
        "",
        "side   what",
        "left   it waits",
    ]
    reference.as_rst(None, "", "", None, None, lines)
    text = "\n".join(lines)
    assert r"Returns \*args." in text
    assert "::\n\n        a = b" in text
    assert "\nArgs:\n  x: one" in text
    assert "::\n\n    side   what" in text


def test_every_page_of_a_package_is_in_the_table_of_contents():
    page = Path("docs/reference/api.md").read_text()
    listed = [line for line in page.splitlines() if line.startswith("generated/")]
    assert sorted(listed) == sorted(f"generated/{name}" for name in reference.api())
