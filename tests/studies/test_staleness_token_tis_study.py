"""The study of staleness with truncated importance weights: pairs of configs, tests by hand, and the
page.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.studies.staleness.passage import RATE
from experiments.studies.staleness_token_tis import findings
from rlhf_jax.config import flatten
from rlhf_jax.sweeps.cells import Cells, load, run_cells
from rlhf_jax.sweeps.steps import report_cells
from tests.studies.test_staleness_study import line, runs

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "studies" / "staleness.py")
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)


def corrected(factor: float, seeds: int = 3) -> list[dict]:
    """Runs that collapse `factor` times as late as those of `runs`, with other noise."""
    rng = np.random.default_rng(7)
    return [
        line(
            f"lag{oldest}",
            factor * 0.43 / (oldest * rate) * math.exp(rng.normal(0, 0.15)) + oldest / 2,
            seed,
            rate,
        )
        for seed in range(seeds)
        for oldest in (1, 2, 4, 8, 16)
        for rate in RATES
    ]


def configs(argument: str) -> dict[tuple, dict]:
    study = load(CONFIG + argument)
    cells = Cells(study)
    return {
        (cell.arm, dict(cell.setting)[RATE], cell.seed): flatten(cells.config(cell).to_dict())
        for cell in report_cells(study, lambda cell: None)
    }


def test_two_paired_cells_differ_in_the_weight_alone(monkeypatch):
    monkeypatch.chdir(ROOT)
    plain, weighted = configs(""), configs(":token_tis")
    assert len(weighted) == 5 * 5 * 8
    assert set(weighted) < set(plain)
    apart = {
        key
        for cell, config in weighted.items()
        for key in config
        if config[key] != plain[cell].get(key)
    }
    # with one update a round the ratio to the policy at the start of the round is 1: a surrogate of it
    # has the gradient of log π, and no clip acts
    apart = {key for key in apart if not key.startswith("algorithm.surrogate.")}
    assert apart - {"directory"} == {
        "algorithm.correction.correction",
        "algorithm.correction.ratio_to",
        "algorithm.name",
    }
    one = weighted["lag4", 1e-3, 0]
    assert one["algorithm.correction.correction"] == "truncate"
    assert one["algorithm.correction.cap"] == 2.0
    assert one["rlhf.num_minibatches"] * one["rlhf.num_epochs"] == 1


def test_shares_and_win_rates_are_paired_by_seed():
    plain, weighted = runs(), corrected(4.0)
    share, rate = findings.contrasts(weighted, findings.beside(weighted, plain))

    def collapsed(some, seed):
        return sum(math.isfinite(findings.passage(x).high) for x in some if x["seed"] == seed) / 25

    by_hand = {seed: collapsed(weighted, seed) - collapsed(plain, seed) for seed in range(3)}
    assert share.values == pytest.approx(by_hand)
    assert all(value < 0 for value in share.values.values())
    assert all(value > 0 for value in rate.values.values())


def test_a_run_without_its_twin_is_an_error():
    with pytest.raises(KeyError):
        findings.beside(corrected(1.0), [run for run in runs() if run["seed"]])


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_the_factor_of_the_correction_is_found(factor):
    weighted = corrected(factor)
    found = findings.log_factor(weighted, findings.beside(weighted, runs()))
    assert found == pytest.approx(math.log(factor), abs=0.15)


def test_the_page_says_what_the_runs_say():
    text = str(findings.pages(corrected(2.0), runs())["staleness_token_tis.md"])
    rows = {row[:4]: row for row in text.splitlines() if row[:3] in ("| 1", "| 2", "| 3")}
    assert "smaller" in rows["| 1."]
    assert "larger" in rows["| 2."]
    assert "supported: within 0.75 to 1.25" in rows["| 3."]
    (factor,) = re.findall(r"lasts (\d\.\d\d) times as long", text)
    assert float(factor) == pytest.approx(2.0, abs=0.25)
    assert text.count("on invented)") == 2  # where both arms were run


def test_a_slope_of_a_few_collapses_is_not_tested():
    text = str(findings.pages(corrected(50.0), runs())["staleness_token_tis.md"])
    (row,) = (row for row in text.splitlines() if row.startswith("| 3."))
    assert "not tested" in row
    assert "| 1.000 |" in row
    never = findings.pages([line(x["arm"], math.inf, x["seed"], x["setting"][RATE]) for x in runs()], runs())  # fmt: skip
    assert "its time has no estimate" in str(never["staleness_token_tis.md"])


def test_a_cell_of_the_corrected_arm_is_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = load(f"{CONFIG}:token_tis_tiny")
    cells = Cells(study)
    wanted = [cell for cell in report_cells(study, lambda cell: None) if cell.arm == "lag1"]
    run_cells(cells, wanted)
    (result,) = cells.results(wanted)
    assert result["algorithm"] == "token_tis"
    assert len(result["measured"]["ess_share_row"]) == 3
