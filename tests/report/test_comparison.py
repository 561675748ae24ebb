"""The page that compares runs: groups, figures with intervals, the better group, differing keys,
completions; and what does not compare.
"""

import json
import math
import re
from pathlib import Path

import pytest

from rlhf_jax.cli import compare
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.report.comparison import figures, html, runs
from rlhf_jax.report.statistics import difference_interval
from tests.report.compared import two_groups, vary
from tests.report.conftest import NASTY
from tests.report.test_html import Reader


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four runs."""
    folder = tmp_path_factory.mktemp("compared")
    two_groups(folder)
    return folder


@pytest.fixture(scope="module")
def page(root: Path) -> Reader:
    """Their comparison. Drawing takes seconds, so that the tests that look share it."""
    path = html.write([str(root / "beta_*")], root / "comparison.html")
    return Reader(path.read_text())


def given(*paths: Path) -> list[str]:
    return [str(path) for path in paths]


def test_the_page_names_the_better_group_and_says_why(page: Reader) -> None:
    for said in (
        "A: beta 0.1 is better by gold score: 1.305 ± 0.064 against 0.945 ± 0.064 of B.",
        "The difference is +0.360",
        "a 95 % t-interval over seeds, which does not hold zero",
        "algorithm.beta is 0.1 in A and 0.5 in B",
        "Where both have KL 2.00, A is ahead: 1.31 in A, 0.945 in B.",
        "A reaches the end of B after 37 updates; B took 60. Training the policy took 48 s in A "
        "and 48 s in B.",
    ):
        assert said in " ".join(page.text.split()), said


def test_the_page_stands_alone_and_shows_markup_as_text(page: Reader) -> None:
    assert not {"script", "link", "iframe", "object", "img"} & set(page.seen)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert (value or "").startswith("#")
    assert NASTY.replace("\x1b", "\\x1b") in page.text
    names = [value for name, value in page.attributes if name == "id"]
    assert len(names) == len(set(names))


def test_curves_are_drawn_against_updates_seconds_and_kl(page: Reader) -> None:
    labels = [value for name, value in page.attributes if name == "aria-label"]
    for across in ("updates", "seconds", "kl"):
        assert f"Gold score, against {across}" in labels
        assert f"Win-rate against references (gold), against {across}" in labels
    assert "KL to the SFT policy, against updates" in labels
    assert "KL to the SFT policy, against kl" not in labels


def test_completions_of_one_prompt_are_side_by_side(root: Path) -> None:
    text = (root / "comparison.html").read_text()
    (row,) = [row for row in re.findall("<tr>.*?</tr>", text, re.DOTALL) if "the film" in row]
    words = ("was rather dull and i slept", "was a quiet, moving joy", "was a loud bore")
    assert sorted(map(row.index, words)) == list(map(row.index, words))


def test_runs_are_grouped_by_config_and_seeds_are_averaged(root: Path) -> None:
    comparison = runs.compare([str(root / "beta_*")])
    assert [(group.name, group.seeds) for group in comparison.groups] == [
        ("A: beta 0.1", [0, 1]),
        ("B: beta 0.5", [0, 1]),
    ]
    assert comparison.differing == {"algorithm.beta": ("0.1", "0.5")}
    assert not comparison.notices
    first = figures.last(comparison.groups[0], "gold_mean")
    assert first.mean == pytest.approx((1.3 + 1.31) / 2)
    assert first.half == pytest.approx(12.706 * 0.005, rel=1e-3)  # t of one degree of freedom


def test_a_better_run_that_is_given_last_comes_first(tmp_path: Path) -> None:
    worse = vary(tmp_path / "worse", 0, 0.9, algorithm__beta=0.5)
    better = vary(tmp_path / "better", 0, 0.95, rlhf__lag=4)
    comparison = runs.compare(given(worse, better))
    headline, reasons = figures.verdict(comparison)
    assert headline.startswith("B: beta 0.1, lag 4 ends higher in gold score, but not clearly: ")
    assert "with one run each, the interval is over prompts" in reasons[0]
    table = html._table(comparison, figures.ranked(comparison))
    assert table["rows"][0][1] == "–"
    assert table["rows"][1][1].startswith("−0.045 ± 0.0")


def test_runs_that_differ_in_seed_alone_are_shown_one_by_one(tmp_path: Path) -> None:
    paths = [vary(tmp_path / f"run_{seed}", seed) for seed in (3, 4)]
    comparison = runs.compare(given(*paths))
    assert [group.label for group in comparison.groups] == ["seed 3 (run_3)", "seed 4 (run_4)"]
    assert "same config apart from their seeds" in comparison.notices[0]
    headline, reasons = figures.verdict(comparison)
    assert headline.startswith("B: seed 4 (run_4) ends higher in gold score, but not clearly")
    assert "Their configs do not differ apart from the seed." in reasons


def test_a_begin_of_each_seed_is_a_part_of_the_seed(tmp_path: Path) -> None:
    paths = [
        vary(tmp_path / f"{lag}_{seed}", seed, begin=f"runs/base_{seed}", rlhf__lag=lag)
        for lag in (0, 4)
        for seed in (0, 1)
    ]
    comparison = runs.compare(given(*paths))
    assert [group.label for group in comparison.groups] == ["lag 0", "lag 4"]
    assert any("`begin` is taken as a part of the seed" in text for text in comparison.notices)
    other = vary(tmp_path / "other", 1, begin="runs/elsewhere")
    assert len(runs.compare(given(*paths, other)).groups) == 5


def test_a_begin_of_each_seed_and_each_sft_is_a_part_of_both(tmp_path: Path) -> None:
    """A sweep over a key of SFT has a policy for each of its values, which betas share."""
    for rate in (0.001, 0.002):
        for beta in (0.1, 0.5):
            for seed in (0, 1):
                vary(
                    tmp_path / f"{rate}_{beta}_{seed}",
                    seed,
                    begin=f"stages/{rate}_{seed}",
                    algorithm__beta=beta,
                    sft__optimizer__learning_rate=rate,
                )
    comparison = runs.compare([str(tmp_path / "*")])
    assert [group.seeds for group in comparison.groups] == [[0, 1]] * 4
    assert "begin" not in comparison.differing


def test_a_key_that_an_older_run_lacks_makes_no_group(tmp_path: Path) -> None:
    paths = [vary(tmp_path / f"run_{seed}", seed) for seed in (0, 1)]
    paths.append(vary(tmp_path / "other", 0, rlhf__lag=4, rlhf__share_prompts=True))
    assert [group.label for group in runs.compare(given(*paths)).groups] == ["lag 1", "lag 4"]


def test_seconds_go_on_over_processes(tmp_path: Path) -> None:
    path = vary(tmp_path / "run", 0)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "rlhf" in (line["stage"], line.get("of")) and line.get("update", 0) > 30:
            line["seconds"] -= 6.0
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = runs.compare(given(path, vary(tmp_path / "other", 1))).runs[0].curve
    assert [round(line["seconds"], 2) for line in curve] == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0]


def test_unpaired_seeds_get_an_interval_of_welch() -> None:
    mean, half = difference_interval({0: 1.0, 1: 2.0, 2: 3.0}, {5: 0.0, 6: 1.0, 7: 2.0})
    assert mean == 1.0
    assert half == pytest.approx(2.776 * math.sqrt(2 / 3), rel=1e-3)  # t of four degrees
    assert math.isnan(difference_interval({0: 1.0}, {0: 0.5})[1])


def drop(path: Path, stage: str) -> Path:
    """A run without a stage and its evaluations."""
    lines = (path / "metrics.jsonl").read_text().splitlines(True)
    kept = [
        line
        for line in lines
        if stage not in (json.loads(line)["stage"], json.loads(line).get("of"))
    ]
    (path / "metrics.jsonl").write_text("".join(kept))
    return path


def test_what_does_not_compare_is_one_clear_line(root: Path, tmp_path: Path) -> None:
    run = root / "beta_0.1_0"
    with pytest.raises(MissingInput, match="nowhere is no run directory"):
        runs.compare(given(run, tmp_path / "nowhere"))
    with pytest.raises(Refusal, match=r"needs two runs or more, and 1 is given: .*beta_0.1_0"):
        runs.compare(given(run, run))
    with pytest.raises(Refusal, match=r"no run directory matches the pattern '.*gamma_\*'"):
        runs.compare(given(run, root / "gamma_*"))
    no_rounds = drop(vary(tmp_path / "sft_alone", 0), "rlhf")
    with pytest.raises(Refusal, match="no update of a policy to compare; its stages: sft, "):
        runs.compare(given(run, no_rounds))
    other_task = vary(tmp_path / "other_task", 0, task__name="addition")
    with pytest.raises(Refusal, match=r"different tasks .* has 'reviews', .* has 'addition'"):
        runs.compare(given(run, other_task))
    other_unit = vary(tmp_path / "other_unit", 0, reward="exact_match")
    with pytest.raises(Refusal, match=r"different gold units .*'Gold score'.*'Exact match'"):
        runs.compare(given(run, other_unit))


def without(path: Path, *names: str) -> Path:
    """A run whose evaluations lack figures."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: line[key] for key in line if key not in names} for line in lines]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    return path


