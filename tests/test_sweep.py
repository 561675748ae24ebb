"""Studies: the cells of a protocol, resuming, and three cells of the study of GRPOVI run for real."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import cells as cell_runs
from experiments import study as protocol
from experiments import sweep
from experiments.study import RESULT, Cell, Rung
from rlhf_jax.report import study as page

pytestmark = pytest.mark.usefixtures("quick_compiles")

ROOT = Path(__file__).parent.parent
CONFIG = "configs/studies/grpovi.py:tiny"


@pytest.fixture
def study(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    return replace(cell_runs.load(CONFIG), directory=tmp_path)


def write(study, cell: Cell, gold: float, kl: float = 1.0) -> None:
    """A cell that has ended, with a curve from 0."""
    directory = study.directory / cell.path
    directory.mkdir(parents=True)
    curve = [
        {"update": update, "gold_mean": gold * share, "reward_mean": share, "kl": kl * share}
        for update, share in ((0, 0.0), (cell.num_updates, 1.0))
    ]
    result = {"arm": cell.arm, "setting": dict(cell.setting), "seed": cell.seed, "purpose": cell.purpose}
    (directory / RESULT).write_text(json.dumps(result | {"num_updates": cell.num_updates, "curve": curve}))


def conduct(study, gold):
    """Every step of the tuning, each cell's gold a function of its arm and setting; the steps' cells."""
    steps = []
    for cells in protocol.tuning(study):
        steps.append(cells)
        for cell in cells:
            if not (study.directory / cell.path / RESULT).exists():
                write(study, cell, gold(cell.arm, *dict(cell.setting).values()))
    return steps


def interior(arm: str, rate: float, kl: float) -> float:
    """Best at 1e-3 and 0.04, both inside the grid."""
    del arm
    return -abs(math.log(rate / 1e-3)) - abs(kl - 0.04)


def test_halving_keeps_the_best_and_chooses_it(study):
    first, last = conduct(study, interior)
    assert len(first) == len(study.arms) * 9
    assert len(last) == len(study.arms) * 2
    assert {cell.seed for cell in first} == {100}
    assert {cell.seed for cell in last} == {101}
    chosen = protocol.chosen_settings(study)
    assert {dict(setting)["rlhf.optimizer.learning_rate"] for setting in chosen.values()} == {1e-3}
    assert {dict(setting)["algorithm.kl_weight"] for setting in chosen.values()} == {0.04}


def test_a_best_setting_on_an_edge_widens_the_grid(study):
    study = replace(study, arms=study.arms[:1], max_widenings=2)
    steps = conduct(study, lambda arm, rate, kl: -abs(math.log(rate / 8e-3)) - abs(kl - 0.04))
    rates = [max(dict(cell.setting)["rlhf.optimizer.learning_rate"] for cell in cells) for cells in steps]
    assert rates == [2e-3, 2e-3, 4e-3, 8e-3]
    (chosen,) = protocol.chosen_settings(study).values()
    assert dict(chosen)["rlhf.optimizer.learning_rate"] == 8e-3


def test_no_weight_at_all_is_no_edge(study):
    """A KL weight of 0 has nothing beyond it: widening would only repeat it."""
    study = replace(study, arms=study.arms[:1])
    steps = conduct(study, lambda arm, rate, kl: -abs(math.log(rate / 1e-3)) - kl)
    assert len(steps) == 2


def test_cells_that_are_reported_see_other_seeds_and_prompts(study):
    conduct(study, interior)
    cells = protocol.report_cells(study)
    tuned = {seed for rung in study.rungs for seed in rung.seeds}
    assert {cell.seed for cell in cells} == {0, 1, 2, 3, 4}
    assert not {cell.seed for cell in cells} & tuned
    parts = {
        purpose: cell_runs.config_of(study, replace(cells[0], purpose=purpose)).evaluate.part
        for purpose in ("tune", "report")
    }
    assert parts == {"tune": 0, "report": 1}


def test_every_arm_names_its_correction_and_is_an_algorithm(study):
    from rlhf_jax import build

    for arm in study.arms:
        values = cell_runs.config_of(study, Cell(arm.name, (), 0, 1, "report")).to_dict()
        assert values["algorithm"]["correction"]["ratio_to"] == "behavior", arm.name
        assert values["algorithm"]["correction"]["correction"] == "none", arm.name
        build.algorithm(values["algorithm"])


def test_differences_are_paired_by_seed():
    """Seeds differ by 10, arms by 1 and 3: unpaired they could not be told apart. t(0.975, 1 degree) = 12.706."""
    values = {"a": {0: 1.0, 1: 13.0}, "b": {0: 0.0, 1: 10.0}}
    mean, half = page.paired(values, "a", "b")
    assert mean == 2.0
    assert half == pytest.approx(12.706 * math.sqrt(2) / math.sqrt(2))


def test_gold_at_one_kl_is_read_between_evaluations():
    curve = [{"kl": 0.0, "gold_mean": 1.0}, {"kl": 2.0, "gold_mean": 3.0}, {"kl": 1.5, "gold_mean": 9.0}]
    assert page.at_kl({"curve": curve[:2]}, 0.5, "gold_mean") == pytest.approx(2.0)  # half way in √KL
    results = [{"seed": 0, "curve": curve}, {"seed": 0, "curve": curve[:2]}, {"seed": 1, "curve": curve[:1]}]
    assert page.common_kl(results) == {0: 2.0, 1: 0.0}


def test_the_page_says_what_the_study_asked(study):
    conduct(study, interior)
    cells = protocol.report_cells(study)
    for cell in cells:
        write(study, cell, {"grpovi_centered_6": 3.0, "matched_std": 2.5}.get(cell.arm, 2.0) + 0.1 * cell.seed)
    path = page.write_study(study.directory, protocol.results(study, cells), [arm.name for arm in study.arms])
    text = path.read_text()
    assert "shape alone (GRPOVI against its own scale): gold +0.500 ± 0.000" in text
    assert "scale alone (matched deviation) against GRPO without division: gold +0.500 ± 0.000" in text
    assert all(arm.name in text for arm in study.arms)
    assert (study.directory / "plots" / "gold_against_kl.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("configs/studies/none.py", "no study 'configs/studies/none.py'; there are: configs/studies/grpovi.py"),
        ("configs/quickstart.py", "has no get_study"),
        ("configs/studies/grpovi.py:huge", "the study's argument is 'huge'; accepted: tiny"),
    ],
)
def test_what_is_no_study_is_one_line(monkeypatch, capsys, argument, message):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as left:
        sweep.main([f"--config={argument}"])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_three_cells_run_and_are_not_run_again(study):
    """Three arms of one seed, in this process; a second call finds them all."""
    cells = [
        Cell(name, (("rlhf.optimizer.learning_rate", 1e-3), ("algorithm.kl_weight", 0.04)), 100, 1, "tune")
        for name in ("grpo_standardized", "grpovi_centered_6", "matched_std")
    ]
    study = replace(study, rungs=(Rung(1, (100,), 1),))
    cell_runs.run_cells(study, cells)
    results = protocol.results(study, cells)
    assert [result["arm"] for result in results] == [cell.arm for cell in cells]
    assert [[line["update"] for line in result["curve"]] for result in results] == [[0, 1]] * 3
    assert len({result["curve"][0]["gold_mean"] for result in results}) == 1, "cells of a seed begin as one policy"
    assert len({result["curve"][1]["kl"] for result in results}) == 3
    assert "winner_takes_all_share" in results[1]["means"]
    before = [(study.directory / cell.path / RESULT).stat().st_mtime_ns for cell in cells]
    cell_runs.run_cells(study, cells)
    assert [(study.directory / cell.path / RESULT).stat().st_mtime_ns for cell in cells] == before
