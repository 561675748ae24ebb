"""A third-party package in every command: its components by dotted paths or files, their settings
from the command line.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from rlhf_jax import build
from rlhf_jax.cli import plan, run, sweep
from rlhf_jax.refusal import Refusal
from rlhf_jax.sweeps import provenance
from rlhf_jax.sweeps.cells import Cells, load, run_cells
from rlhf_jax.sweeps.steps import report_cells
from rlhf_jax.sweeps.study import Arm
from tests.third_party.conftest import HERE
from tests.third_party.sizes import SIZES

NAMED = {
    "task.name": "my_lab.tasks",
    "task.num_words": 2,
    "algorithm.name": "my_lab.leave_out",
    "algorithm.gain": 2.5,
    "model.family": "my_lab.decoder",
    "model.power": 3,
    "reward": "gold + 0.5*my_lab.rewards:brevity + 2*my_lab.rewards.overlap",
    "reward_settings.brevity.cost": 0.25,
}


def arguments(settings, directory=None, sizes=SIZES):
    """The arguments of a command."""
    given = settings | sizes | ({} if directory is None else {"directory": directory})
    return [
        "--config=configs/quickstart.py",
        *(f"--config.{key}={value}" for key, value in given.items()),
    ]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_of_components_that_are_not_of_the_package(tmp_path):
    directory = tmp_path / "run"
    run.main(["run", *arguments(NAMED, directory)])
    stored = json.loads((directory / "config.json").read_text())
    assert stored["task"] == {"name": "my_lab.tasks", "num_words": 2}
    assert stored["algorithm"] == {"name": "my_lab.leave_out", "gain": 2.5}
    assert (stored["model"]["family"], stored["model"]["power"], stored["model"]["width"]) == (
        "my_lab.decoder",
        3,
        32,
    )
    assert stored["reward_settings"]["brevity"] == {"free_words": 2, "cost": 0.25}
    codes = {"algorithm", "model", "task", "reward.brevity", "reward.overlap"}
    assert {f"code.{key}" for key in codes} <= stored["digests"].keys()
    rows = lines(directory / "ledger.jsonl")
    assert len(rows) == 16
    for row in rows:
        assert row["terms"]["brevity"] == -0.25 * max(0, len(row["text"].split()) - 2)
        assert 0 <= row["terms"]["overlap"] <= 1
    again = build.config_of(directory)
    assert (again.model.power, again.task.num_words, again.algorithm.gain) == (3, 2, 2.5)


def test_a_stage_is_run_by_its_path(tmp_path):
    run.main(["run", *arguments(NAMED | {"job": "my_lab.stages"}, tmp_path / "run")])
    assert (tmp_path / "run" / "prompts.txt").read_text() == "leave_out: 37 + 5 prompts\n"


def test_files_name_the_same_components(tmp_path):
    """A file, and a function of a file, where a module of a path is named above."""
    lab = HERE / "my_lab"
    named = {
        "task.name": lab / "tasks.py:make",
        "algorithm.name": lab / "leave_out.py:leave_out",
        "model.family": lab / "decoder.py",
        "reward": f"{lab / 'rewards.py'}:brevity",
        "job": lab / "stages.py:job",
    }
    more = {
        "task.num_words": 2,
        "algorithm.gain": 2.5,
        "model.power": 3,
        "reward_settings.brevity.cost": 0.25,
    }
    run.main(["run", *arguments(named | more, tmp_path / "run")])
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["model"]["power"] == 3
    assert (tmp_path / "run" / "prompts.txt").exists()
    assert build.model(f"{lab / 'decoder.py'}:make").power == 2


def test_a_plan_is_made_for_them(capsys, tmp_path):
    more = ["--devices=2", "--hardware=h100", f"--output={tmp_path / 'plan.png'}"]
    assert plan.main([*arguments(NAMED), *more]) == 0
    said = capsys.readouterr().out
    assert "run it:" in said
    assert (tmp_path / "plan.png").exists()


def test_a_sweep_of_them_runs_ends_and_is_read_again(tmp_path):
    """Their settings are keys of a cell, those of a reward too."""
    argument = f"{HERE / 'study.py'}:{tmp_path / 'study'}"
    study = load(argument)
    cells = Cells(study)
    run_cells(cells, report_cells(study, cells.ended))
    (usual, strong) = Cells(study).results(report_cells(study, cells.ended))
    assert [len(line["curve"]) for line in (usual, strong)] == [2, 2]
    assert [line["config"]["algorithm.gain"] for line in (usual, strong)] == [1.0, 4.0]
    assert usual["config"]["reward_settings.brevity.cost"] == 0.25
    sweep.main([f"--config={argument}", "--workers=1"])  # nothing is left to run: the page alone
    assert "strong" in (tmp_path / "study" / "report.html").read_text()


def test_another_source_makes_cells_old(tmp_path):
    """An algorithm that is not of the package has no golden numbers: its source stands for them."""
    mine = Path(shutil.copy(HERE / "my_lab" / "leave_out.py", tmp_path / "leave_out.py"))
    study = load(f"{HERE / 'study.py'}:{tmp_path / 'study'}")
    study = dataclasses.replace(study, arms=(Arm("mine", str(mine)), Arm("package", "rloo")))

    def golden():
        cells = Cells(study)
        return [cells.golden(cell) for cell in report_cells(study, cells.ended)]

    before = golden()
    assert golden() == before
    mine.write_text(mine.read_text() + "# a comment\n")
    assert golden() == before
    mine.write_text(mine.read_text().replace("-jnp.sum", "-2 * jnp.sum"))
    assert golden()[0] != before[0]
    assert golden()[1] == before[1]
    with pytest.raises(Refusal, match="no golden step of 'nothing'"):
        provenance.golden_hash("nothing", sources={"code.reward.mine": "0"})


def test_the_keys_of_a_family_are_those_of_its_first_preset():
    config = run.parse(
        ["run", *arguments({"model.family": "my_lab.decoder", "model.width": 48}, sizes={})]
    )
    assert config.model.to_dict() == build.model("my_lab.decoder", "nano").to_dict() | {"width": 48}
    theirs = run.parse(["run", *arguments({"model.family": "llama"}, sizes={})]).model
    assert theirs.to_dict() == build.model("llama", "quickstart").to_dict()
    with pytest.raises(
        Refusal,
        match=r"no preset 'huge' of the model family my_lab\.decoder; there are: nano, micro",
    ):
        build.model("my_lab.decoder", "huge")