GOLD = ("gold_mean", "gold_mean_stderr", "win_rate", "win_rate_stderr")


def test_without_gold_the_reward_names_the_better_run_where_it_is_one_reward(
    tmp_path: Path,
) -> None:
    a = without(vary(tmp_path / "a", 0), *GOLD)
    b = without(vary(tmp_path / "b", 0, algorithm__beta=0.5), *GOLD)
    _, reasons = figures.verdict(runs.compare(given(a, b)))
    assert figures.ranked_by(runs.compare(given(a, b))) == "reward_mean"
    assert any("No gold judge scores these runs" in reason for reason in reasons)
    raw = without(vary(tmp_path / "raw", 0, reward_model__standardize=False), *GOLD)
    with pytest.raises(
        Refusal, match=r"different reward units .* without a gold score: .*SFT stand"
    ):
        runs.compare(given(a, raw))
    other = without(vary(tmp_path / "own", 0, reward="my_lab.rewards:brevity"), *GOLD)
    with pytest.raises(Refusal, match=r"different rewards .* has 'learned', .* has 'my_lab"):
        runs.compare(given(a, other))


def test_without_any_judge_the_reward_of_training_samples_is_compared(tmp_path: Path) -> None:
    a = without(vary(tmp_path / "a", 0, reward="my_lab.rewards:brevity"), *GOLD, "reward_mean")
    b = without(
        vary(tmp_path / "b", 0, reward="my_lab.rewards:brevity", rlhf__lag=4), *GOLD, "reward_mean"
    )
    comparison = runs.compare(given(a, b))
    assert figures.ranked_by(comparison) == "training_reward"
    lines = [json.loads(line) for line in (a / "metrics.jsonl").read_text().splitlines()]
    last = [
        line["reward_standardized"]
        for line in lines
        if line["stage"] == "rlhf" and 50 <= line.get("update", 0) < 60
    ]
    mean = figures.last(comparison.groups[0], "training_reward").mean
    assert mean == pytest.approx(sum(last) / 10)
    assert "Reward in training, against updates" in html.render(comparison)


