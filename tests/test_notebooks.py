"""Every notebook runs from top to bottom, without a warning and with a picture, and prints what it
has stored.

Its install cell helps outside of a clone. `python tests/test_notebooks.py` stores the outputs, which
the site shows.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
DIGITS = re.compile(r"\d\.\d{7,}")
NUMBER = re.compile(r"/\S+/|0x[0-9a-f]+|[-+−]?\d+(\.\d+)?([e×]\S*)?")
SECONDS = 900


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs that it has now.

    Raises CellExecutionError with the cell and its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute(env=dict(os.environ))
    return notebook


def words(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """The words that each cell shows, without numbers, which differ between processors, and without
    names of folders, which may be temporary. A picture is the word "image/png".
    """
    shown = []
    for cell in notebook.cells:
        texts = []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            picture = "image/png" if "image/png" in data else ""
            texts.append(picture or output.get("text", "") + data.get("text/plain", ""))
        shown.append(NUMBER.sub("#", " ".join(texts)).split())
    return shown


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path):
    stored = nbformat.read(path, as_version=4)
    notebook = executed(path)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    printed = [
        output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs
    ]
    assert not [text for text in printed if DIGITS.search(text)], "more digits than float32 has"
    again = "python tests/test_notebooks.py stores what the notebooks show now"
    assert words(stored) == words(notebook), again


def install_cell(path: Path) -> str:
    """The source of the first code cell."""
    return next(
        cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"
    )


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty folder where `rlhf_jax` cannot be imported; the list holds what pip is asked for
    there.
    """
    asked: list[str] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        assert command[:4] == [sys.executable, "-m", "pip", "install"]
        asked.append(command[-1])
        return SimpleNamespace(returncode=1 if "broken" in command[-1] else 0)

    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", run)
    return asked


def said(source: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a notebook shows below a cell."""
    InteractiveShell().run_cell(source)
    return capsys.readouterr().out


def test_all_notebooks_have_the_same_install_cell():
    assert len({install_cell(path) for path in NOTEBOOKS}) == 1


def test_an_empty_source_is_told_in_one_line(
    outside: list[str], capsys: pytest.CaptureFixture[str]
):
    (line,) = said(install_cell(NOTEBOOKS[0]), capsys).splitlines()
    assert "write a git address or a wheel into SOURCE" in line
    assert not outside


@pytest.mark.parametrize(
    ("source", "extra", "wanted"),
    [
        ("git+https://forge.example/a/rlhf.git@v1", "", "rlhf_jax[notebooks] @ "
                                                        "git+https://forge.example/a/rlhf.git@v1"),
        ("https://forge.example/a/rlhf", "gpu", "rlhf_jax[notebooks,gpu] @ "
                                                "git+https://forge.example/a/rlhf"),
        ("https://x.example/rlhf_jax-0.1.0-py3-none-any.whl", "",
         "rlhf_jax[notebooks] @ https://x.example/rlhf_jax-0.1.0-py3-none-any.whl"),
        ("/content/rlhf_jax-0.1.0-py3-none-any.whl", "tpu", "/content/rlhf_jax-0.1.0-py3-none-any.whl[notebooks,tpu]"),
    ],
)  # fmt: skip
def test_a_source_is_installed_with_its_extras(
    source: str, extra: str, wanted: str, outside: list[str], capsys
):
    cell = install_cell(NOTEBOOKS[0]).replace('SOURCE = ""', f'SOURCE = "{source}"')
    assert not said(cell.replace('EXTRA = ""', f'EXTRA = "{extra}"'), capsys)
    assert outside == [wanted]


def test_what_cannot_be_installed_is_told_in_one_line(outside: list[str], capsys):
    cell = install_cell(NOTEBOOKS[0])
    (line,) = said(cell.replace('SOURCE = ""', 'SOURCE = "broken.whl"'), capsys).splitlines()
    assert line.startswith("pip could not install broken.whl[notebooks]")
    changed = cell.replace('SOURCE = ""', 'SOURCE = "a.whl"').replace(
        'EXTRA = ""', 'EXTRA = "cuda"'
    )
    (line,) = said(changed, capsys).splitlines()
    assert line == 'EXTRA is \'cuda\'; accepted: "", "gpu" or "tpu"'


def test_a_clone_that_is_not_installed_is_the_source(outside: list[str], capsys, tmp_path: Path):
    (tmp_path / "rlhf_jax").mkdir()
    assert not said(install_cell(NOTEBOOKS[0]), capsys)
    assert outside == [f"{tmp_path}[notebooks]"]


def test_an_installed_package_is_left_alone(
    outside: list[str], capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert not said(install_cell(NOTEBOOKS[0]), capsys)
    assert not outside


def test_the_battery_of_notebook_02_needs_a_git_address(
    outside: list[str], capsys, monkeypatch: pytest.MonkeyPatch
):
    """With a wheel its own cell says so in one line; with a git address it clones, at the branch
    that is named.
    """
    (path,) = [path for path in NOTEBOOKS if path.stem.startswith("02")]
    install, battery = [
        c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"
    ][:2]
    install = install[: install.index("if importlib")]
    (line,) = said(
        install.replace('SOURCE = ""', 'SOURCE = "a.whl"') + battery, capsys
    ).splitlines()
    assert "write a git address of the project into SOURCE" in line
    commands: list[list[str]] = []
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(
        subprocess, "run", lambda command: commands.append(command) or SimpleNamespace(returncode=0)
    )
    address = "ssh://git@forge.example/a/rlhf.git"
    for source in (f"git+{address}@v1", address):
        assert not said(install.replace('SOURCE = ""', f'SOURCE = "{source}"') + battery, capsys)
    assert [command[2:-1] for command in commands] == [
        ["-q", "--depth", "1", "--branch", "v1", address],
        ["-q", "--depth", "1", address],
    ]


@pytest.mark.parametrize(("name", "most"), [("01_one_round", 45), ("04_asynchrony", 115)])
def test_a_notebook_of_the_library_is_short(name: str, most: int):
    """Lines of code but for the install cell, which all notebooks share; blank lines and comments
    do not count.
    """
    (path,) = [path for path in NOTEBOOKS if path.stem == name]
    _, *cells = [
        cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"
    ]
    lines = [line.strip() for source in cells for line in source.splitlines()]
    assert len([line for line in lines if line and not line.startswith("#")]) <= most


if __name__ == "__main__":
    for stored_path in NOTEBOOKS:
        made = executed(stored_path)
        for made_cell in made.cells:
            made_cell.metadata.pop("execution", None)
        nbformat.write(made, stored_path)
