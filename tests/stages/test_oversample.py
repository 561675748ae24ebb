"""DAPO with rounds that sample more prompts than they keep, in whole runs: what the ledger and the
metrics say, and a run that goes on from a checkpoint in threads.
"""

import dataclasses
import shutil

import numpy as np
import pytest

from rlhf_jax import build
from rlhf_jax.algorithms import rloo
from rlhf_jax.devices import mesh
from rlhf_jax.refusal import Refusal
from rlhf_jax.stages.settings import rlhf

from . import runs

ROUNDS, PROMPTS, KAPPA = 4, 4, 3
SETTINGS = {
    "rlhf.total_prompts": ROUNDS * PROMPTS,
    "rlhf.prompts_per_update": PROMPTS,
    "rlhf.oversample": KAPPA,
    "rlhf.lag": 1,
    "rlhf.ledger": True,
    "rlhf.scoring.replace_missing_eos": False,
    "rlhf.scoring.overlong.buffer": 4,
    "rlhf.evaluate_every": 0,
}


def run(directory, reward, **changed) -> None:
    build.run(runs.config(directory, "dapo", **SETTINGS, reward=f"{reward}:parity", **changed))


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    """The parity of a completion's words."""
    path = tmp_path_factory.mktemp("rewards") / "mine.py"
    path.write_text(
        "def parity(completions):\n    return [len(t.split()) % 2 for t in completions]\n"
    )
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory, reward):
    directory = tmp_path_factory.mktemp("oversample") / "whole"
    run(directory, reward)
    return directory


def test_the_ledger_has_each_sampled_prompt_once(whole):
    """Kept ones have rows, in the order of the prompts, and the others are left out for a reason; so
    many are flat as the metrics say.
    """
    rows, sampled = runs.lines(whole, "ledger.jsonl"), KAPPA * PROMPTS
    updates = [line for line in runs.lines(whole, "metrics.jsonl") if "age" in line]
    assert len(rows) == ROUNDS * PROMPTS * 2
    assert len(updates) == ROUNDS
    num_flat = 0
    for r in range(ROUNDS):
        of_round = [row for row in rows if row["round"] == r]
        kept = [row["ordinal"] for row in of_round[::2]]
        assert kept == sorted(kept) == [row["ordinal"] for row in of_round[1::2]]
        assert [("left_out" in row) for row in of_round] == [True] + [False] * 7
        left_out = of_round[0]["left_out"]
        everyone = sorted([*kept, *left_out["flat"], *left_out["surplus"]])
        assert everyone == list(range(r * sampled, (r + 1) * sampled))
        raw = np.array([row["raw"] for row in of_round]).reshape(-1, 2)
        flat = np.flatnonzero(raw[:, 0] == raw[:, 1])
        assert not len(flat) or not left_out["surplus"], "a flat group is kept beside a live one"
        line = updates[r]
        live = sampled - len(left_out["flat"]) - len(flat)
        assert line["live_group_share"] == pytest.approx(live / sampled)
        assert line["kept_flat_share"] == pytest.approx(len(flat) / PROMPTS)
        assert line["prompts_sampled"] == (r + 1) * sampled
        penalties = [row["score"] - row["raw"] for row in of_round]
        assert all(-1 <= penalty <= 0 for penalty in penalties)
        assert line["overlong_penalty"] == pytest.approx(np.mean(penalties), abs=1e-6)
        assert line["overlong_share"] == pytest.approx(np.mean(np.array(penalties) < 0))
        num_flat += len(left_out["flat"]) + len(flat)
    assert 0 < num_flat < ROUNDS * sampled


def test_a_killed_run_goes_on_in_threads_to_the_same_end(whole, tmp_path, reward):
    cut = shutil.copytree(whole, tmp_path / "cut")
    for step in [step for step in runs.steps(cut) if step > 2]:
        shutil.rmtree(cut / "checkpoints" / "rlhf" / str(step))
    run(cut, reward, rlhf__loop="asynchronous")
    assert not runs.differences(whole, cut)


CONFIG = rlhf.Config(total_prompts=32, prompts_per_update=4, oversample=2)


def check(**changes):
    config = dataclasses.replace(CONFIG, **changes)
    rlhf.check(config, rloo.rloo(rloo.Config()), mesh.make_mesh(mesh.Config(data=1)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"engine": "slots", "num_slots": 16},
            "rlhf.oversample is 2 with rlhf.engine='slots', .* whole batches; accepted: rlhf.engine=static",
        ),
        (
            {"samples_per_prompt": 1},
            "rlhf.oversample is 2 with rlhf.samples_per_prompt=1.* 2 or more",
        ),
        ({"total_prompts": 2}, "rlhf.total_prompts is 2; accepted: multiples of .* = 4"),
    ],
)
def test_combinations_that_are_not_defined_are_refused(changes, named):
    with pytest.raises(Refusal, match=named):
        check(**changes)


def test_clocks_that_are_defined():
    for clock in (
        {"lag": 2, "sync_every": 2},
        {"staged": "shuffled", "sync_every": 2},
        {"buffer_rounds": 2, "loop": "asynchronous"},
        {"clock": "bounded", "lag": 1, "loop": "asynchronous"},
        {"version_schedule": (0,) * 8, "num_epochs": 2},
    ):
        check(**clock)
    assert CONFIG.sampled_prompts == 8
