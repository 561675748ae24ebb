"""Measures of the study of off-policyness by hand, and its page from invented results."""

import dataclasses
import math
from pathlib import Path

import pytest

from experiments.studies.offpolicyness import findings, measures, plots, regimes
from rlhf_jax.report.statistics import interval
from rlhf_jax.sweeps import cells

from . import invented

ROOT = Path(__file__).parent.parent.parent


def one(algorithm, seed, curve, lag=0, correction="", **other):
    """A result with figures in `curve`: (KL, gold) of its evaluations; the win-rate is a tenth of
    gold.
    """
    schedule = {"lag": lag, "num_minibatches": 1, "num_epochs": 1, "samples_per_prompt": 2}
    ratio_to, kind = {
        "": ("behavior", "none"),
        "proximal": ("proximal", "none"),
        "truncate": ("proximal", "truncate"),
    }[correction]
    ratio = {"algorithm.correction.ratio_to": ratio_to, "algorithm.correction.correction": kind}
    return {
        "arm": f"{algorithm}{lag}{correction}{other}",
        "algorithm": algorithm,
        "policy": other.pop("policy", ""),
        "reward": "",
        "seed": seed,
        "schedule": schedule | other,
        "config": ratio if algorithm in ("ppo", "rloo") else {},
        "ages": {"mean": lag, "max": lag},
        "curve": [{"kl": kl, "gold_mean": gold, "win_rate": gold / 10} for kl, gold in curve],
    }


FRESH = {0: ((0, 1), (1, 2), (2, 5)), 1: ((0, 1), (1, 4), (2, 7))}
STALE = {0: ((0, 1), (0.5, 2), (1.5, 3)), 1: ((0, 1), (0.5, 2), (1.5, 4))}


def ppo():
    of_lag = ((0, FRESH), (3, STALE))
    return [
        one("ppo", seed, curve, lag) for lag, of_seed in of_lag for seed, curve in of_seed.items()
    ]


def test_drops_are_paired_by_seed():
    """Drops in gold of 2 and 3: mean 2.5, and ± 12.706 · 0.7071 / √2 = 6.353.

    Of the other algorithm 1 in both.
    """
    dpo = [
        one("online_dpo", seed, ((0, 1), (1, 6 - lag / 3)), lag)
        for lag in (0, 3)
        for seed in (0, 1)
    ]
    found = measures.groups(ppo() + dpo, "lag")
    assert [group.name for group in found] == ["ppo, behavior", "online dpo"]
    dropped = measures.drop(found[0], 3, "gold_mean")
    assert dropped == {0: 2, 1: 3}
    assert interval(dropped) == (2.5, pytest.approx(6.353, abs=1e-3))
    beyond = measures.difference_of_drops(*found, 3, "win_rate")
    assert beyond == {0: pytest.approx(0.1), 1: pytest.approx(0.2)}


def test_gold_at_one_kl_is_read_where_both_were_measured():
    """At a KL of 1.5, which is 0.5426 of the way from √1 to √2, the fresh curves are at 2 and 4
    plus three times that, 3.628 and 5.628; the stale ones end at 3 and 4. A stale curve that ends
    at 0.5 lies before the fresh one's first evaluation.
    """
    (group,) = measures.groups(ppo(), "lag")
    values, unread = measures.at_one_kl(group, 3)
    assert values == {0: pytest.approx(-0.6277, abs=1e-4), 1: pytest.approx(-1.6277, abs=1e-4)}
    assert unread == []
    short = [*ppo()[:2], one("ppo", 0, ((0, 1), (0.5, 2)), 3), one("ppo", 1, STALE[1], 3)]
    values, unread = measures.at_one_kl(measures.groups(short, "lag")[0], 3)
    assert values.keys() == {1}
    assert unread == [0]


def test_a_fresh_arm_belongs_to_the_groups_of_all_corrections():
    """At lag 0 behavior and proximal policy are one; stale results of two corrections are never
    pooled.
    """
    results = [*ppo(), *(one("ppo", seed, STALE[seed], 3, "truncate") for seed in (0, 1))]
    found = measures.groups(results, "lag")
    assert [(group.correction, group.values) for group in found] == [
        ("behavior", [0, 3]),
        ("truncate", [0, 3]),
    ]
    assert all(len(group.arms[3]) == 2 for group in found)
    assert found[0].arms[0] == found[1].arms[0]


