"""What a study of staleness measures, by hand, and its page from invented results."""

import json
import math
from pathlib import Path

import pytest

from experiments import cells
from experiments.studies.offpolicyness import findings as offpolicyness
from experiments.studies.offpolicyness import measures as robustness
from experiments.studies.offpolicyness import plots as staleness_plots

from . import invented as staleness

ROOT = Path(__file__).parent.parent.parent


def one(algorithm, seed, curve, lag=0, **other):
    """A result with figures in `curve`: (KL, gold) of its evaluations; the win-rate is a tenth of gold."""
    schedule = {"lag": lag, "num_minibatches": 1, "num_epochs": 1, "samples_per_prompt": 2}
    lines = [{"kl": kl, "gold_mean": gold, "win_rate": gold / 10} for kl, gold in curve]
    return {
        "arm": f"{algorithm}{lag}{other}",
        "algorithm": algorithm,
        "policy": other.pop("policy", ""),
        "reward": "",
        "seed": seed,
        "schedule": schedule | other,
        "ages": {"mean": lag, "max": lag},
        "curve": lines,
    }


FRESH = {0: ((0, 1), (1, 2), (2, 5)), 1: ((0, 1), (1, 4), (2, 7))}
STALE = {0: ((0, 1), (0.5, 2), (1.5, 3)), 1: ((0, 1), (0.5, 2), (1.5, 4))}


def ppo():
    return [
        one("ppo", seed, curve, lag) for lag, of_seed in ((0, FRESH), (3, STALE)) for seed, curve in of_seed.items()
    ]


def test_drops_are_paired_by_seed():
    """Drops in gold of 2 and 3: mean 2.5, and ± 12.706 · 0.7071 / √2 = 6.353. Of the other algorithm 1 in both."""
    rloo = [one("rloo", seed, ((0, 1), (1, 6 - lag / 3)), lag) for lag in (0, 3) for seed in (0, 1)]
    found = robustness.groups(ppo() + rloo, "lag")
    assert [group.name for group in found] == ["ppo", "rloo"]
    dropped = robustness.drop(found[0], 3, "gold_mean")
    assert dropped == {0: 2, 1: 3}
    assert robustness.interval(dropped) == (2.5, pytest.approx(6.353))
    beyond = robustness.difference_of_drops(*found, 3, "win_rate")
    assert beyond == {0: pytest.approx(0.1), 1: pytest.approx(0.2)}


def test_a_difference_is_of_seeds_that_both_have():
    assert robustness.differences({0: 5.0, 1: 2.0}, {1: 0.5, 2: 9.0}) == {1: 1.5}


def test_gold_at_one_kl_is_read_where_both_have_been():
    """At a KL of 1.5, which is 0.5426 of the way from √1 to √2, the fresh curves are at 2 and 4 plus three times that, 3.628
    and 5.628; the stale ones end at 3 and 4."""
    (group,) = robustness.groups(ppo(), "lag")
    values, unmeasured = robustness.at_one_kl(group, 3)
    assert values == {0: pytest.approx(-0.6277, abs=1e-4), 1: pytest.approx(-1.6277, abs=1e-4)}
    assert unmeasured == 0
    short = [one("ppo", 0, FRESH[0]), one("ppo", 0, ((0, 1), (0.5, 2)), 3)]
    values, unmeasured = robustness.at_one_kl(robustness.groups(short, "lag")[0], 3)
    assert values == {0: pytest.approx(1 - math.sqrt(0.5))}, "2 − (1 + √0.5), on the line from the SFT policy"
    assert unmeasured == 1


def test_groups_differ_in_their_axis_alone():
    """An arm with both a lag and minibatches is in neither group of the others; a value alone makes no group."""
    results = [
        one("ppo", 0, FRESH[0]),
        one("ppo", 0, STALE[0], 3),
        one("ppo", 0, STALE[0], 0, num_minibatches=2),
        one("ppo", 0, STALE[0], 3, num_minibatches=4),
        one("rloo", 0, STALE[0]),
    ]
    (by_lag,) = robustness.groups(results, "lag")
    (fresh, stale) = robustness.groups(results, "num_minibatches")
    assert by_lag.values == [0, 3]
    assert (fresh.values, stale.values) == ([1, 2], [1, 4])
    assert (fresh.name, stale.name) == ("ppo", "lag 3")
    assert robustness.groups(results, "num_epochs") == []


