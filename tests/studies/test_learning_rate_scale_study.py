"""The study of scaled learning rates: its derived arms, its outcome, and the page."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.studies.learning_rate_scale import findings
from rlhf_jax.sweeps.cells import Cells, load, run_cells
from rlhf_jax.sweeps.steps import report_cells

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "studies" / "learning_rate_scale.py")
EVALUATIONS = (0, 1, 2, 3, 4, 6, 8, 12, 16, *range(20, 129, 4))
RATE = "rlhf.optimizer.learning_rate"


def line(arm: str, seed: int, level: float, factor: float = 1.0, **more):
    """A run whose win-rate is 0.9 until update 32, whatever comes after it."""
    curve = [{"update": u, "win_rate": 0.9 if u <= 32 else level} for u in EVALUATIONS]
    made = {"arm": arm, "seed": seed, "setting": {}, "curve": curve, "num_updates": 128}
    made |= {"processor": "invented", "commit": "0123456789ab", "date": "2026-01-01"}
    made |= {"measured": {"learning_rate_scale": [factor] * 128}}
    return made | {"config": {"rlhf.evaluate_at": EVALUATIONS[1:-1], RATE: 1e-3}} | more


LEVELS = {"plain": 0.5, "sqrt_ess": 0.8, "constant": 0.79, "yoked": 0.6}


def lines(seeds: int = 5) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        line(f"{kind}-lag{lag}-{rate:g}", seed, level + rng.normal(0, 0.005))
        for seed in range(seeds)
        for lag in (8, 16)
        for rate in (1e-3, 2e-3)
        for kind, level in LEVELS.items()
    ]


def test_the_outcome_is_of_the_evaluations_at_full_age():
    assert findings.outcome(line("plain-lag16-0.001", 0, 0.4)) == pytest.approx(0.4)
    # at lag 8 the evaluations of updates 20, 24, 28 and 32, of 0.9, count too
    found = findings.outcome(line("plain-lag8-0.001", 0, 0.4))
    assert found == pytest.approx((4 * 0.9 + 24 * 0.4) / 28)


def test_what_a_diverged_run_did_not_reach_counts_as_none():
    whole = line("plain-lag16-0.001", 0, 0.4)
    cut = [entry for entry in whole["curve"] if entry["update"] <= 80]
    diverged = whole | {"curve": cut, "diverged": "the loss of update 81 is nan"}
    assert findings.outcome(diverged) == pytest.approx(0.4 * 12 / 24)
    assert findings.fallen([diverged]) == 1


def test_the_page_has_each_contrast_with_its_result():
    found = findings.pages(lines())
    text = str(found["learning_rate_scale.md"])
    rows = {row.split("|")[1].strip(): row for row in text.splitlines() if row.startswith("| ")}
    assert "no difference beyond 0.05" in rows["1. √ESS − constant, same mean"]
    assert "| larger" in rows["2. √ESS − factors of another seed"]
    assert "| larger" in rows["3. constant, same mean − not scaled"]
    assert "of 15 of these values" in text
    assert "+0.1" in text.partition("By resampling seeds")[2]
    assert "contrast 3, holds" in text


def test_a_control_that_is_not_shown_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(LEVELS, "plain", LEVELS["constant"] + 0.001)
    text = str(findings.pages(lines())["learning_rate_scale.md"])
    assert "contrast 3, was not shown" in text


def test_controls_are_derived_from_the_scaled_runs():
    """The constant one from its own seed, the factors of the next seed for the yoked one."""
    study = load(CONFIG)

    def ended(cell):
        factor = 0.5 if cell.seed == 1 else 1.0
        return {"measured": {"learning_rate_scale": [factor, factor / 2]}}

    found = {(cell.arm, cell.seed): dict(cell.setting) for cell in report_cells(study, ended)}
    assert len(found) == 128
    assert found["constant-lag8-0.002", 1] == {RATE: pytest.approx(2e-3 * 0.375)}
    assert found["constant-lag8-0.002", 0] == {RATE: pytest.approx(2e-3 * 0.75)}
    key = "rlhf.learning_rate_scale.factors"
    assert found["yoked-lag16-0.004", 0] == {key: (0.5, 0.25)}
    assert found["yoked-lag16-0.004", 7] == {key: (1.0, 0.5)}


def test_a_yoked_run_has_the_factors_of_the_other_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    cells = Cells(replace(load(CONFIG + ":tiny"), directory=tmp_path / "study"))
    for _ in range(2):  # the derived ones are known after the first
        run_cells(cells, report_cells(cells.study, cells.ended))
    reported = cells.results(report_cells(cells.study, cells.ended))
    found = {(entry["arm"].partition("-")[0], entry["seed"]): entry for entry in reported}
    assert len(found) == 8
    factors = {
        key: np.array(entry["measured"]["learning_rate_scale"]) for key, entry in found.items()
    }
    assert (factors["plain", 0] == 1).all()
    scaled = factors["sqrt_ess", 1]
    assert scaled[0] == 1.0
    assert scaled.min() < 1.0
    np.testing.assert_allclose(factors["yoked", 0], scaled, rtol=1e-6)
    assert math.isclose(found["constant", 1]["config"][RATE], 2e-3 * scaled.mean(), rel_tol=1e-9)
