"""The studies of in-flight updates: their cells, the measure on real rounds, and pages from invented
results whose tests are known.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.studies.hypotheses import Hypothesis, hypotheses_table, is_collapsed
from experiments.studies.inflight_age import findings as age_findings
from experiments.studies.keep_or_rebuild import findings
from rlhf_jax.refusal import Refusal
from rlhf_jax.sweeps.cells import Cells, load, run_cells
from rlhf_jax.sweeps.measures import token_versions
from rlhf_jax.sweeps.steps import report_cells

ROOT = Path(__file__).parent.parent.parent
KEEP, AGE = (f"configs/studies/{name}.py" for name in ("keep_or_rebuild", "inflight_age"))


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_swaps_are_counted_along_a_row_and_not_past_its_end():
    version_BC = np.array([[3, 3, 4, 4, 6, 0], [5, 5, 0, 0, 0, 0]])
    mask_BC = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]], bool)
    assert token_versions.swaps_of(version_BC, mask_BC).tolist() == [
        [0, 0, 1, 1, 2, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def test_a_summary_has_the_divergence_of_its_samples():
    """Gaps of log 2 and −log 2: k3 is the mean of 1/2 − 1 + log 2 and 2 − 1 − log 2, 1/4."""
    figures = token_versions.summary(np.array([math.log(2), -math.log(2)]))
    assert figures == pytest.approx(
        {"tokens": 2, "mean": math.log(2), "p95": math.log(2), "max": math.log(2), "kl": 0.25}
    )
    assert token_versions.summary(np.zeros(0)) == {"tokens": 0}


def test_a_matched_schedule_has_the_ages_in_sum():
    ages = [0.0, 0.6, 1.6, 1.6, 1.6, 2.4]
    schedule = token_versions.matched_schedule(ages)
    rounded = [r - version for r, version in enumerate(schedule)]
    assert np.abs(np.cumsum(rounded) - np.cumsum(ages)).max() <= 0.5
    assert all(0 <= version <= r for r, version in enumerate(schedule))


def test_the_protocols_are_crossed_and_a_matched_cell_waits_for_its_run():
    study = load(KEEP)
    cells = report_cells(study, lambda cell: None)
    assert len(cells) == 10 * len(study.report_seeds)
    study = load(AGE)
    cells = report_cells(study, lambda cell: None)
    assert {cell.arm for cell in cells} == {"inflight", "lag0", "lag1", "lag2"}

    def ended(cell):
        ages = [0.0, 1.0] + [1.5] * 46
        return {"measured": {"rounds": {"age": ages}}} if cell.arm == "inflight" else None

    cells = report_cells(study, ended)
    assert len(cells) == 5 * len(study.report_seeds)
    (matched, *_) = [cell for cell in cells if cell.arm == "matched"]
    assert len(dict(matched.setting)["rlhf.version_schedule"]) == 48
    assert "48values" in matched.name
    for config in (KEEP, AGE):
        with pytest.raises(Refusal, match="accepted: pilot, tiny, or none"):
            load(config + ":huge")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Lines of both studies' cells in the smallest sizes: kept and rebuilt at the raised rate, the
    in-flight run and its matched schedule.
    """
    directory = tmp_path_factory.mktemp("studies")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        lines = {}
        for config, wanted in ((KEEP, "lag1_quarter_"), (AGE, ("inflight", "matched"))):
            study = load(config + ":tiny")
            arms = tuple(
                replace(arm, overrides={**arm.overrides, "rlhf.optimizer.learning_rate": 0.02})
                for arm in study.arms
                if arm.name.startswith(wanted) and not arm.name.endswith("_fast")
            )

            def base(of=study.base):
                found = of()
                # every completion has a score of its own, so that the weights do change
                found.reward = "tests.studies.invented:ones"
                return found

            name = study.directory.name
            cells = Cells(replace(study, directory=directory / name, arms=arms, base=base))
            for _ in range(2):
                run_cells(cells, report_cells(cells.study, cells.ended))
            found = cells.results(report_cells(cells.study, cells.ended))
            lines |= {line["arm"]: line for line in found}
    return lines


def test_a_rebuilt_cache_has_no_gap_and_a_kept_one_has(ended):
    gaps = {arm: line["measured"]["gap"] for arm, line in ended.items()}
    kept, rebuilt = gaps["lag1_quarter_keep"], gaps["lag1_quarter_rebuild"]
    for line in ended.values():
        assert line["measured"]["gap"]["0"]["max"] < 1e-4
    assert rebuilt["any"]["tokens"] > 20
    assert rebuilt["any"]["max"] < 1e-4
    assert kept["any"]["mean"] > 100 * rebuilt["any"]["mean"]
    assert kept["any"]["mean"] > 1e-4
    drift = ended["lag1_quarter_rebuild"]["measured"]["drift"]
    assert drift["0"]["max"] == 0.0
    assert drift["any"]["mean"] > 1e-3


