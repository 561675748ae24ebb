"""Runs whose reward gives another number each time it is asked: gone on with and replayed to the
same bits.
"""

import json
import shutil

import pytest

from rlhf_jax import build
from rlhf_jax.records import answers
from rlhf_jax.refusal import RewardError
from tests.stages import runs

FILE = """
import random
from dataclasses import dataclass
from pathlib import Path

from rlhf_jax.rewards.api import asked_once

LEFT = Path(__file__).with_name("calls_left")
ASKED = []

@dataclass(frozen=True)
class Config:
    scale: float = 1.0

@asked_once
def whim(prompts, completions):
    if LEFT.exists():
        if LEFT.read_text() == "0":
            raise OSError("the server is gone")
        LEFT.write_text(str(int(LEFT.read_text()) - 1))
    ASKED.extend(zip(prompts, completions))
    return [random.SystemRandom().random() for _ in completions]

def make(task, config: Config):
    @asked_once
    def mood(prompts, completions, finished, records):
        assert len(prompts) == len(completions) == len(finished) == len(records)
        return [config.scale * random.SystemRandom().random() for _ in completions]
    return mood
"""

SETTINGS = {"rlhf__checkpoint_every": 3, "rlhf__scoring__replace_missing_eos": False}
"""Checkpoints are rarer than rounds; a completion without EOS keeps the score that the reward gave
it.
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("kept")
    (place / "mine.py").write_text(FILE)
    return place


@pytest.fixture(scope="module")
def reward(folder):
    return f"{folder / 'mine.py'}:whim + 0.5 * {folder / 'mine.py'}"


@pytest.fixture(scope="module")
def stopped(folder, reward):
    """A run that ended in round 5, past its last checkpoint, and was gone on with to its end."""
    directory, left = folder / "stopped", folder / "calls_left"
    left.write_text("5")
    with pytest.raises(RewardError, match="whim raised in round 5: OSError: the server is gone"):
        runs.run(directory, reward=reward, **SETTINGS)
    left.unlink()
    before = stores(directory)
    steps = runs.steps(directory)
    runs.run(directory, reward=reward, **SETTINGS)
    after = stores(directory)
    assert max(steps) < 8, "it was stopped"
    assert all(after[name].startswith(text) for name, text in before.items()), (
        "answers are appended alone"
    )
    return directory


def stores(directory):
    """Texts of the files of answers by name."""
    return {
        path.name: path.read_text() for path in sorted((directory / answers.FOLDER).glob("*.jsonl"))
    }


def test_two_rewards_of_a_sum_have_a_store_each(stopped):
    whim, mood = sorted(stores(stopped), reverse=True)
    assert whim.startswith("whim-")
    assert mood.startswith("mine-")
    rows = [json.loads(line) for line in (stopped / "ledger.jsonl").read_text().splitlines()]
    found = {}
    for row in rows:
        found.setdefault((row["prompt_hash"], row["text"]), set()).add(row["terms"]["whim"])
    assert all(len(terms) == 1 for terms in found.values()), (
        "one answer for the same prompt and completion"
    )
    kept = answers.read(stopped / answers.FOLDER / whim)
    assert len(kept) == len(found)
    assert len(set(kept.values())) > 1


def test_an_uninterrupted_run_with_its_answers_is_the_same(folder, reward, stopped):
    whole = folder / "whole"
    shutil.copytree(stopped / answers.FOLDER, whole / answers.FOLDER)
    before = stores(whole)
    runs.run(whole, reward=reward, **SETTINGS)
    assert not runs.differences(stopped, whole)
    assert stores(whole) == before, "nothing was asked again"


def test_a_version_that_is_gone_back_to_ends_as_before(folder, reward, stopped):
    again = shutil.copytree(stopped, folder / "again")
    for step in runs.steps(again):
        if step > 3:
            shutil.rmtree(again / "checkpoints" / "rlhf" / str(step))
    before = stores(again)
    runs.run(again, reward=reward, **SETTINGS)
    assert not runs.differences(stopped, again)
    assert stores(again) == before


def test_without_its_answers_it_ends_otherwise(folder, reward, stopped):
    """The comparison sees what the store is for."""
    lost = shutil.copytree(stopped, folder / "lost")
    shutil.rmtree(lost / answers.FOLDER)
    for step in runs.steps(lost):
        if step > 3:
            shutil.rmtree(lost / "checkpoints" / "rlhf" / str(step))
    runs.run(lost, reward=reward, **SETTINGS)
    assert "checkpoint" in runs.differences(stopped, lost)


def test_a_replay_reads_the_answers_of_the_run_that_it_replays(folder, reward, stopped):
    """With the asynchronous loop; the answers are then its own, too."""
    replayed = folder / "replayed"
    settings = SETTINGS | {"rlhf__loop": "asynchronous"}
    runs.run(replayed, reward=reward, rlhf__replay_schedule_of=str(stopped), **settings)
    assert not runs.differences(stopped, replayed)
    for name, text in stores(replayed).items():
        assert sorted(text.splitlines()) == sorted(stores(stopped)[name].splitlines())


def test_answers_of_other_settings_are_not_read(folder, reward, stopped):
    """Another scale is another reward; its sibling's answers are read."""
    other = folder / "other"
    shutil.copytree(stopped / answers.FOLDER, other / answers.FOLDER)
    before = stores(other)
    changed = runs.config(other, reward=reward, rlhf__total_prompts=8, **SETTINGS)
    with changed.unlocked():
        changed.reward_settings = {"mine": {"scale": 2.0}}
    build.run(changed)
    after = stores(other)
    assert {name: after[name] for name in before} == before
    (new,) = after.keys() - before.keys()
    assert new.startswith("mine-")
