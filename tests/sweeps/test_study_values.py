"""Cells of a study whose algorithm needs prompt values."""

from pathlib import Path

from rlhf_jax.refusal import Refusal
from rlhf_jax.run_directory import lock
from rlhf_jax.stages import prompt_values
from rlhf_jax.sweeps import shared_stages
from rlhf_jax.sweeps.cells import BASE, Cells, run_cells
from rlhf_jax.sweeps.steps import report_cells
from rlhf_jax.sweeps.study import Arm, Study
from tests.cli.test_sweep import base

ROOT = Path(__file__).parents[2]
SAMPLES = "rlhf.prompt_values.num_samples"


def test_cells_that_agree_on_the_values_share_one_pass(tmp_path, monkeypatch):
    """Another temperature of the values samples nothing again, another number of samples does. A pass
    that another process makes is waited for.
    """
    monkeypatch.chdir(ROOT)
    made, waits, make = [], [], prompt_values._make

    def counted(own, *arguments):
        if not made and not waits:
            raise Refusal("the directory is in use by another process")
        made.append(own.workspace.directory)
        make(own, *arguments)

    monkeypatch.setattr(prompt_values, "_make", counted)
    monkeypatch.setattr(lock, "is_held", lambda directory: not waits)
    monkeypatch.setattr(shared_stages.time, "sleep", waits.append)
    settings = tuple(
        (("algorithm.temperature", temperature), (SAMPLES, samples))
        for temperature, samples in ((0.5, 3), (1.0, 3), (0.5, 2))
    )
    study = Study(
        directory=tmp_path / "study",
        base=base,
        arms=(Arm("values", "a2po", {"rlhf.evaluate_every": 0}, settings=settings),),
        grid={},
        open_ended={},
        rungs=(),
        report_updates=2,
        report_seeds=(0,),
    )
    cells = Cells(study)
    run_cells(cells, report_cells(study, cells.ended))
    lines = cells.results(report_cells(study, cells.ended))
    assert [dict(line["setting"]) for line in lines] == [dict(setting) for setting in settings]
    assert waits == [shared_stages.WAIT_SECONDS]
    assert len(made) == len(set(made)) == 2
    assert all(path.is_relative_to(study.directory / BASE) for path in made)
    assert len({line["means"]["update_norm"] for line in lines}) == 3
