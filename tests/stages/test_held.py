"""Stages of a run whose products are in bfloat16: models that no update changes are held so, and
what is computed has the same bits.
"""

import gc
from pathlib import Path

import jax
import pytest

from rlhf_jax import build
from rlhf_jax.devices.transfer import per_host
from rlhf_jax.stages import reward_model
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.common import generate
from rlhf_jax.stages.common.evaluator import Evaluator
from rlhf_jax.stages.common.generate import Request
from rlhf_jax.stages.common.reward_unit import LearnedScores
from tests.stages import runs

WIDTH = 24  # of no other test, so that arrays of the model are known by their shapes
SETTINGS = {
    "reward": "learned",
    "model__dtype": "bfloat16",
    "model__width": WIDTH,
    "rlhf__total_prompts": 4,
    "rlhf__lag": 0,
}


def matrices(params) -> set[str]:
    """Dtypes of the params that products read."""
    return {
        leaf.dtype.name for leaf in jax.tree.leaves(params) if leaf.ndim > 1 and WIDTH in leaf.shape
    }


def live_tables() -> set[str]:
    """Dtypes of the embeddings of the model that there are on the devices."""
    gc.collect()
    return {
        array.dtype.name
        for array in jax.live_arrays()
        if array.ndim == 2 and array.shape[1] == WIDTH and array.shape[0] > 2 * WIDTH
    }


def all_stages(directory: Path, patch: pytest.MonkeyPatch) -> tuple[list[str], dict[str, list]]:
    """The answers of the policies of a whole run, and the dtypes in which its stages held params."""
    seen: dict[str, list] = {"sampled": [], "scored": [], "live": [], "evaluated": []}
    sampled, measure = per_host.on_each_host, reward_model.measure_standard
    accuracy, scores = reward_model.heldout_accuracy, LearnedScores.__init__

    def on_each_host(params, *dtype):
        if not dtype and params is not None:  # else a trained policy is published
            seen["sampled"].append(matrices(params))
        return sampled(params, *dtype)

    def heldout_accuracy(workspace, params, batch):
        seen["scored"].append(matrices(params["backbone"]))
        seen["live"].append(live_tables())
        return accuracy(workspace, params, batch)

    def measure_standard(workspace, params, *rest):
        seen["scored"].append(matrices(params["backbone"]))
        return measure(workspace, params, *rest)

    def learned_scores(self, model, params, *rest):
        seen["scored"].append(matrices(params["backbone"]))
        scores(self, model, params, *rest)

    patch.setattr(per_host, "on_each_host", on_each_host)
    patch.setattr(reward_model, "heldout_accuracy", heldout_accuracy)
    patch.setattr(reward_model, "measure_standard", measure_standard)
    patch.setattr(LearnedScores, "__init__", learned_scores)
    runs.run(directory, **SETTINGS)
    judge = Evaluator.judge

    def judged(self, drawn):
        seen["evaluated"].append(live_tables())
        return judge(self, drawn)

    with patch.context() as inner:
        inner.setattr(Evaluator, "judge", judged)
        runs.run(directory, job="evaluate", **SETTINGS)
    workspace = build.of_directory(directory)[0]
    answers = generate.side_by_side(
        workspace, None, Request(("review of the old inn . the staff was",))
    )
    return [answer.text for texts in answers.values() for answer in texts], seen


def test_frozen_models_of_every_stage_are_held_in_bfloat16_with_the_same_numbers(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        answers, seen = all_stages(tmp_path / "held", patch)
    assert seen["sampled"]
    assert [dtypes for dtypes in seen["sampled"] + seen["scored"] if dtypes != {"bfloat16"}] == []
    assert seen["live"] == seen["evaluated"] == [{"bfloat16"}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workspace, "held", lambda self, params: params)
        patch.setattr(reward_model, "held", lambda network, params: params)
        wide_answers, wide = all_stages(tmp_path / "wide", patch)
    assert {"float32"} in wide["sampled"]
    assert {"float32"} in wide["scored"]
    assert wide["live"] == wide["evaluated"] == [{"float32"}]
    assert answers == wide_answers
    for stage in ("sft", "reward_model", "rlhf"):
        one, two = (runs.state(tmp_path / name, stage) for name in ("held", "wide"))
        assert runs.same(one, two), stage
    for name in ("reward_model.json", "comparisons/train.jsonl", "comparisons/heldout.jsonl"):
        one, two = ((tmp_path / directory / name).read_bytes() for directory in ("held", "wide"))
        assert one == two, name
    for stage in ("evaluate", "reward_model", "rlhf"):
        one, two = (
            runs.lines(tmp_path / name, "metrics.jsonl", stage) for name in ("held", "wide")
        )
        assert one == two, stage
