"""The study of corrections: its arms, its outcome, and the page."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.studies.corrections import findings
from rlhf_jax.sweeps.cells import Cells, load, run_cells
from rlhf_jax.sweeps.steps import report_cells

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "studies" / "corrections.py")
EVALUATIONS = (0, *range(8, 65, 8))
COEFFICIENT = ("algorithm.surrogate.", "algorithm.correction.", "algorithm.filter.")


def line(arm: str, seed: int, level: float, **more):
    """A run whose win-rate is 0.1 until update 8, whatever comes after it."""
    curve = [{"update": u, "win_rate": 0.1 if u <= 8 else level} for u in EVALUATIONS]
    made = {"arm": arm, "seed": seed, "setting": {}, "curve": curve, "num_updates": 64}
    made |= {"processor": "invented", "commit": "0123456789ab", "date": "2026-01-01"}
    made |= {"measured": {"ess_share_row": [0.5] * 64}}
    config = {"rlhf.evaluate_at": EVALUATIONS[1:-1], findings.RATE: 1e-3}
    return made | {"config": config} | more


def level(correction: str, clock: str) -> float:
    """Truncated weights win under a constant lag and lose where the sampler is renewed late; a clip
    is no better than nothing.
    """
    ahead = {"lag3": 0.1, "sync4": 0.1, "sync4lag4": -0.1}[clock]
    return 0.6 + (ahead if correction == "token_tis" else 0.0)


def lines(seeds: int = 5) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        line(arm.name, seed, level(*findings.parts(arm.name)[:2]) + rng.normal(0, 0.004))
        for seed in range(seeds)
        for arm in load(CONFIG).arms
    ]


def test_the_outcome_is_of_the_evaluations_from_the_sixteenth_update_on():
    assert findings.outcome(line("none-lag3-gold", 0, 0.7)) == pytest.approx(0.7)


def test_what_a_diverged_run_did_not_reach_counts_as_none():
    whole = line("none-lag3-gold", 0, 0.8)
    cut = [entry for entry in whole["curve"] if entry["update"] <= 40]
    diverged = whole | {"curve": cut, "diverged": "the loss of update 41 is nan"}
    assert findings.outcome(diverged) == pytest.approx(0.8 * 4 / 7)
    assert findings.collapsed(diverged)
    assert not findings.collapsed(whole)


def test_the_page_has_each_contrast_with_its_result():
    found = findings.pages(lines())
    text = str(found["corrections.md"])
    primary = text.partition("## With a learned reward")[0]
    rows = {row.split("|")[1].strip(): row for row in primary.splitlines() if row.startswith("| ")}
    name = "(truncated weight − clip), renewed every 4"
    assert "no difference beyond 0.05" in rows[f"1. {name} − lag 3"]
    assert "−0.20" in rows[f"2. {name}, 4 late − lag 3"]
    assert "| smaller" in rows[f"2. {name}, 4 late − lag 3"]
    assert "+0.03" in rows["3. truncated weight, 2 − none, mean of the clocks"]
    assert "no difference beyond 0.05" in rows["4. clip − none, mean of the clocks"]
    assert "of 20 of these values" in primary


def test_arms_differ_in_the_coefficient_alone():
    """All but `asymre`, whose baseline is shifted; and those of a clock in the clock alone."""
    study = load(CONFIG)
    cells = Cells(study)
    found = {
        cell.arm: cells._values(cell) for cell in report_cells(study, cells.ended) if not cell.seed
    }
    assert len(found) == 30
    plain = found["none-lag3-gold"]
    for arm, values in found.items():
        correction, clock, reward = findings.parts(arm)
        differs = {key for key in plain if values[key] != plain[key]} - {"algorithm.name"}
        differs = {key for key in differs if not key.startswith(COEFFICIENT)}
        expected = {"lag3": set(), "sync4": {"rlhf.lag", "rlhf.sync_every"}}
        expected["sync4lag4"] = expected["sync4"]
        more = {"reward"} if reward == "learned" else set()
        more |= {"algorithm.advantage.shift"} if correction == "asymre" else set()
        assert differs == expected[clock] | more, arm
    of_lag3 = [str(found[f"{name}-lag3-gold"]) for name in findings.NAMES]
    assert len(set(of_lag3)) == len(findings.NAMES)


def test_ages_are_those_of_the_protocol():
    """0 to 3 under the first two clocks, 4 to 7 under the third, once they are whole."""
    study = load(CONFIG)
    cells = Cells(study)
    of = {cell.arm: cell for cell in report_cells(study, cells.ended) if not cell.seed}
    from rlhf_jax.clock import Clock

    ages = {}
    for clock in findings.CLOCKS:
        values = cells._values(of[f"none-{clock}-gold"])
        made = Clock(64, 1, 1, values["rlhf.lag"], sync_every=values["rlhf.sync_every"])
        ages[clock] = {made.age(r, 0) for r in range(16, 64)}
    assert ages == {"lag3": {3}, "sync4": {0, 1, 2, 3}, "sync4lag4": {4, 5, 6, 7}}


def test_a_learned_reward_is_trained_for_its_arms_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = load(CONFIG + ":tiny")
    arms = tuple(arm for arm in study.arms if arm.name.startswith("clip-sync4-"))
    cells = Cells(replace(study, directory=tmp_path / "study", arms=arms))
    run_cells(cells, report_cells(cells.study, cells.ended))
    reported = cells.results(report_cells(cells.study, cells.ended))
    found = {entry["arm"]: entry for entry in reported}
    assert set(found) == {"clip-sync4-gold", "clip-sync4-learned"}
    assert "reward_model" not in found["clip-sync4-gold"]
    assert 0 <= found["clip-sync4-learned"]["reward_model"]["heldout_accuracy"] <= 1
    assert all(len(entry["measured"]["ess_share_row"]) == 12 for entry in reported)
