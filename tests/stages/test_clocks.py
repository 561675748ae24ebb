"""A sampler that is renewed every so many rounds, stages and a buffer in whole runs: recipes by the
command, what the ledger says, and runs that go on from a checkpoint.
"""

import dataclasses
import shutil

import pytest

from rlhf_jax.algorithms import rloo
from rlhf_jax.cli import run as command
from rlhf_jax.devices import mesh
from rlhf_jax.refusal import Refusal
from rlhf_jax.stages.settings import rlhf

from . import runs

CONFIG = rlhf.Config(total_prompts=32, prompts_per_update=4)
PROMPTS = runs.SIZES["rlhf.prompts_per_update"]


def run(directory, algorithm: str, *overrides: str) -> None:
    """`rlhf-jax run quickstart:algorithm=... --config.KEY=VALUE ...` in the smallest sizes."""
    sizes = [f"{key}={value}" for key, value in runs.SIZES.items()]
    constant = ["rlhf.optimizer.schedule=constant", f"directory={directory}"]
    given = [f"--config.{text}" for text in (*sizes, *constant, *overrides)]
    command.main(["run", f"quickstart:algorithm={algorithm}", *given])


SEMI_ONLINE = ("rlhf.lag=0", "rlhf.sync_every=4")
"""Semi-online DPO: Lanchantin et al. 2025 (arXiv 2506.21495)."""
TBA = ("rlhf.lag=1", "rlhf.sync_every=2", "rlhf.buffer_rounds=3")
"""Trajectory balance with asynchrony (arXiv 2503.18929) is CoPG, a buffer and a sampler behind."""


@pytest.fixture(scope="module")
def semi_online(tmp_path_factory):
    directory = tmp_path_factory.mktemp("clocks") / "semi_online"
    run(directory, "online_dpo", *SEMI_ONLINE)
    return directory


@pytest.fixture(scope="module")
def tba(tmp_path_factory):
    directory = tmp_path_factory.mktemp("clocks") / "tba"
    run(directory, "copg", *TBA)
    return directory


def test_semi_online_dpo_has_the_versions_and_ages_of_its_clock(semi_online, tmp_path):
    """Eight rounds, renewed every four. Its ledger repeats it in threads."""
    rows = runs.lines(semi_online, "ledger.jsonl")
    assert [rows[8 * r]["version"] for r in range(8)] == [0, 0, 0, 0, 4, 4, 4, 4]
    assert all(set(row["ages"]) <= {row["round"] % 4} for row in rows)
    assert sum(bool(row["ages"]) for row in rows) > len(rows) / 2
    updates = [line for line in runs.lines(semi_online, "metrics.jsonl") if "age" in line]
    assert [line["age"] for line in updates] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert [line["age_max"] for line in updates] == [0, 1, 2, 3, 0, 1, 2, 3]
    replayed = tmp_path / "replayed"
    run(
        replayed,
        "online_dpo",
        *SEMI_ONLINE,
        f"rlhf.replay_schedule_of={semi_online}",
        "rlhf.loop=asynchronous",
        f"begin={semi_online}",
    )
    assert not runs.differences(semi_online, replayed)