def test_groups_are_named_by_what_sets_them_apart():
    results = [one("online_dpo", 0, FRESH[0], lag, policy=f"width {width}") for width in (32, 64) for lag in (0, 1)]
    assert [group.name for group in robustness.groups(results, "lag")] == ["policy width 32", "policy width 64"]
    assert [group.name for group in robustness.groups(results[:2], "lag")] == ["online dpo, policy width 32"]


@pytest.mark.parametrize(
    ("mean", "half", "said"), [(0.2, 0.1, "holds"), (-0.2, 0.1, "does not hold"), (0.1, 0.2, "cannot be told")]
)
def test_a_claim_holds_where_its_interval_says_so(mean, half, said):
    assert robustness.verdict(mean, half) == said
    assert robustness.verdict(mean, math.nan) == "cannot be told"


def written(directory, part="ages", seeds=(0, 1, 2)):
    study = cells.load(f"{ROOT}/configs/studies/offpolicyness.py:part={part}")
    results = [staleness.result(arm, seed) for arm in study.arms for seed in seeds]
    path = offpolicyness.write_study(directory, results, [arm.name for arm in study.arms])
    return path, json.loads((directory / "summary.json").read_text())


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return written(tmp_path_factory.mktemp("ages"))


def test_the_page_says_who_loses_least(pages):
    """In the invented results RLOO, PPO and best-of-2 lose more than Online DPO with age, and all stay on one frontier."""
    path, summary = pages
    text = path.read_text()
    said = [line for line in summary["findings"] if "more robust" in line]
    assert len(said) == 6
    assert all(line.endswith("the more robust holds.") for line in said)
    assert len(summary["findings"]) == 6 + 8
    assert all(line in text for line in said)
    ages = summary["axes"]["num_minibatches"]["ppo"]["64"]["ages"]
    assert ages == {"mean": 31.5, "max": 63}
    assert summary["axes"]["lag"]["rloo"]["15"]["ages"]["max"] == 15
    assert summary["arms"]["ppo-lag3"]["trained"]["completions"] == 4096
    assert "31.5" in text


def test_the_papers_numbers_stand_beside_ours(pages):
    path, summary = pages
    text = path.read_text()
    assert "0.76 / 1.10" in text
    rate, perplexity = (
        summary["arms"]["ppo-lag15"]["win-rate, greedy"][0],
        summary["arms"]["ppo-lag15"]["KL (perplexity), greedy"][0],
    )
    assert f"{rate:.3f} / {perplexity:.3f}" in text


def test_pictures_of_the_ages(pages):
    path, _ = pages
    names = {
        f"{axis}_{name}.png"
        for axis in ("lag", "num_minibatches")
        for name in ("win_rate_against_kl", "final", "compared")
    }
    found = {file.name: file.stat().st_size for file in (path.parent / "plots").iterdir()}
    assert found.keys() == names
    assert min(found.values()) > 20_000


@pytest.mark.parametrize("part", ["epochs", "reward"])
def test_parts_have_pages_too_and_a_single_seed_has_no_interval(tmp_path, part):
    path, summary = written(tmp_path, part, seeds=(0,))
    assert {"epochs": "num_epochs_progress.png", "reward": "num_minibatches_final.png"}[part] in {
        file.name for file in (path.parent / "plots").iterdir()
    }
    assert all(arm["gold"][1] is None for arm in summary["arms"].values())
    assert ("Beside the paper" in path.read_text()) == (part == "epochs")


def test_a_study_without_results_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"no cell of .* has ended"):
        offpolicyness.write_study(tmp_path, [], [])


def test_colours_go_from_cold_to_hot_and_markers_differ():
    looks = [staleness_plots.look(place, 5) for place in range(5)]
    assert [look["color"] for look in looks] == list(staleness_plots.COLD_TO_HOT)
    assert len({look["marker"] for look in looks}) == 5
    assert staleness_plots.look(0, 2)["color"] == staleness_plots.COLD_TO_HOT[0]
    assert staleness_plots.look(1, 2)["color"] == staleness_plots.COLD_TO_HOT[-1]
