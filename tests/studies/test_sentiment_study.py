"""The cells of the study of sentiment."""

from pathlib import Path

import pytest

from rlhf_jax.sweeps.cells import Cells, load
from rlhf_jax.sweeps.study import report_cells

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "studies" / "sentiment.py")


@pytest.mark.parametrize(("argument", "count"), [("", 30), (":pilot", 6)])
def test_cells_have_the_recipe_s_losses_at_every_lag(argument, count, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = load(CONFIG + argument)
    cells = Cells(study)
    reported = report_cells(study, lambda cell: None)
    assert len(reported) == count
    for cell in reported:
        config = cells.config(cell)
        algorithm, lag = cell.arm.split("-lag")
        assert config.rlhf.lag == int(lag)
        assert config.rlhf.total_prompts == 64 * 8
        assert config.lora.rank == 16
        if algorithm == "rloo":
            assert config.algorithm.correction.ratio_to == "proximal"
            assert config.algorithm.correction.correction == "truncate"
        else:
            assert config.algorithm.beta == 0.1
    if argument:
        rates = {dict(cell.setting)["rlhf.optimizer.learning_rate"] for cell in reported}
        assert len(rates) == 3
        assert {cell.seed for cell in reported} == {100}