def test_groups_differ_in_their_axis_alone():
    """An arm with both a lag and minibatches is in neither group of the others; a value alone makes
    no group.
    """
    results = [
        one("ppo", 0, FRESH[0]),
        one("ppo", 0, STALE[0], 3),
        one("ppo", 0, STALE[0], 0, num_minibatches=2),
        one("ppo", 0, STALE[0], 3, num_minibatches=4),
        one("rloo", 0, STALE[0]),
    ]
    (by_lag,) = measures.groups(results, "lag")
    (fresh, stale) = measures.groups(results, "num_minibatches")
    assert by_lag.values == [0, 3]
    assert (fresh.values, stale.values) == ([1, 2], [1, 4])
    assert stale.name == "lag 3, behavior"
    assert measures.groups(results, "num_epochs") == []


def test_groups_are_named_by_their_differences():
    results = [
        one("online_dpo", 0, FRESH[0], lag, policy=f"width {width}")
        for width in (32, 64)
        for lag in (0, 1)
    ]
    assert [group.name for group in measures.groups(results, "lag")] == [
        "policy width 32",
        "policy width 64",
    ]
    assert [group.name for group in measures.groups(results[:2], "lag")] == [
        "online dpo, policy width 32"
    ]


def test_a_run_has_collapsed_where_its_win_rate_fell():
    """From 0.7 to 0.59 it has; to 0.61 it has not; one that diverged has."""
    assert measures.collapsed(one("ppo", 0, ((0, 4), (1, 7), (2, 5.9))))
    assert not measures.collapsed(one("ppo", 0, ((0, 4), (1, 7), (2, 6.1))))
    assert measures.collapsed(one("ppo", 0, FRESH[0]) | {"diverged": "the loss is nan"})


@pytest.fixture(scope="module")
def results():
    study = cells.load(f"{ROOT}/configs/studies/offpolicyness.py")
    return [invented.result(arm, seed) for arm in study.arms for seed in range(4)]


@pytest.fixture(scope="module")
def pages(results):
    return findings.pages(results)


def test_the_page_says_who_loses_least(pages):
    """In the invented results RLOO, PPO and best-of-2 lose more than Online DPO with age, and
    corrections change nothing.
    """
    text = pages["offpolicyness.md"]
    contrasts = [
        line
        for line in text.splitlines()
        if line.startswith(("| 1.", "| 2.", "| 3.", "| 4.", "| 5.", "| 6."))
    ]
    assert [line.split(" | ")[-1] for line in contrasts] == ["larger |"] * 4 + [
        "no difference beyond 0.02 of win-rate |"
    ] * 2
    assert "0.76 / 1.10" in text
    assert "No run collapsed." in text
    assert "31.5, 63" in text


def test_each_regime_has_the_loss_that_surely_loses_least(results, pages):
    """Of the invented algorithms Online DPO loses least; one with a collapsed run is never advised,
    whatever its mean is.
    """
    assert "which_lag.md" in pages
    parts = regime_parts(pages["which_lag.md"])
    assert [part.split("**")[1] for part in parts] == ["online dpo"] * 5
    changed = fallen_at_the_end(results, "online_dpo-num_minibatches64")
    *_, sixteen, most = regime_parts(findings.pages(changed)["which_lag.md"])
    assert sixteen.split("**")[1] == "online dpo"
    assert most.split("**")[1] != "online dpo"
    (row,) = [line for line in most.splitlines() if line.startswith("| online dpo")]
    assert row.endswith("| – | – | 1 of 4 |")


def test_a_certain_small_drop_goes_before_a_doubtful_one():
    """The rule takes the upper end of the interval: 1 ± 0 goes before −1 ± 50."""
    lines = [
        one(name, seed, ((0, 1), (1, 9 - (of_seed[seed] if lag else 0))), lag)
        for name, of_seed in {"ppo": (1, 1), "rloo": (-5, 3)}.items()
        for lag in (0, 1)
        for seed in (0, 1)
    ]
    found = regimes.ordered(measures.groups(lines, "lag"), 1)
    assert [group.algorithm for group in found] == ["ppo", "rloo"]


def regime_parts(text: str) -> list[str]:
    """The text of the page from each advice to the next one."""
    return text.split("By the rule: ")[1:]


