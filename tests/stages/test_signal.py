"""The pass rate of the first policy: measured before the first update, printed, recorded, and a
reason to stop.
"""

import json

import numpy as np
import pytest

from rlhf_jax.refusal import Refusal
from rlhf_jax.stages.checks import signal
from rlhf_jax.stages.settings.rlhf import SignalConfig
from tests.stages import runs

SHORT = "def short(completions):\n    return [len(text) < 24 for text in completions]\n"
GRADED = "def graded(completions):\n    return [float(len(text)) for text in completions]\n"


@pytest.fixture
def reward(tmp_path):
    """A reward of 0 and 1 that about half of a fresh policy's samples pass."""
    file = tmp_path / "mine.py"
    file.write_text(SHORT + GRADED)
    return f"{file}:short"


def lines(directory):
    text = (directory / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line.get("of") == "signal"]


def test_figures_by_hand():
    # 5 of 12 pass; the first and the last of four groups have one score.
    scores_PG = np.array([[1, 1, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]], np.float32)
    assert signal.figures(scores_PG) == {"pass_rate": 5 / 12, "flat_group_share": 0.5}
    with pytest.raises(
        Refusal, match=r"the reward gave 0\.25: a pass rate needs scores of 0 and 1"
    ):
        signal.figures(np.array([[1.0, 0.25]]))


def test_a_run_within_the_bounds_says_so_and_trains_as_without_the_measurement(
    tmp_path, reward, capsys
):
    wide = {
        "rlhf__signal__min_pass_rate": 0.0,
        "rlhf__signal__max_pass_rate": 1.0,
        "rlhf__signal__max_flat_groups": 1.0,
    }
    runs.run(tmp_path / "a", reward=reward, rlhf__signal__num_prompts=6, **wide)
    said = capsys.readouterr().out
    (line,) = lines(tmp_path / "a")
    assert 0 < line["pass_rate"] < 1
    rate, flat = 100 * line["pass_rate"], 100 * line["flat_group_share"]
    assert f"the first policy passes {rate:.1f} % of 2 samples on each of 6 training" in said
    assert f"{flat:.1f} % of the prompts have one score" in said
    # 6 prompts of two samples: multiples of 1/12 and of 1/6, and not of the 8 that were drawn.
    assert (12 * line["pass_rate"]) % 1 == pytest.approx(0)
    assert (6 * line["flat_group_share"]) % 1 == pytest.approx(0)
    runs.run(tmp_path / "b", reward=reward)
    assert not lines(tmp_path / "b")
    for ours, theirs in zip(runs.state(tmp_path / "a"), runs.state(tmp_path / "b"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    runs.run(tmp_path / "a", reward=reward, rlhf__signal__num_prompts=6, rlhf__evaluate_every=0)
    assert "passes" not in capsys.readouterr().out  # it has a checkpoint: nothing is measured again


@pytest.mark.parametrize(
    "bounds",
    [
        {"min_pass_rate": 0.99, "max_pass_rate": 1.0, "max_flat_groups": 1.0},
        {"min_pass_rate": 0.0, "max_pass_rate": 0.01, "max_flat_groups": 1.0},
        {"min_pass_rate": 0.0, "max_pass_rate": 1.0, "max_flat_groups": 0.0},
    ],
)
def test_a_run_outside_of_the_bounds_ends_with_both_figures(tmp_path, reward, bounds):
    keys = {f"rlhf__signal__{name}": value for name, value in bounds.items()}
    with pytest.raises(Refusal) as refused:
        runs.run(tmp_path / "run", reward=reward, rlhf__signal__num_prompts=16, **keys)
    (message,) = refused.value.messages
    (line,) = lines(tmp_path / "run")
    assert f"passes {100 * line['pass_rate']:.1f} % of 2 samples" in message
    assert f"{100 * line['flat_group_share']:.1f} % of the prompts" in message
    for name, value in bounds.items():
        assert f"rlhf.signal.{name}={value}" in message
    assert not runs.steps(tmp_path / "run")
    # The same directory goes on once the bounds allow it, and says its figures once.
    wide = {name: float("min_" not in name) for name in keys}
    runs.run(tmp_path / "run", reward=reward, rlhf__signal__num_prompts=16, **wide)
    assert len(lines(tmp_path / "run")) == 1
    assert runs.steps(tmp_path / "run")


@pytest.mark.parametrize("name", ["learned", "0.5 * exact_match + gold"])
def test_a_reward_that_nobody_passes_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(Refusal, match="a pass rate needs one reward of 0 and 1 on text"):
        runs.run(tmp_path / "run", reward=name, rlhf__signal__num_prompts=4)
    assert not (tmp_path / "run").exists()


def test_a_graded_reward_is_refused_with_its_score(tmp_path, reward):
    graded = reward.replace("short", "graded")
    with pytest.raises(Refusal, match=r"and the reward gave \d+\.0: a pass rate needs scores"):
        runs.run(tmp_path / "run", reward=graded, rlhf__signal__num_prompts=4)


def test_bounds_that_nothing_meets_are_refused():
    with pytest.raises(Refusal, match=r"rlhf\.signal\.min_pass_rate is 0\.7; accepted: at most"):
        SignalConfig(min_pass_rate=0.7)
