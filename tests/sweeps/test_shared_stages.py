"""Cells of a grid are checked before any runs, and agree on a stage where what enters it agrees."""

from functools import cache

import pytest

from configs import tiny
from rlhf_jax.cli import run
from rlhf_jax.refusal import Refusal
from rlhf_jax.sweeps import checked_cells, grid

LAG, BETA = "rlhf.lag", "algorithm.beta"


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """Checks the cells of `KEY=VALUES` over the smallest config, with overrides of all."""
    unused = str(tmp_path_factory.mktemp("sweep") / "none")

    @cache
    def cells(*texts, seeds=(0,), fixed=()):
        settings = list(grid.settings(grid.parse(texts)))

        def read(setting):
            return run.overridden(tiny.get_config(), [*fixed, *setting])

        return checked_cells.check(read, settings, seeds, unused)

    return cells


def test_another_beta_or_lag_shares_both_stages_and_another_seed_none(check):
    cells = check(f"{BETA}=0.1,0.5", f"{LAG}=0,2", seeds=(0, 1))
    assert [cell.seed for cell in cells] == [0, 0, 0, 0, 1, 1, 1, 1]
    of_seeds = [{tuple(cell.shared.items()) for cell in cells if cell.seed == s} for s in (0, 1)]
    assert [len(shared) for shared in of_seeds] == [1, 1]
    assert not of_seeds[0] & of_seeds[1]
    assert len({cell.identity for cell in cells}) == 8
    assert cells[0].updates["rlhf"] == 8


@pytest.mark.parametrize(
    ("text", "num_sft", "num_reward_models"),
    [
        ("reward_model.num_updates=4,6", 1, 2),
        ("sft.optimizer.learning_rate=1e-3,2e-3", 2, 2),
        ("sft.num_micro_batches=1,2", 2, 2),
        ("lengths.max_completion_tokens=26,27", 2, 2),
        ("sft.checkpoint_every=10,20", 1, 1),
        ("evaluate.num_prompts=16,32", 1, 1),
    ],
)
def test_a_stage_is_shared_unless_a_key_enters_its_numbers(check, text, num_sft, num_reward_models):
    cells = check(text)
    assert len({cell.shared["sft"] for cell in cells}) == num_sft
    assert len({cell.shared["reward_model"] for cell in cells}) == num_reward_models
    assert list(cells[0].shared) == ["sft", "reward_model"]


def test_a_run_takes_no_stage_that_it_does_not_need(check):
    assert list(check(fixed=("--config.reward=gold",))[0].shared) == ["sft"]
    assert check(fixed=("--config.job=sft",))[0].shared == {}


def test_prompt_values_are_shared_where_an_algorithm_needs_them(check):
    """Another β or lag shares them; another temperature or number of prompts does not, and shares
    the stages before.
    """
    fixed = ("--config.algorithm.name=a2po",)
    for text, count in (
        ("algorithm.baseline_temperature=0.5,1.0", 1),
        (f"{LAG}=0,2", 1),
        ("rlhf.temperature=0.5,1.0", 2),
        ("rlhf.total_prompts=32,64", 2),
    ):
        cells = check(text, fixed=fixed)
        assert list(cells[0].shared) == ["sft", "reward_model", "prompt_values"]
        assert len({cell.shared["prompt_values"] for cell in cells}) == count
        assert len({cell.shared["reward_model"] for cell in cells}) == 1


def test_other_code_of_a_task_makes_other_stages_and_that_of_a_reward_none(check, monkeypatch):
    (before,) = check()
    own_code = checked_cells.build.checked.__globals__["stored_config"].own_code
    for name, changed in (("code.task", ["sft", "reward_model"]), ("code.reward.brevity", [])):
        monkeypatch.setattr(own_code, "of_sources", lambda values, name=name: {name: "abc"})
        (after,) = check(fixed=(f"--config.directory={name}",))
        differing = [
            stage for stage in before.shared if before.shared[stage] != after.shared[stage]
        ]
        assert differing == changed
        assert after.identity == before.identity


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ((f"{LAG}=0,1", "algorithm.betta=0.1"), "no key 'betta'; did you mean 'beta'"),
        ((f"{LAG}=0,x",), r"rlhf.lag is 'x'; accepted: int"),
        ((f"{LAG}=0,-1",), r"rlhf.lag=-1: .*lag"),
        ((f"{BETA}=0.5,0.50",), "same config: beta=0.5 seed=0 and beta=0.50 seed=0"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(check, texts, message):
    with pytest.raises(Refusal, match=message) as refused:
        check(*texts)
    assert len(refused.value.messages) == 1