def test_limits_of_a_comparison_are_told(root: Path, tmp_path: Path) -> None:
    running = vary(tmp_path / "running", 0, evaluate__num_prompts=64)
    path = running / "metrics.jsonl"
    lines = path.read_text().splitlines(True)
    path.write_text(
        "".join(line for line in lines if '"timing"' not in line and "best_of_n" not in line)
    )
    raw = vary(tmp_path / "raw", 0, reward_model__standardize=False)
    comparison = runs.compare(given(root / "beta_0.1_0", running, raw))
    said = "\n".join(comparison.notices)
    assert "`running` has not ended: 60 updates of RLHF are done." in said
    assert "Evaluations are of different kinds (`evaluate.num_prompts`)" in said
    assert "The learned reward is in different units, so that it is left out." in said
    assert "reward_mean" not in figures.names(comparison)
    assert "gold_mean" in figures.names(comparison)


@pytest.mark.parametrize(("gain", "said"), [(1.0099, "both are at 1.31."), (0.9, "A is ahead: ")])
def test_nobody_is_ahead_where_the_digits_are_the_same(
    tmp_path: Path, gain: float, said: str
) -> None:
    paths = [
        vary(tmp_path / f"{beta}_{seed}", seed, by, algorithm__beta=beta)
        for beta, by in ((0.1, 1.01), (0.5, gain))
        for seed in (0, 1)
    ]
    sentence, others = figures.verdict(runs.compare(given(*paths)))
    words = " ".join([sentence, *others])
    assert f"Where both have KL 2.00, {said}" in words


def test_runs_with_the_same_numbers_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that a run does not read changes nothing, and neither does the loop."""
    monkeypatch.setattr(html, "_curves", lambda comparison: [])  # drawing takes seconds
    paths = [
        vary(tmp_path / f"{slots}_{seed}", seed, rlhf__num_slots=slots)
        for slots in (16, 32)
        for seed in (0, 1)
    ]
    path, page = paths[3] / "metrics.jsonl", tmp_path / "page.html"
    path.write_text(path.read_text().replace('"seconds": ', '"seconds": 1'))  # no number of a run
    said = "A and B have the same numbers in every update and evaluation (seeds 0, 1): "
    assert compare.main([*given(*paths), f"--to={page}"]) == 0
    assert capsys.readouterr().err == f"note: {said}`rlhf.num_slots` changed none of them.\n"
    assert said in page.read_text()

    notes: list[str] = []
    twin = vary(tmp_path / "twin", 0, rlhf__num_slots=16)
    html.write(given(paths[0], twin), page, notes.append)
    assert notes.pop().endswith("evaluation (seed 0).")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    next(line for line in lines if line["stage"] == "rlhf" and line.get("update") == 7)["loss"] *= 2
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    html.write(given(*paths), page, notes.append)
    assert not notes


def test_the_command_prints_the_path_or_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html, "_curves", lambda comparison: [])  # drawing takes seconds
    to = tmp_path / "page.html"
    assert compare.main([*given(root / "beta_*"), f"--to={to}"]) == 0
    assert capsys.readouterr().out == f"{to}\n"
    assert "is better by gold score" in to.read_text()
    assert compare.main(given(root / "beta_0.1_0")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: a comparison needs two runs or more")
