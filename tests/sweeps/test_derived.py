"""Cells whose settings depend on another cell's result, and blocks that end at a deadline."""

import math
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_jax.cli import sweep
from rlhf_jax.refusal import Failed, Refusal
from rlhf_jax.sweeps.cells import Cells, run_cells
from rlhf_jax.sweeps.steps import report_cells
from rlhf_jax.sweeps.study import Arm, Rung, Study, setting_from_json
from tests.cli.test_sweep import base, end

ROOT = Path(__file__).parents[2]
SCHEDULE = "rlhf.version_schedule"


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def derive(result):
    """The schedule that the source's figure says."""
    return ((SCHEDULE, (0, round(result["curve"][-1]["gold_mean"]) // 2)),)


@pytest.fixture
def study(tmp_path):
    """An arm that is derived from one that comes after it, and two seeds."""
    return Study(
        directory=tmp_path / "study",
        base=base,
        arms=(Arm("derived", "grpo", derived_from="source", derive=derive), Arm("source", "grpo")),
        grid={},
        open_ended={},
        rungs=(),
        report_updates=2,
        report_seeds=(0, 1),
    )


def test_a_derived_cell_is_run_once_its_source_has_ended(study, capsys):
    cells, steps = Cells(study), []

    def run(wanted):
        steps.append([(cell.arm, cell.seed) for cell in wanted])
        for cell in wanted:
            end(cells, cell, gold=float(cell.seed))  # ends at 2 * seed

    sweep.conduct(study, run)
    assert steps == [
        [("source", 0)],
        [("derived", 0)],
        [("source", 1)],
        [("derived", 1)],
    ]
    reported = report_cells(study, cells.ended)
    schedules = {cell.seed: dict(cell.setting)[SCHEDULE] for cell in reported if cell.setting}
    assert schedules == {0: (0, 0), 1: (0, 1)}
    assert [cells.config(cell).rlhf.version_schedule for cell in reported if cell.setting] == [
        (0, 0),
        (0, 1),
    ]
    assert not cells.left(reported)
    lines = cells.results(reported)
    assert [setting_from_json(line["setting"].items()) for line in lines] == [
        cell.setting for cell in reported
    ]
    assert reported[0].name == "derived/2values-report-2/0"


def test_a_cell_may_be_derived_from_the_next_seed(study):
    """The last seed's source is the first seed's."""
    arms = (replace(study.arms[0], seeds_later=1), study.arms[1])
    study = replace(study, arms=arms)
    cells, steps = Cells(study), []

    def run(wanted):
        steps.append([(cell.arm, cell.seed) for cell in wanted])
        for cell in wanted:
            end(cells, cell, gold=float(cell.seed))  # ends at 2 * seed

    sweep.conduct(study, run)
    assert steps == [[("source", 0)], [("derived", 1), ("source", 1)], [("derived", 0)]]
    schedules = {
        cell.seed: dict(cell.setting)[SCHEDULE]
        for cell in report_cells(study, cells.ended)
        if cell.setting
    }
    assert schedules == {0: (0, 1), 1: (0, 0)}


def test_a_failed_cell_is_not_tried_in_the_second_pass(study):
    study = replace(study, arms=(replace(study.arms[0], seeds_later=1), study.arms[1]))
    steps = []

    def run(wanted):
        steps.append([(cell.arm, cell.seed) for cell in wanted])
        raise Failed("a cell failed")

    with pytest.raises(Failed, match=r"a cell failed; a cell failed\. The same command"):
        sweep.conduct(study, run)
    assert steps == [[("source", 0)], [("source", 1)]]


def test_a_cell_that_gives_no_result_is_not_tried_again(study):
    steps = []
    sweep.conduct(study, steps.append)
    assert len(steps) == 2


def test_no_cell_is_begun_after_the_deadline(study, capsys):
    cells = Cells(study)

    def run(wanted):
        end(cells, wanted[0], gold=1.0)

    sweep.conduct(study, run, deadline=time.time() - 1)
    assert "the time is over" in capsys.readouterr().out
    assert not cells.results(report_cells(study, cells.ended))
    run_cells(cells, report_cells(study, cells.ended), deadline=time.time() - 1)
    assert not cells.path.exists()
    sweep.conduct(study, run, deadline=math.inf)
    assert len(cells.results(report_cells(study, cells.ended))) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"derive": None}, "arm 'derived' has one of derived_from and derive"),
        ({"derive": None, "derived_from": "", "seeds_later": 1}, "has seeds_later without derived"),
        ({"derived_from": "other"}, "the study has no arm 'other'; there are: derived, source"),
        ({"derived_from": "derived"}, "arm 'derived' is derived from 'derived'; accepted: an arm"),
    ],
)
def test_an_arm_without_a_source_is_refused(study, changes, message):
    arms = (replace(study.arms[0], **changes), study.arms[1])
    with pytest.raises(Refusal, match=message):
        replace(study, arms=arms)


def test_a_source_has_one_setting_and_a_study_with_rungs_has_none(study):
    with pytest.raises(
        Refusal, match="is derived from 'source'; accepted: an arm with one setting"
    ):
        replace(study, grid={"algorithm.kl_weight": (0.0, 0.1)})
    with pytest.raises(Refusal, match="has derived_from in a study with rungs"):
        replace(study, rungs=(Rung(1, (100,), 1),))


def test_minutes_are_of_a_study_that_runs_here(capsys):
    for arguments in (
        ["tiny", "--seeds=1", "--minutes=3"],
        ["studies/grpovi", "--slurm", "--minutes=3"],
    ):
        with pytest.raises(SystemExit) as left:
            sweep.main(arguments)
        assert left.value.code == 2
        assert "--minutes is of a study whose cells run here" in capsys.readouterr().err
