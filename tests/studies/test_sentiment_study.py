"""The cells of the study of sentiment."""

from pathlib import Path

import pytest

from experiments.studies.sentiment import findings
from experiments.studies.sentiment_grpovi import findings as of_grpovi
from rlhf_jax.sweeps.cells import Cells, load
from rlhf_jax.sweeps.steps import report_cells

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


@pytest.mark.parametrize(("argument", "arms"), [("", {"grpo", "grpovi"}), (":pilot", {"grpo"})])
def test_grpovi_and_grpo_differ_in_the_adjustment_alone(argument, arms, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = load(CONFIG.replace("sentiment.py", "sentiment_grpovi.py") + argument)
    cells = Cells(study)
    reported = report_cells(study, lambda cell: None)
    assert {cell.arm for cell in reported} == arms
    found = {}
    for cell in reported:
        config = cells.config(cell)
        assert (config.rlhf.lag, config.rlhf.samples_per_prompt) == (0, 8)
        assert config.rlhf.total_prompts == 48 * 4
        found.setdefault(cell.seed, []).append(config.to_dict())
    if not argument:
        assert sorted(found) == [0, 1, 2, 3, 4]
        for grpo, grpovi in found.values():
            own = grpovi["algorithm"] | {"name": "grpo"}
            assert {key for key in own if own[key] != grpo["algorithm"].get(key)} == {
                "low",
                "high",
                "weights",
                "ties",
            }
            assert grpo | {"algorithm": 0, "directory": 0} == grpovi | {
                "algorithm": 0,
                "directory": 0,
            }


UPDATES = (0, 16, 32, 48, 64)
FALLING = (0.0, 0.2, 0.5, 0.4, 0.3)  # gold


def line(algorithm: str, lag: int, seed: int, rate: float, gold=FALLING, rise: float = 0.1):
    """A run that ends at a win-rate, and whose learned reward rises at every evaluation."""
    curve = [
        {"update": update, "win_rate": 0.5 + (rate - 0.5) * update / 64}
        | {"gold_mean": gold[index], "gold_mean_stderr": 0.02, "kl": 0.1 * index}
        | {"reward_mean": rise * index}
        for index, update in enumerate(UPDATES)
    ]
    made = {"arm": f"{algorithm}-lag{lag}", "seed": seed, "curve": curve, "num_updates": 64}
    made |= {"processor": "invented", "commit": "0123456789ab", "date": "2026-01-01"}
    made |= {"measured": {"within_prompt_std": [1.0] * 32 + [0.5] * 32}}
    return made | {"reward_model": {"heldout_accuracy": 0.7, "raw_mean": 0.0, "raw_std": 2.0}}


def lines(loss: float = 0.2, **more):
    """Lag 1 costs nothing; lag 8 costs RLOO `loss` and Online DPO nothing."""
    return [
        line(
            algorithm,
            lag,
            seed,
            0.8 + 0.002 * seed - (loss if lag == 8 else 0) * (algorithm == "rloo"),
            **more,
        )
        for seed in range(5)
        for algorithm in findings.ALGORITHMS
        for lag in findings.LAGS
    ]


def results(some) -> list[str]:
    text = findings.pages(some)["sentiment.md"]
    return [
        row.split("|")[-2].strip() for row in text.splitlines() if row[:3] in ("| 1", "| 2", "| 3")
    ]


def test_the_page_says_what_the_runs_say():
    same, again, more, rise = results(lines())
    assert same == again == "supported: within ±0.05"
    assert more.startswith("supported: below 0")
    assert rise.startswith("supported: below 0")
    *_, none, _ = results(lines(loss=-0.2))
    assert none.startswith("refuted")


def test_the_third_is_not_tested_where_gold_did_not_fall():
    """A fall within two standard errors is none."""
    some = lines(gold=(0.0, 0.2, 0.5, 0.49, 0.47))
    assert len(results(some)) == 3
    assert "Hypothesis 3 was not tested." in findings.pages(some)["sentiment.md"]
    assert "in 0 of 30 runs, of 0 seeds" in findings.pages(some)["sentiment.md"]


def test_a_falling_reward_does_not_support_the_third():
    assert results(lines(rise=-0.1))[3].startswith("refuted")


def grouped(arm: str, seed: int, rates: tuple[float, ...], **means):
    """A run of the study of GRPOVI, whose gold is twice the win-rate over one half."""
    updates = (0, 4, 8, 12, 16, 24, 32, 40, 48)
    curve = [
        {"update": update, "win_rate": rate, "gold_mean": 2 * rate - 1, "gold_mean_stderr": 0.02}
        | {"kl": 0.1, "reward_mean": rate}
        for update, rate in zip(updates, rates, strict=True)
    ]
    made = line("rloo", 0, seed, 0.5) | {"arm": arm, "curve": curve, "num_updates": 48}
    return made | {"means": means}


def test_grpovi_is_compared_at_the_end_and_at_half_of_the_gain():
    """Both end at 0.9; half of the gain is 0.7, at update 8 and, on the line, at update 16."""
    fast = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.9, 0.9, 0.9)
    slow = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
    adjusted = {"clipped_low_share": 0.1, "clipped_high_share": 0.2, "variance_mean_place": 0.5}
    some = [
        run
        for seed in range(3)
        for run in (grouped("grpo", seed, slow), grouped("grpovi", seed, fast, **adjusted))
    ]
    first, second = of_grpovi.contrasts(some)
    assert set(first.values.values()) == {0.0}
    assert list(second.values.values()) == pytest.approx([-8.0] * 3)
    text = of_grpovi.pages(some)["sentiment_grpovi.md"]
    assert "no difference beyond 0.05 of win-rate" in text
    assert "0.300 ± 0.000 | 0.50 ± 0.00" in text
