"""Pages of results: equal to what the committed cells give, and a cell that is run again beside its
line.
"""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import results
from experiments.bench import page
from rlhf_jax.config import flatten
from rlhf_jax.refusal import Refusal
from rlhf_jax.sweeps import cell_lines
from rlhf_jax.sweeps.cells import Cells
from rlhf_jax.sweeps.study import Cell, Study

ROOT = Path(__file__).parent.parent
LINE = {
    "processor": "one kind",
    "curve": [
        {
            "update": 0,
            "gold_mean": 0.3,
            "gold_mean_stderr": 0.1,
            "win_rate": 0.5,
            "win_rate_stderr": 0.02,
            "kl": 0.0,
        }
        | {"kl_stderr": 0.0},
        {
            "update": 4,
            "gold_mean": 1.3,
            "gold_mean_stderr": 0.1,
            "win_rate": 0.6,
            "win_rate_stderr": 0.02,
            "kl": 2.0,
        }
        | {"kl_stderr": 0.1},
    ],
}


def moved(processor: str, **last: float) -> dict:
    line = copy.deepcopy(LINE) | {"processor": processor}
    line["curve"][-1] |= last
    return line


def test_pages_and_pictures_are_those_of_the_committed_cells(monkeypatch):
    monkeypatch.chdir(ROOT)
    changed = results.differing(results.all_pages(), results.PAGES)
    assert not changed, f"{changed} differ: python -m experiments.results writes them"


def test_a_difference_on_the_page_of_benchmarks_is_within_its_interval():
    """The figures of `speed.json` are in the order low, mean, high; the page once took them for
    mean, low, high.
    """
    rows = re.findall(r"([+−]?[\d.]+) \(([+−]?[\d.]+) to ([+−]?[\d.]+)\)", page.speed())
    assert len(rows) == 2
    for mean, low, high in ([float(text.replace("−", "-")) for text in row] for row in rows):
        assert low <= mean <= high


def test_a_changed_page_and_a_changed_picture_are_noticed(tmp_path):
    from matplotlib.figure import Figure

    def drawn(height: float) -> bytes:
        figure = Figure(figsize=(2, 2))
        figure.add_subplot().bar([0, 1], [1.0, height])
        return results.picture(figure)

    pages = {"page.md": b"one\n", "picture.png": drawn(2.0)}
    for name, content in pages.items():
        (tmp_path / name).write_bytes(content)
    assert results.differing(pages, tmp_path) == []
    assert results.differing({"page.md": b"two\n", "picture.png": drawn(3.0)}, tmp_path) == [
        "page.md",
        "picture.png",
    ]
    assert results.differing({"other.md": b""}, tmp_path) == ["other.md"]


def test_no_page_is_written_from_a_part_of_the_cells(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    study = results.load("configs/studies/grpovi.py")
    without = replace(study, cells=tmp_path / "none.jsonl")
    monkeypatch.setattr(results.committed, "load", lambda path: without)
    assert results.study_pages("grpovi") == {}
    assert results.study_pages("offpolicyness") == {}


def test_a_page_whose_cells_are_not_found_is_an_error(monkeypatch, capsys):
    """The cells of a config that has changed since are those of another study."""
    pages = {"grpovi.md": b"", "inflight_age.md": b"", "benchmarks.md": b""}
    monkeypatch.setattr(results, "all_pages", lambda: pages)
    with pytest.raises(SystemExit) as stopped:
        results.main(["--check"])
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert "quickstart.md: not all cells of its protocol are in" in said
    assert "grpovi.md" not in said


def test_a_cell_that_is_equal_to_the_bit_says_so():
    assert "equal to the bit" in results.compare("arm", LINE, moved("one kind"))


def test_another_figure_on_the_same_processor_is_an_error():
    with pytest.raises(
        Refusal, match=r"differ on the same kind of processor .*gold_mean 1.3 and 1.30001"
    ):
        results.compare("arm", LINE, moved("one kind", gold_mean=1.30001))


def test_another_processor_must_lie_within_the_interval():
    """1.96 √2 standard errors of 0.1 are 0.277."""
    assert "within the interval" in results.compare(
        "arm", LINE, moved("another", gold_mean=1.55, kl=1.8)
    )
    with pytest.raises(Refusal, match="kl differ by more than the interval"):
        results.compare("arm", LINE, moved("another", gold_mean=1.55, kl=1.7))


def test_a_digest_that_names_no_cell_is_refused(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as left:
        results.main(["--again=ffffffffffffffffffff"])
    assert left.value.code == 1
    assert "names 0 committed cells" in capsys.readouterr().err


def test_a_cell_whose_config_has_changed_since_is_refused(monkeypatch):
    """The line's digest is not that of the study's cell of the same name."""
    monkeypatch.chdir(ROOT)
    study = results.load(results.STUDIES["grpovi"])
    cell = Cell("grpo_centered", study.products[0], 0, 2, "report")
    config = Cells(study)._values(cell) | {"rlhf.lag": 77}
    line = {
        "cell": "abc",
        "arm": cell.arm,
        "setting": dict(cell.setting),
        "seed": 0,
        "num_updates": 2,
    }
    line |= {"purpose": "report", "config": config}
    monkeypatch.setattr(
        results.cell_lines,
        "read",
        lambda path: [line | {"commit": "0123"}] if "grpovi" in str(path) else [],
    )
    with pytest.raises(Refusal, match="has changed since commit 0123: check that out"):
        results.find("abc")


RECORDS = sorted((ROOT / "experiments" / "studies").glob("*/cells.jsonl"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.parent.name)
def test_a_study_has_the_config_that_its_cells_were_run_with(path: Path):
    """A smaller quickstart must not make another study of the committed cells."""
    with path.open() as lines:
        bases = [line for line in map(json.loads, lines) if "config" in line]
    study = results.load(str(ROOT / results.STUDIES[path.parent.name]))
    today = cell_lines.identity(flatten(study.base().to_dict()))
    assert bases
    for line in bases:
        theirs = cell_lines.under_todays_keys(line["config"], str(path))
        assert cell_lines.identity(theirs) == today


def test_studies_name_committed_files(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, config in results.STUDIES.items():
        study: Study = results.load(config)
        assert Cells(study).path == Path(f"experiments/studies/{name}/cells.jsonl")
        assert (ROOT / "experiments" / "studies" / name / "protocol.md").exists()