def test_pictures_of_the_page(pages):
    from experiments.results import picture

    drawn = {name: picture(figure) for name, figure in pages.items() if name.endswith(".png")}
    assert len(drawn) == 4
    assert min(map(len, drawn.values())) > 20_000
    assert all(f"({name})" in pages["offpolicyness.md"] for name in drawn)


def test_collapsed_runs_are_shown_one_by_one(results):
    fallen = next(result for result in results if result["arm"] == "best_of_n")
    changed = [result for result in results if result is not fallen]
    curve = [*fallen["curve"][:-1], fallen["curve"][-1] | {"win_rate": 0.21}]
    text = findings.pages([*changed, fallen | {"curve": curve}])["offpolicyness.md"]
    (row,) = [
        line for line in text.splitlines() if line.startswith("| best_of_n |") and " / " in line
    ]
    assert "0.21 /" in row
    assert "| best of n | 1 | 0, 0 | see below | – | – | – | – | 1 of 4 |" in text


def fallen_at_the_end(results, arm):
    """The results with a collapsed run in an arm: a win-rate of 0.21 at the end of one."""
    fallen = next(result for result in results if result["arm"] == arm)
    rest = [result for result in results if result is not fallen]
    return [
        *rest,
        fallen | {"curve": [*fallen["curve"][:-1], fallen["curve"][-1] | {"win_rate": 0.21}]},
    ]


def test_the_mean_of_an_arm_with_a_collapsed_run_is_quoted_nowhere(results):
    """Neither in the tables nor in the pictures, and its primary contrast is marked."""
    changed = fallen_at_the_end(results, "rloo-num_minibatches64")
    text = findings.pages(changed)["offpolicyness.md"]
    rows = [line for line in text.splitlines() if line.startswith("| rloo | 64 |")]
    assert [row.count("see below") for row in rows] == [4]
    assert "| rloo-num_minibatches64 | 0.001 | 4 | see above | see above |" in text
    marked = [line for line in text.splitlines() if "1 of its runs collapsed" in line]
    assert [line[:4] for line in marked] == ["* dr", "| 3."]


def test_a_collapsed_run_is_drawn_as_single_seeds(results):
    changed = fallen_at_the_end(results, "rloo-num_minibatches64")
    axis = measures.groups(changed, "num_minibatches")
    (ax, *_) = plots.final_figures(axis).axes
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "none"]
    assert [len(line.get_ydata()) for line in hollow] == [4]
    assert 0.21 in hollow[0].get_ydata()
    panel = next(ax for ax in plots.against(axis, "kl").axes if ax.get_title("left") == "rloo")
    named = [line.get_label() for line in panel.lines]
    assert "N 64, each seed" in named
    assert "N 64" not in named


def test_groups_of_one_loss_have_a_colour_each(results):
    """As the sizes of a model have; algorithms and corrections keep theirs."""
    (group, *_) = measures.groups(results, "num_minibatches")
    sizes = [dataclasses.replace(group, name=f"width {width}") for width in (32, 64, 128)]
    (ax, *_) = plots.final_figures(sizes).axes
    assert len({container.lines[0].get_color() for container in ax.containers}) == 3
    legend = ax.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["width 32", "width 64", "width 128"]


def test_a_rate_on_an_edge_is_marked(results):
    """Tried at 1e-3 and 2e-3, reported at 1e-3."""
    tried = [
        results[0] | {"purpose": "tune", "setting": {findings.RATE: rate}} for rate in (1e-3, 2e-3)
    ]
    assert findings.on_edges([*tried, *results])["online_dpo"]
    assert not findings.on_edges([*tried, tried[0] | {"setting": {findings.RATE: 5e-4}}, *results])[
        "online_dpo"
    ]


def test_a_single_seed_has_no_interval(results):
    text = findings.drops_table(
        measures.groups([one for one in results if one["seed"] == 0], "lag")
    )
    assert "±" not in text


def test_colours_go_from_cold_to_hot_and_markers_differ():
    looks = [plots.look(place, 5) for place in range(5)]
    assert [look["color"] for look in looks] == list(plots.COLD_TO_HOT)
    assert len({look["marker"] for look in looks}) == 5
    assert plots.look(1, 2)["color"] == plots.COLD_TO_HOT[-1]
    assert not math.isnan(plots.look(0, 1)["marker"] == "o")
