"""Grids of a command line: their values, settings, seeds and names."""

import pytest

from rlhf_jax.refusal import Refusal
from rlhf_jax.sweeps import grid


def test_settings_are_the_product_in_the_order_given():
    parsed = grid.parse(["rlhf.lag=0,1", "algorithm.beta=0.1,0.5"])
    settings = list(grid.settings(parsed))
    assert [list(setting.values()) for setting in settings] == [
        ["0", "0.1"],
        ["0", "0.5"],
        ["1", "0.1"],
        ["1", "0.5"],
    ]
    assert grid.overrides(settings[2]) == ["--config.rlhf.lag=1", "--config.algorithm.beta=0.1"]
    assert list(grid.settings({})) == [{}]


def test_a_comma_inside_of_brackets_is_part_of_a_value():
    assert grid.parse(["rlhf.evaluate_at=(1, 2),(4,)"]) == {"rlhf.evaluate_at": ("(1, 2)", "(4,)")}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["rlhf.lag"], "--grid is 'rlhf.lag'; accepted: KEY=VALUE,VALUE"),
        (["rlhf.lag="], "--grid is 'rlhf.lag='"),
        (["a=1,2", "a=3"], "has the key 'a' twice"),
        (["a=1,2,1"], "has the value '1' twice"),
        (["seed=0,1"], "--seeds=3"),
        (["directory=a,b"], "a directory of its own"),
    ],
)
def test_what_is_no_grid_is_refused(texts, message):
    with pytest.raises(Refusal, match=message):
        grid.parse(texts)


def test_seeds_are_a_number_or_a_list():
    assert grid.seeds("3") == [0, 1, 2]
    assert grid.seeds("5,2") == [5, 2]
    assert grid.seeds(None) is None
    for text in ("0", "x", "1,1", "-1", "", "1,"):
        with pytest.raises(Refusal, match="--seeds is"):
            grid.seeds(text)


def test_names_tell_cells_apart():
    """Two keys that end alike are named whole; a path gives no folders."""
    setting = {"sft.optimizer.learning_rate": "1e-3", "rlhf.optimizer.learning_rate": "1e-4"}
    assert grid.label(setting, 0).startswith("sft.optimizer.learning_rate=1e-3 rlhf.")
    assert grid.folder("reward=../my/reward.py seed=0", "abcdef0123") == (
        "reward=.._my_reward.py_seed=0-abcdef01"
    )
    assert "/" not in grid.folder("a=b/c", "0" * 16)