def test_a_matched_run_is_as_old_as_the_tokens_in_flight(ended):
    inflight, matched = (ended[arm]["measured"]["rounds"] for arm in ("inflight", "matched"))
    assert max(inflight["mixed_share"]) > 0.3
    assert max(matched["mixed_share"]) == 0.0
    assert abs(sum(inflight["age"]) - sum(matched["age"])) <= 0.5
    schedule = ended["matched"]["config"]["rlhf.version_schedule"]
    assert [r - age for r, age in enumerate(matched["age"])] == list(schedule)


def invented(arm, seed, accuracy, gap=0.004):
    """A line whose gaps grow with swaps."""
    gaps = {str(n): {"mean": gap * n, "p95": gap * n, "max": gap * n, "kl": gap} for n in range(4)}
    gaps["any"] = {"mean": gap, "p95": 3 * gap, "max": 3 * gap, "kl": gap}
    rounds = {"mixed_share": [0.4, 0.5], "length": [20.0, 22.0], "age": [0.0, 1.0], "gap": [0, gap]}
    curve = [{"update": 0, "gold_mean": 0.3}, {"update": 48, "gold_mean": accuracy}]
    line = {"arm": arm, "seed": seed, "curve": curve, "ages": {"mean": 1.0, "max": 2.0}}
    line |= {"measured": {"gap": gaps, "drift": gaps, "rounds": rounds}}
    line |= {"processor": "invented", "commit": "0123456789ab", "date": "2026-01-01"}
    return line | {"purpose": "report", "setting": {}, "num_updates": 48}


def test_the_page_says_what_the_primary_hypotheses_show():
    lines = []
    for seed in range(5):
        noise = 0.004 * (seed - 2)
        for arm in load(KEEP).arms:
            lift = noise if "keep" in arm.name else 0.0
            gap = 0.004 * (4 if "fast" in arm.name else 1) * (1 + 0.1 * seed)
            lines.append(invented(arm.name, seed, 0.5 + lift, gap if "keep" in arm.name else 1e-7))
    pages = findings.pages(lines)
    page = pages["keep_or_rebuild.md"]
    assert set(pages) == {
        "keep_or_rebuild.md",
        "keep_or_rebuild_gaps.png",
        "keep_or_rebuild_curves.png",
    }
    assert "supported: below 0.02" in page
    assert page.count("supported: larger than 0") == 2
    assert "supported: within ±0.03" in page
    assert "50 cells, seeds 0 to 4" in page
    assert "where the protocol asks for" not in page
    far = [
        line | {"curve": [*line["curve"][:1], {"update": 48, "gold_mean": 0.4}]}
        for line in lines
        if line["arm"].endswith("rebuild")
    ]
    others = [line for line in lines if not line["arm"].endswith("rebuild")]
    assert "refuted: outside of 0.03" in findings.pages(others + far)["keep_or_rebuild.md"]


def test_few_mixed_rows_are_told_and_a_gap_of_a_rebuilt_cache_is_refused():
    line = invented("lag1_quarter_keep", 0, 0.5)
    rounds = line["measured"]["rounds"] | {"mixed_share": [0.2, 0.5]}
    few = line | {"measured": line["measured"] | {"rounds": rounds}}
    assert findings.few_mixed([line]) == ""
    assert "Only 0.20 of the rows are mixed" in findings.few_mixed([few])
    findings.check_measure([line])
    with pytest.raises(Refusal, match=r"lag1_quarter_rebuild, seed 0: a gap of 0\.012 nats"):
        findings.check_measure([line | {"arm": "lag1_quarter_rebuild"}])


def test_the_page_of_ages_compares_with_three_arms():
    lines = [
        invented(
            arm.name, seed, 0.5 + 0.1 * (arm.name == "lag2") + 0.01 * seed * (arm.name == "lag1")
        )
        for seed in range(5)
        for arm in load(AGE).arms
    ]
    page = age_findings.pages(lines)["inflight_age.md"]
    assert page.count("supported: within ±0.03") == 1
    assert page.count("undecided") == 1
    assert page.count("refuted: outside of 0.03") == 1


def test_results_of_tests_are_adjusted_by_holm_and_collapses_are_counted():
    near = Hypothesis("near", dict(enumerate([0.0, 0.001, -0.001])), "equivalent", "x", 0.03)
    weak = Hypothesis("weak", dict(enumerate([0.01, 0.05, 0.03])), "different", "x")
    table = hypotheses_table([near, weak])
    assert "supported: within ±0.03" in table
    assert weak.p > 0.05
    assert "would have been found" in table
    line = invented("a", 0, 0.5)
    assert not is_collapsed(line)
    fallen = line | {"curve": [{"gold_mean": 0.5}, {"gold_mean": 0.61}, {"gold_mean": 0.5}]}
    assert is_collapsed(fallen)
    assert is_collapsed(line | {"diverged": "the loss of update 3 is nan"})