def test_a_buffered_round_has_groups_of_several_rounds_with_their_ages(tba):
    """A row for each use: of a sampled round of the window, with that round's version, at the age of
    the use; a sample that is drawn again is the same sample.
    """
    rows = runs.lines(tba, "ledger.jsonl")
    config = dataclasses.replace(CONFIG, lag=1, sync_every=2, buffer_rounds=3)
    clock, seen = config.schedule(), {}
    assert len(rows) == 8 * PROMPTS * 2
    for row in rows:
        source = row["ordinal"] // PROMPTS
        assert source in clock.window(row["round"])
        assert row["version"] == clock.version(source)
        assert row["ages"] == [row["round"] - row["version"]]
        same = {key: row[key] for key in ("text", "length", "behavior_logprob", "raw", "version")}
        assert seen.setdefault((row["ordinal"], row["sample"]), same) == same
    of_round = [{row["ordinal"] // PROMPTS for row in rows if row["round"] == r} for r in range(8)]
    assert sum(len(sources) > 1 for sources in of_round) >= 4
    assert len(seen) < len(rows), "some group was drawn twice"
    updates = [line for line in runs.lines(tba, "metrics.jsonl") if "age" in line]
    oldest = [max(row["ages"][0] for row in rows if row["round"] == r) for r in range(8)]
    assert [line["age_max"] for line in updates] == oldest
    assert max(oldest) <= clock.max_age == 4


@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_buffer_goes_on_from_any_checkpoint(tba, tmp_path, step):
    """In threads: the rounds of the window before it are read again, though they were trained on."""
    cut = shutil.copytree(tba, tmp_path / "cut")
    for later in (later for later in runs.steps(cut) if later > step):
        shutil.rmtree(cut / "checkpoints" / "rlhf" / str(later))
    run(cut, "copg", *TBA, "rlhf.loop=asynchronous")
    assert not runs.differences(tba, cut)


def test_a_checkpoint_without_a_round_of_its_window_is_passed_over(tba, tmp_path, capfd):
    """Version 5 trains on rounds 3 to 5 next; without round 3 the run goes on from version 2."""
    cut = shutil.copytree(tba, tmp_path / "cut")
    for later in (later for later in runs.steps(cut) if later > 5):
        shutil.rmtree(cut / "checkpoints" / "rlhf" / str(later))
    (cut / "rounds" / "00000003.npz").unlink()
    run(cut, "copg", *TBA)
    assert "00000003.npz is missing" in capfd.readouterr().err
    assert not runs.differences(tba, cut)


def test_rounds_are_kept_as_long_as_their_window(tmp_path):
    """With the newest checkpoint alone, those that a longer run would train on are left at the end:
    of a window of three, two. The longer run is then the one that was longer from the start.
    """
    buffered = ("rlhf.lag=0", "rlhf.buffer_rounds=3", "rlhf.buffer_draw=permutation")
    few = (*buffered, "rlhf.checkpoint_every=0", "rlhf.keep_checkpoints=1")
    run(tmp_path / "grown", "copg", *few, "rlhf.total_prompts=20")
    left = sorted(path.name for path in (tmp_path / "grown" / "rounds").iterdir())
    assert left == ["00000003.npz", "00000004.npz"]
    for name in ("grown", "long"):
        run(tmp_path / name, "copg", *few)
    assert runs.same(runs.state(tmp_path / "grown"), runs.state(tmp_path / "long"))
    ledgers = [runs.lines(tmp_path / name, "ledger.jsonl") for name in ("grown", "long")]
    assert ledgers[0] == ledgers[1]


def check(**changes):
    config = dataclasses.replace(CONFIG, **changes)
    rlhf.check(config, rloo.rloo(rloo.Config()), mesh.make_mesh(mesh.Config(data=1)))


def test_combinations_that_are_defined():
    """Slots that drain after a round, slices, minibatches and epochs go with each of these clocks."""
    slots = {"engine": "slots", "num_slots": 16}
    for clock in (
        {"sync_every": 3, "lag": 2},
        {"sync_every": 100},
        {"sync_every": 4, "staged": "in_order"},
        {"sync_every": 2, "staged": "shuffled"},
        {"buffer_rounds": 100, "lag": 1, "sync_every": 2},
        {"buffer_rounds": 2, "version_schedule": (0,) * 8},
    ):
        check(**clock)
        check(**clock, **slots)
        check(**clock, loop="asynchronous", num_epochs=2, prompts_per_update=2, num_minibatches=2)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"sync_every": 2, "clock": "bounded", "loop": "asynchronous"},
            "sync_every is 2 beside clock=bounded",
        ),
        (
            {"buffer_rounds": 2, "engine": "slots", "weights": "inflight"},
            "buffer_rounds is 2 beside weights=inflight",
        ),
        ({"staged": "shuffled", "sync_every": 3}, "sync_every=3, .* run's 8 rounds"),
        (
            {"staged": "shuffled", "sync_every": 2, "replay_schedule_of": "runs/other"},
            "rlhf.staged is 'shuffled' beside rlhf.replay_schedule_of='runs/other'",
        ),
        (
            {"buffer_rounds": 2, "replay_schedule_of": "runs/other"},
            "rlhf.buffer_rounds is 2 beside rlhf.replay_schedule_of",
        ),
    ],
)
def test_combinations_that_are_not_defined_are_refused_by_name(changes, named):
    with pytest.raises(Refusal, match=named):
        check(**changes)


def test_a_plan_says_what_its_seconds_are_of():
    def said(**changes):
        return rlhf.advice(dataclasses.replace(CONFIG, **changes), 24)

    assert said() == said(sync_every=4, loop="asynchronous") == ""  # its seconds follow the clock
    assert said(sync_every=4, staged="in_order", loop="asynchronous") == ""
    assert "up to 3 rounds are held" in said(buffer_rounds=3)
