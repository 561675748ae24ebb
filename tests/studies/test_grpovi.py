"""The protocol of GRPOVI, and its page from invented results whose contrasts are known."""

from pathlib import Path

import pytest

from experiments.studies.grpovi import findings
from rlhf_jax import build
from rlhf_jax.sweeps import cells as cell_runs
from rlhf_jax.sweeps.cells import Cells
from rlhf_jax.sweeps.steps import report_cells

CONFIG = "configs/studies/grpovi.py"
ROOT = Path(__file__).parent.parent.parent
LIFT = {
    "grpovi_standardized": 0.5,
    "matched_std": 0.52,
}  # of gold over GRPO, whose runs differ by seed and setting


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def cells():
    study = cell_runs.load(str(ROOT / CONFIG))
    return report_cells(study, Cells(study).ended)


def invented(cell, lift=None):
    """A result whose gold rises linearly to 3 and more; of one setting it never reaches 2."""
    rate, weight = dict(cell.setting).values()
    end = 3.0 + 0.1 * cell.seed - weight + (LIFT if lift is None else lift).get(cell.arm, 0.0)
    end = 1.5 if (rate, weight, cell.arm) == (1e-3, 0.64, "grpo_standardized") else end
    curve = [
        {"update": update, "gold_mean": end * update / 32, "kl": 100 * rate * update / 32}
        for update in (0, 1, 8, 32)
    ]
    return {
        "arm": cell.arm,
        "seed": cell.seed,
        "setting": dict(cell.setting),
        "curve": curve,
        "processor": "invented",
        "commit": "0123456789ab",
        "date": "2026-01-01",
        "purpose": "report",
    }


def test_the_protocol_is_a_full_grid_of_five_arms_and_eight_described_ones(cells):
    assert len(cells) == 5 * 12 * 5 + 8 * 5
    of_seed = {
        seed: sorted((cell.arm, cell.setting) for cell in cells if cell.seed == seed)
        for seed in range(5)
    }
    assert all(these == of_seed[0] for these in of_seed.values())
    assert {cell.arm for cell in cells} == {*findings.PRIMARY, *findings.CONTROLS}


def test_every_arm_names_its_correction_and_is_an_algorithm(cells):
    study = cell_runs.load(CONFIG)
    for arm in {cell.arm: cell for cell in cells}.values():
        values = Cells(study).config(arm).to_dict()
        correction = values["algorithm"]["correction"]
        assert (correction["ratio_to"], correction["correction"]) == ("behavior", "none"), arm.arm
        build.algorithm(values["algorithm"])
        assert values["rlhf"]["evaluate_at"] == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def test_contrasts_are_means_over_settings_paired_by_seed(cells):
    """GRPOVI with the division: 0.5 above GRPO in 11 settings; in one GRPO ends at 1.5 and GRPOVI
    at 2.86 + 0.1 s.
    """
    lines = [invented(cell) for cell in cells]
    first, second, third, fourth = findings.primary_contrasts(lines)
    assert first.values == pytest.approx(
        {seed: (11 * 0.5 + 1.36 + 0.1 * seed) / 12 for seed in range(5)}
    )
    assert second.values == pytest.approx(dict.fromkeys(range(5), 0.0))
    assert third.values == pytest.approx(dict.fromkeys(range(5), -0.02))
    assert all(value < 0 for value in fourth.values.values())


def test_a_cell_that_never_gets_there_counts_and_is_counted(cells):
    lines = [invented(cell) for cell in cells]
    never = [line for line in lines if findings.speed(line) == findings.NEVER]
    assert len(never) == 5
    assert "(5 cells of 300)" in findings.pages(lines)["grpovi.md"]


def test_the_page_says_what_was_found(cells):
    lines = [invented(cell) for cell in cells]
    for place, line in enumerate(lines):  # noise, without which every difference is certain
        line["curve"][-1]["gold_mean"] += 0.05 * ((place * 37) % 11 - 5)
    pages = findings.pages(lines)
    rows = [
        line
        for line in pages["grpovi.md"].splitlines()
        if line.startswith(("| 1.", "| 2.", "| 3.", "| 4."))
    ]
    results = [row.split(" | ")[-1].removesuffix(" |") for row in rows]
    assert results == [
        "larger",
        "no difference beyond 0.25 points",
        "no difference beyond 0.25 points",
        "smaller",
    ]
    assert "340 cells, seeds 0 to 4" in pages["grpovi.md"]
    assert {name for name in pages if name.endswith(".png")} == {
        "grpovi_frontier.png",
        "grpovi_updates.png",
    }
