"""Writes every page and picture of results in `docs/results/` from committed files, and tries
single cells again.

    python -m experiments.results                 writes the pages
    python -m experiments.results --check         writes nothing; exit status 1 where a page or picture would change
    python -m experiments.results --again=CELL    runs one cell anew and compares it with its committed line

CELL is the digest of a cell, as a line of a `cells.jsonl` has it, or the first digits of it. On the
kind of processor that the line names, and with its generation of compiled programs, the figures
must be equal to the bit. Otherwise they must lie within the interval of an evaluation; at the
commit that the line names they are equal to the bit again.
"""

import argparse
import importlib
import io
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.bench.page import pages as bench_pages
from experiments.studies import committed
from experiments.studies.committed import STUDIES
from rlhf_jax.cli import command
from rlhf_jax.cli.run import keep_freed_memory
from rlhf_jax.refusal import Refusal
from rlhf_jax.report.plots import style
from rlhf_jax.sweeps import cell_lines
from rlhf_jax.sweeps.cell_lines import line_identity
from rlhf_jax.sweeps.cells import Cells, load, run_cells
from rlhf_jax.sweeps.provenance import ROOT
from rlhf_jax.sweeps.study import Cell, setting_from_json

PAGES = ROOT / "docs" / "results"
TWO_ERRORS = 1.96 * math.sqrt(2)  # a difference of two evaluations that have equal standard errors
COMPARED = {"gold_mean": "gold_mean_stderr", "win_rate": "win_rate_stderr", "kl": "kl_stderr"}


def study_pages(name: str) -> dict[str, str | Figure]:
    """The pages of a study whose cells have all ended; none of another."""
    lines = committed.results(name)
    if not lines:
        return {}
    return importlib.import_module(f"experiments.studies.{name}.findings").pages(lines)


def all_pages() -> dict[str, bytes]:
    """Every file of `docs/results/` by its name."""
    contents: dict[str, str | Figure] = {**bench_pages()}
    for name in STUDIES:
        contents |= study_pages(name)
    return {
        file: content.encode() if isinstance(content, str) else picture(content)
        for file, content in contents.items()
    }


def picture(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "figure.png")
        style.write_png(figure, path)
        return path.read_bytes()


def differing(pages: Mapping[str, bytes], directory: Path) -> list[str]:
    """Names of the pages that are missing in a directory or not equal there; pictures are compared
    by their pixels.
    """
    return [name for name, content in pages.items() if not _equal(directory / name, content)]


def without_cells(pages: Mapping[str, bytes], directory: Path) -> list[str]:
    """A line for each study whose page is in a directory and whose cells are not all found: one that
    was not committed, or whose config has changed since.
    """
    return [
        f"{name}.md: not all cells of its protocol are in experiments/studies/{name}/cells.jsonl "
        f"under the config that {STUDIES[name]} has today"
        for name in STUDIES
        if f"{name}.md" not in pages and (directory / f"{name}.md").exists()
    ]


def _equal(path: Path, content: bytes) -> bool:
    if not path.exists():
        return False
    if path.suffix != ".png":
        return path.read_bytes() == content
    import matplotlib.image

    committed, drawn = matplotlib.image.imread(path), matplotlib.image.imread(io.BytesIO(content))
    return committed.shape == drawn.shape and bool(
        np.abs(committed - drawn).mean() < 1e-3
    )  # fonts may be drawn a shade apart


def find(digits: str) -> tuple[Cells, Cell, cell_lines.Line]:
    """The study, the cell and the committed line that a digest names.

    Raises Refusal for none or several.
    """
    matches = []
    for config in STUDIES.values():
        study = load(str(ROOT / config))
        assert study.cells is not None
        for line in cell_lines.read(ROOT / study.cells):
            if line["cell"].startswith(digits):
                matches.append((study, line))
    if len({line["cell"] for _, line in matches}) != 1:
        raise Refusal(
            f"--again={digits} names {len(matches)} committed cells; accepted: the digest of one "
            "cell in a cells.jsonl"
        )
    study, line = matches[-1]
    setting = setting_from_json(line["setting"].items())
    cell = Cell(line["arm"], setting, line["seed"], line["num_updates"], line["purpose"])
    cells = Cells(study)
    if cells.identity(cell) != line_identity(line, cells.path):
        raise Refusal(
            f"the config of cell {line['cell']} ({cell.name}) has changed since commit "
            f"{line['commit']}: check that out"
        )
    return cells, cell, line


def again(digits: str) -> str:
    """Runs a cell anew and compares it with its line.

    Returns a sentence; raises Refusal where the numbers differ.
    """
    cells, cell, line = find(digits)
    with tempfile.TemporaryDirectory() as directory:
        anew = Cells(replace(cells.study, directory=Path(directory), cells=None))
        run_cells(anew, [cell])
        new = anew.ended(cell)
    assert new is not None
    return compare(cell.name, line, new)


def compare(name: str, line: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Compares two lines of one cell.

    Raises Refusal where they differ by more than their processors and compiled programs explain.
    """
    same = line["processor"] == new["processor"]
    if line["curve"] == new["curve"]:
        return f"{name}: every figure of {len(new['curve'])} evaluations is equal to the bit ({new['processor']})"
    last, new_last = line["curve"][-1], new["curve"][-1]
    shown = ", ".join(
        f"{key} {last[key]:.6g} and {new_last[key]:.6g}" for key in COMPARED if key in last
    )
    if same:
        raise Refusal(
            f"{name}: the figures differ on the same kind of processor ({line['processor']}): "
            f"{shown}"
        )
    outside = [
        key
        for key, error in COMPARED.items()
        if abs(last[key] - new_last[key]) > TWO_ERRORS * last[error]
    ]
    if outside:
        raise Refusal(
            f"{name}: {', '.join(outside)} differ by more than the interval of an evaluation: "
            f"{shown}"
        )
    return (
        f"{name}: within the interval of an evaluation on another processor or with other compiled "
        f"programs ({line['processor']}; now {new['processor']}): {shown}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes or checks the pages. Raises SystemExit: with 1 where a page would change or a cell has
    other figures, else see `command.py`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m experiments.results", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing, and name the pages that would change"
    )
    parser.add_argument(
        "--again", metavar="CELL", help="run one cell anew and compare it with its committed line"
    )
    given = parser.parse_args(arguments)

    def body(place: command.Place) -> None:
        place.directory = PAGES
        if given.again:
            try:
                print(again(given.again))
            except Refusal as error:
                raise command.Failed(str(error)) from error
            return
        pages = all_pages()
        changed = differing(pages, PAGES)
        if lost := without_cells(pages, PAGES):
            raise command.Failed("\n".join(lost))
        if given.check:
            print("\n".join(changed) or f"{len(pages)} files are as they would be written")
            raise SystemExit(1 if changed else 0)
        PAGES.mkdir(parents=True, exist_ok=True)
        for name in changed:
            (PAGES / name).write_bytes(pages[name])
        print(f"{len(changed)} of {len(pages)} files written to {PAGES}")

    if status := command.call(body):
        raise SystemExit(status)


if __name__ == "__main__":
    keep_freed_memory()
    command.start(main)
