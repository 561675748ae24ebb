"""What a cell's line says of its reward: the spread within prompts, and the model's evaluation."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from rlhf_jax.runtime.synchronous import Scored
from rlhf_jax.sweeps.measures.reward_spread import RewardSpread, within_prompts
from rlhf_jax.sweeps.result import reward_model_of


def test_what_differs_between_prompts_is_not_counted():
    """Samples of a prompt that score alike have no spread, however far apart the prompts are."""
    assert within_prompts(np.array([3.0, 3.0, -9.0, -9.0]), 2) == 0.0
    # variances 1 and 9 of pairs, whose mean is 5
    assert within_prompts(np.array([1.0, 3.0, 100.0, 106.0]), 2) == pytest.approx(5**0.5)


def test_every_round_is_measured():
    measure = RewardSpread({})
    program = SimpleNamespace(spec=SimpleNamespace(sampling=SimpleNamespace(samples_per_prompt=2)))
    for index, gap in enumerate((1.0, 4.0)):
        scores = SimpleNamespace(raw_B=np.array([0.0, gap, 7.0, 7.0 + gap], np.float32))
        event = Scored(index, None, scores, None)  # pyright: ignore[reportArgumentType]
        measure.take(program, event)  # pyright: ignore[reportArgumentType]
    measure.take(program, "another event")  # pyright: ignore[reportArgumentType]
    assert measure.figures() == {"within_prompt_std": [0.5, 2.0]}


def test_the_last_evaluation_of_the_reward_model_is_kept(tmp_path):
    """Not that of the SFT policy, and not a run's first one after a restart."""
    assert reward_model_of(tmp_path) == {}
    lines = [
        {"stage": "evaluate", "of": "sft", "update": 4, "kl": 0.0},
        {"stage": "evaluate", "of": "reward_model", "update": 8, "seconds": 1.0}
        | {"heldout_accuracy": 0.5, "raw_mean": 0.0, "raw_std": 1.0},
        {"stage": "evaluate", "of": "reward_model", "update": 8, "seconds": 2.0}
        | {"heldout_accuracy": 0.75, "raw_mean": 0.25, "raw_std": 2.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = reward_model_of(tmp_path)
    assert found == {"heldout_accuracy": 0.75, "raw_mean": 0.25, "raw_std": 2.0}
