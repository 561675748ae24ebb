"""The study of flat groups: its arms, its tests by hand, and the page."""

import math
from pathlib import Path

import pytest

from experiments.studies.flat_groups import findings
from rlhf_jax.config import flatten
from rlhf_jax.sweeps.cells import Cells, load, run_cells
from rlhf_jax.sweeps.steps import report_cells

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "studies" / "flat_groups.py")
UPDATES = (0, 24, 48, 72, 96)


def line(arm: str, seed: int, gold: float, norm: float, **more):
    """A run that begins at 0.1, learns at once, and whose updates have one norm."""
    curve = [{"update": u, "gold_mean": 0.1 if u == 0 else gold} for u in UPDATES]
    return {
        "arm": arm,
        "seed": seed,
        "curve": curve,
        "num_updates": 96,
        "config": {"rlhf.evaluate_at": UPDATES[1:-1]},
        "measured": {"update_norm": [norm] * 95 + [None], "grad_norm": [2 * norm] * 96},
        "means": {"flat_group_share": 0.5},
        "processor": "invented",
        "commit": "0123456789ab",
        "date": "2026-01-01",
    } | more


def lines(ratio: float, gain: float):
    return [
        line(arm, seed, 0.2 + seed / 1000 + (gain if out else 0.0), (ratio if out else 1.0))
        for out, arm in enumerate(findings.KINDS)
        for seed in range(5)
    ]


def test_arms_differ_in_the_denominator_alone(monkeypatch):
    monkeypatch.chdir(ROOT)
    study = load(CONFIG)
    cells = Cells(study)
    found = {}
    for cell in report_cells(study, lambda cell: None):
        values = flatten(cells.config(cell).to_dict())
        found.setdefault(cell.seed, []).append(
            {key: value for key, value in values.items() if key != "directory"}
        )
    assert sorted(found) == list(range(10))
    for keep, out in found.values():
        assert {key for key in keep if keep[key] != out[key]} == {"algorithm.filter.flat"}
        assert (keep["rlhf.lag"], keep["rlhf.samples_per_prompt"]) == (0, 4)


def test_norms_are_compared_by_their_logarithms():
    steps, learning = findings.primary_hypotheses(lines(1.2, 0.01))
    assert steps.values == pytest.approx({seed: math.log(1.2) for seed in range(5)})
    assert learning.values == pytest.approx(dict.fromkeys(range(5), 0.01))


def noisy(ratio: float, gain: float):
    """The same with a little noise, so that there are intervals."""
    found = lines(ratio, gain)
    for index, each in enumerate(found):
        shift = 0.001 * ((7 * index) % 5 - 2)
        each["measured"]["update_norm"] = [
            x and x * (1 + shift) for x in each["measured"]["update_norm"]
        ]
        each["curve"] = [
            e | {"gold_mean": e["gold_mean"] + (shift if e["update"] else 0)} for e in each["curve"]
        ]
    return found


@pytest.mark.parametrize(
    ("ratio", "gain", "step", "learning"),
    [
        (1.0, 0.0, "supported: within", "supported: within"),
        (1.2, 0.0, "refuted: outside", "supported: within"),
        (1.0, 0.05, "supported: within", "refuted: outside"),
    ],
)
def test_the_page_says_what_the_rule_says(ratio, gain, step, learning):
    pages = findings.pages(noisy(ratio, gain))
    assert set(pages) == {"flat_groups.md", "flat_groups_curves.png"}
    first, second = (
        row for row in str(pages["flat_groups.md"]).splitlines() if row[:4] in ("| 1.", "| 2.")
    )
    assert step in first
    assert learning in second
    assert f"An update is {ratio:.2f}" in str(pages["flat_groups.md"])


def test_a_cell_records_norms_and_the_share_of_flat_groups(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = load(f"{CONFIG}:tiny")
    cells = Cells(study)
    wanted = report_cells(study, lambda cell: None)
    run_cells(cells, wanted)
    results = cells.results(wanted)
    assert [result["arm"] for result in results] == ["keep", "leave_out"]
    for result in results:
        assert len(result["measured"]["update_norm"]) == 6
        assert 0 <= result["means"]["flat_group_share"] <= 1
