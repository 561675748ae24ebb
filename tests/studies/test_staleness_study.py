"""The study of staleness: times of collapse, the regression of times within bounds, and the page."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.studies import censored
from experiments.studies.staleness import findings
from experiments.studies.staleness.passage import RATE, landmarks, passage, slopes
from rlhf_jax.sweeps.cells import Cells, load, run_cells
from rlhf_jax.sweeps.measures import staleness
from rlhf_jax.sweeps.steps import report_cells

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "studies" / "staleness.py")
EVALUATIONS = (0, 1, 2, 3, 4, 6, 8, 12, 16, *range(20, 129, 4))
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)


def line(arm: str, collapse: float, seed: int = 0, rate: float = 1e-3, **more):
    """A run whose win-rate rises, and from update `collapse` on is 0.45 lower."""
    values = [0.5 + 0.003 * update - 0.45 * (update >= collapse) for update in EVALUATIONS]
    curve = [
        {"update": update, "win_rate": value}
        for update, value in zip(EVALUATIONS, values, strict=True)
    ]
    series = [0.9 if round_index < collapse - 10 else 0.4 for round_index in range(128)]
    measured = {"ess_share_row": series, "ess_share_token": [0.99] * 128, "kl": [0.01] * 128}
    measured |= {name: [1.0] * 128 for name in ("row_log_ratio", "grad_norm", "update_norm")}
    made = {"arm": arm, "seed": seed, "setting": {RATE: rate}, "curve": curve, "num_updates": 128}
    made |= {"processor": "invented", "commit": "0123456789ab", "date": "2026-01-01"}
    made |= {"measured": measured, "config": {"rlhf.evaluate_at": EVALUATIONS[1:-1]}}
    return made | more


def collapse_of(oldest: int, rate: float, rng: np.random.Generator, power: float) -> float:
    """The update at which the sum of ages over S reaches 0.43 / (S^power η), with noise."""
    full = 0.43 / (oldest**power * rate) * math.exp(rng.normal(0, 0.15))
    return full + oldest / 2 if full > oldest / 2 else math.sqrt(2 * oldest * full)


def runs(power: float = 1.0, seeds: int = 3, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [
        line(f"lag{oldest}", collapse_of(oldest, rate, rng, power), number, rate)
        for number in range(seeds)
        for oldest in (1, 2, 4, 8, 16)
        for rate in RATES
    ]


def test_a_time_of_collapse_lies_between_two_evaluations():
    found = passage(line("lag4", 50.0))
    assert (found.low, found.high, found.oldest, found.cyclic) == (48.0, 52.0, 4, False)
    assert found.bounds == (46.0, 50.0)
    never = passage(line("lag4", math.inf))
    assert (never.low, never.high, never.happened) == (128.0, math.inf, False)
    early = passage(line("lag8", 14.0))
    assert early.too_early
    assert early.bounds == (0.0, 12.0)
    renewed = passage(line("sync5", 50.0))
    assert (renewed.cyclic, renewed.oldest, renewed.bounds) == (True, 4, (48.0, 52.0))


def test_a_fall_counts_from_the_largest_value_and_not_from_the_first():
    slow = line("lag1", math.inf)
    slow["curve"] = [{"update": u, "win_rate": 0.8 - 0.002 * u} for u in EVALUATIONS]
    assert passage(slow).high == 104.0  # 0.8 - 0.208 is the first value below 0.6
    slow["curve"] = [{"update": u, "win_rate": 0.8 - 0.0014 * u} for u in EVALUATIONS]
    assert not passage(slow).happened


def test_a_run_that_diverged_collapsed_before_its_next_evaluation():
    ended = line("lag4", math.inf, diverged="the loss of update 41 is nan")
    ended["curve"] = [entry for entry in ended["curve"] if entry["update"] <= 40]
    assert (passage(ended).low, passage(ended).high) == (40.0, 44.0)


@pytest.mark.parametrize("power", [1.0, 0.4])
def test_the_exponent_of_age_is_found(power):
    found = slopes([passage(run) for run in runs(power)])
    assert found["age"] == pytest.approx(power, abs=0.12)
    assert found["rate"] == pytest.approx(1.0, abs=0.12)


def test_a_cycle_is_as_old_as_what_collapses_at_the_same_time():
    """A sampler renewed every five rounds that collapses like lag 2 has half of its largest age."""
    rng = np.random.default_rng(1)
    cycles = [
        line("sync5", 0.43 / (2 * rate) * math.exp(rng.normal(0, 0.1)), number, rate)
        for number in range(3)
        for rate in RATES
    ]
    found = slopes([passage(run) for run in (*runs(), *cycles)])
    assert found["cycle"] == pytest.approx(-math.log(2), abs=0.15)


def test_times_without_a_bound_are_not_left_out():
    """Those above 100 are known to be above it; without them the rest seem shorter."""
    log_N = np.random.default_rng(0).normal(math.log(90), 0.5, 400)
    time_N = np.exp(log_N)
    low_N = np.where(time_N > 100, 100, np.floor(time_N))
    high_N = np.where(time_N > 100, np.inf, np.floor(time_N) + 1)
    (middle,) = censored.fit(low_N, high_N, np.ones((400, 1)))
    assert middle == pytest.approx(math.log(90), abs=0.06)
    (shorter,) = censored.fit(
        low_N[time_N <= 100], high_N[time_N <= 100], np.ones(((time_N <= 100).sum(), 1))
    )
    assert shorter < math.log(80)


def test_regression_refuses_what_has_no_answer():
    with pytest.raises(ValueError, match="holds no time"):
        censored.fit(np.array([2.0]), np.array([2.0]), np.ones((1, 1)))
    with pytest.raises(ValueError, match="no time has two bounds"):
        censored.fit(np.array([2.0, 0.0]), np.array([np.inf, 3.0]), np.ones((2, 1)))


def test_pseudo_values_of_a_mean_are_the_values():
    values = {0: 1.0, 1: 4.0, 2: 2.5}
    found = censored.pseudo_values(values, lambda seeds: float(np.mean([values[s] for s in seeds])))
    assert found == pytest.approx(values)


def test_area_counts_pairs():
    assert censored.area([True, False, True, False], [3.0, 1.0, 1.0, 2.0]) == (1 + 1 + 0.5 + 0) / 4
    assert math.isnan(censored.area([True, True], [1.0, 2.0]))


def test_a_prediction_is_made_before_the_collapse_and_after_the_first_old_rounds():
    pairs = landmarks(line("lag4", 50.0))
    assert [event for event, _ in pairs] == [False] * 8 + [True] * 2  # at 12, ..., 40 and at 44, 48
    values = [found["row ESS"] for _, found in pairs]
    assert values == [-0.9] * 8 + [-0.4] * 2


def test_the_page_says_what_the_runs_say():
    rng = np.random.default_rng(2)
    cycles = [
        line(f"sync{oldest + 1}", 0.43 / (oldest * rate) * math.exp(rng.normal(0, 0.1)), n, rate)
        for n in range(3)
        for oldest in (4, 8)
        for rate in RATES
    ]
    found = findings.pages([*runs(), *cycles])
    text = str(found["staleness.md"])
    assert "supported: within 0.75 to 1.25" in text
    assert "supported: the largest age counts" in text
    assert (
        "supported: more than 0.05" in text
    )  # the invented ESS falls ten rounds before each collapse
    assert "| lag 16 | 0.004 | ≤ 32" in text
    figure = found["staleness_times.png"]
    assert isinstance(figure, Figure)
    marks = [mark for ax in figure.axes for mark in ax.lines if mark.get_marker() != "None"]
    assert len(marks) == len(runs()) + len(cycles)  # every run has one, collapsed or not
    every = [passage(run) for run in (*runs(), *cycles)]
    assert sum(mark.get_marker() == "^" for mark in marks) == sum(not it.happened for it in every)
    assert sum(mark.get_marker() == "v" for mark in marks) == sum(it.too_early for it in every)


def test_a_slope_that_excludes_one_is_refuted_and_a_wide_one_is_undecided():
    assert findings.slope_result({0: 0.4, 1: 0.5, 2: 0.45}, 1.0).startswith("refuted")
    assert findings.slope_result({0: 0.95, 1: 1.05, 2: 1.02}, 0.01).startswith("supported")
    assert findings.slope_result({0: 0.95, 1: 1.05, 2: 1.02}, 0.2).startswith("undecided")
    assert findings.slope_result({0: 0.4, 1: 1.6, 2: 1.0}, 0.01).startswith("undecided")


def test_a_round_is_measured_by_whole_rows(monkeypatch):
    drawn_BC = np.array([[-1.0, -2.0], [-0.5, -0.7]], np.float32)
    trained_BC = drawn_BC + np.array([[0.1, 0.2], [-0.3, 5.0]], np.float32)
    mask_BC = np.array([[True, True], [True, False]])
    monkeypatch.setattr(
        staleness.scoring, "sample_logprobs", lambda params, samples, model: trained_BC
    )
    samples = SimpleNamespace(behavior_logprob_BC=drawn_BC, mask_BC=mask_BC)
    found = staleness.round_figures({}, samples, model=None)
    w = np.exp([0.3, -0.3])
    assert found["row_log_ratio"] == pytest.approx(0.3, abs=1e-6)
    assert found["ess_share_row"] == pytest.approx(w.sum() ** 2 / (2 * (w**2).sum()), abs=1e-6)
    w = np.exp([0.1, 0.2, -0.3])
    assert found["ess_share_token"] == pytest.approx(w.sum() ** 2 / (3 * (w**2).sum()), abs=1e-6)
    log = np.array([0.1, 0.2, -0.3])
    assert found["kl"] == pytest.approx((np.exp(log) - 1 - log).mean(), abs=1e-6)


def test_a_cell_records_every_round(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = load(CONFIG + ":tiny")
    arms = tuple(arm for arm in study.arms if arm.name in ("lag1", "sync5"))
    cells = Cells(replace(study, directory=tmp_path / "study", arms=arms))
    run_cells(cells, report_cells(cells.study, cells.ended))
    lag, sync = cells.results(report_cells(cells.study, cells.ended))
    assert (lag["ages"]["max"], sync["ages"]["max"]) == (1, 2)
    for ended in (lag, sync):
        measured = ended["measured"]
        assert {len(values) for values in measured.values()} == {3}
        assert measured["ess_share_row"][0] == 1.0
        assert measured["kl"][0] < 1e-9
        assert measured["ess_share_row"][1] < 1.0
    # the third round: one update old at lag 1, two where the sampler is not renewed
    assert sync["measured"]["kl"][2] > lag["measured"]["kl"][2]
