"""In-flight updates in a whole run: which settings are defined, and a run in threads that goes on
from a checkpoint is the simulated one that never stopped.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.bench.kill import untimed
from rlhf_jax.algorithms import rloo
from rlhf_jax.building import running
from rlhf_jax.devices import mesh
from rlhf_jax.refusal import Refusal
from rlhf_jax.stages.settings import rlhf

from . import runs

INFLIGHT = rlhf.Config(
    engine="slots", weights="inflight", total_prompts=32, prompts_per_update=4, lag=1
)
SETTINGS = {
    "algorithm": "rloo",
    "rlhf__engine": "slots",
    "rlhf__weights": "inflight",
    "rlhf__num_slots": 6,
    "rlhf__segment_steps": 2,
    "rlhf__tau": 3,
    "rlhf__lag": 1,
    "rlhf__evaluate_every": 0,
    "rlhf__optimizer__learning_rate": 0.02,
    "rlhf__scoring__replace_missing_eos": False,
}


def check(**changes):
    config = dataclasses.replace(INFLIGHT, **changes)
    rlhf.check(config, rloo.rloo(rloo.Config()), mesh.make_mesh(mesh.Config(data=1)))


def test_settings_that_are_defined():
    check()
    check(lag=0, num_slots=16, tau=40, rebuild_every=2)
    check(clock="bounded", loop="asynchronous")
    check(engine="static", weights="round")
    check(weights="round", num_slots=16, clock="bounded", loop="asynchronous")
    check(weights="round", num_slots=4, version_schedule=(0,) * 8)
    check(weights="pinned", tau=4)
    check(sampler_slices=2, num_slots=16)
    check(sampler_slices=2, num_slots=16, weights="pinned")
    check(sampler_slices=2, num_slots=8, weights="round", clock="bounded", loop="asynchronous")
    assert rlhf.stream(INFLIGHT).rows_per_round == 16


def test_a_plan_is_told_the_lag_from_which_slots_are_full():
    """C 24, tau 8, B 16, mean length 12, S 32: 32 / (16 * 12 / 32) = 5.33 rounds."""
    config = dataclasses.replace(INFLIGHT, tau=8)
    assert "rlhf.lag=6 on" in rlhf.advice(config, 24, (8, 16))
    assert "(24 + 8) / (16 * 12 / 32); this run has 1." in rlhf.advice(config, 24, (8, 16))
    assert "rlhf.lag=3 on" in rlhf.advice(config, 24)
    assert "static batches" in rlhf.advice(dataclasses.replace(config, weights="round"), 24)
    assert rlhf.advice(rlhf.Config(), 24) == ""


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"engine": "static"}, "rlhf.weights is 'inflight' with rlhf.engine='static'"),
        (
            {"engine": "static", "weights": "pinned"},
            "rlhf.weights is 'pinned' with rlhf.engine='static'",
        ),
        ({"weights": "pinned", "rebuild_every": 1}, "rlhf.rebuild_every is 1"),
        ({"weights": "pinned", "num_slots": 33}, "rlhf.num_slots is 33, and at most 32 rows"),
        ({"weights": "pinned", "clock": "bounded"}, "weights=pinned beside clock=bounded"),
        ({"weights": "pinned", "version_schedule": (0,) * 8}, "weights=pinned beside version_sch"),
        ({"weights": "round", "rebuild_every": 2}, "rlhf.rebuild_every is 2"),
        ({"weights": "round"}, "rlhf.num_slots is 32, and at most 16 rows"),
        ({"engine": "static", "weights": "round", "tau": 5}, "rlhf.tau is 5"),
        ({"engine": "static", "weights": "round", "rebuild_every": 1}, "rlhf.rebuild_every is 1"),
        ({"clock": "bounded", "loop": "asynchronous", "tau": 2}, "rlhf.tau is 2 with rlhf.clock"),
        ({"num_slots": 33}, "rlhf.num_slots is 33, and at most 32 rows"),
        ({"version_schedule": (0,) * 8}, "a version schedule gives every round one version"),
        (
            {"sampler_slices": 2, "clock": "bounded", "loop": "asynchronous"},
            "rlhf.clock is 'bounded' with rlhf.weights='inflight' and rlhf.sampler_slices=2",
        ),
        (
            {"sampler_slices": 2, "num_slots": 17},
            "rlhf.num_slots is 17, and at most 16 rows can be written at once on each of 2 slices",
        ),
        ({"sampler_slices": 3, "num_slots": 8}, "4 prompts, which 3 sampler slice"),
    ],
)
def test_other_combinations_are_refused_by_name(changes, named):
    with pytest.raises(Refusal, match=named):
        check(**changes)


@pytest.mark.parametrize("rank", [0, 2])
def test_pinned_rows_need_adapters(tmp_path, rank):
    changes = {"rlhf__engine": "slots", "rlhf__weights": "pinned", "rlhf__num_slots": 8}
    values = runs.config(tmp_path, **changes, lora__rank=rank).to_dict()
    if rank:
        return running.check_settings(values)
    with pytest.raises(Refusal, match=r"rlhf.weights is 'pinned' with lora.rank=0"):
        running.check_settings(values)
    return None


def lines(directory: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


RECORDS = ("ledger.jsonl", "samples.jsonl", "schedule.jsonl")


def assert_same(one: Path, other: Path, names: tuple[str, ...] = RECORDS) -> None:
    for state, again in zip(runs.state(one), runs.state(other), strict=True):
        np.testing.assert_array_equal(state, again)
    assert untimed(one / "metrics.jsonl") == untimed(other / "metrics.jsonl")
    for name in names:
        assert lines(one, name) == lines(other, name), name


def test_rounds_through_slots_have_the_lag_of_the_clock(tmp_path):
    """weights=round: one version a round, by the clock of rounds; a run that goes on is bitwise one
    that never stopped.
    """
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = SETTINGS | {"rlhf__weights": "round", "rlhf__tau": 0}
    runs.run(whole, **settings)
    rows = lines(whole, "ledger.jsonl")
    assert all(row["version"] == max(0, row["round"] - 1) for row in rows)
    assert not any("versions" in row for row in rows)
    shutil.copytree(whole, cut)
    for step in (step for step in runs.steps(cut) if step > 3):
        shutil.rmtree(cut / "checkpoints" / "rlhf" / str(step))
    runs.run(cut, **settings | {"rlhf__loop": "asynchronous"})
    assert_same(whole, cut, ("ledger.jsonl", "samples.jsonl"))


@pytest.mark.parametrize(
    ("rebuild_every", "lora"), [(0, 0), (1, 0), (0, 3)], ids=["0", "1", "adapters"]
)
def test_a_run_in_threads_goes_on_as_the_simulated_one(tmp_path, rebuild_every, lora):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = SETTINGS | {"rlhf__rebuild_every": rebuild_every, "lora__rank": lora}
    runs.run(whole, **settings)
    timings = [line for line in lines(whole, "metrics.jsonl") if line.get("kind") == "timing"]
    (later,) = [line["later_programs"] for line in timings if line["stage"] == "rlhf"]
    assert later == 0, "a program is compiled after the first round"
    updates = [line for line in lines(whole, "metrics.jsonl") if "mixed_share" in line]
    assert all(1 / 6 <= line["slots_busy"] <= 1 for line in updates), "of 6 slots"
    assert len({line["slots_busy"] for line in updates}) > 1
    mixed = [row for row in lines(whole, "ledger.jsonl") if "versions" in row]
    assert len(mixed) >= 0.3 * len(lines(whole, "ledger.jsonl"))
    shutil.copytree(whole, cut)
    for step in (step for step in runs.steps(cut) if step > 3):
        shutil.rmtree(cut / "checkpoints" / "rlhf" / str(step))
    has_cache = [name.endswith("keys.0") for name in np.load(cut / "stream" / "00000003.npz")]
    assert any(has_cache) == (rebuild_every == 0)
    runs.run(cut, **settings | {"rlhf__loop": "asynchronous"})
    assert runs.steps(cut) == runs.steps(whole)
    assert_same(whole, cut)


def test_a_schedule_is_replayed_to_the_same_bits(tmp_path):
    """By the boundaries of `schedule.jsonl`, whatever tau says."""
    whole, replayed = tmp_path / "whole", tmp_path / "replayed"
    runs.run(whole, **SETTINGS)
    again = {"rlhf__tau": 0, "rlhf__replay_schedule_of": str(whole), "begin": str(whole)}
    runs.run(replayed, **SETTINGS | again)
    for state, other in zip(runs.state(whole), runs.state(replayed), strict=True):
        np.testing.assert_array_equal(state, other)
    assert lines(whole, "schedule.jsonl") == lines(replayed, "schedule.jsonl")


def test_slots_are_counted_before_anything_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_jax.devices.memory.free_bytes", lambda device: 1000)
    with pytest.raises(Refusal, match=r"GB each, and the slots 0\.\d+ GB, and 1 sampled "):
        runs.run(tmp_path, **SETTINGS)


def test_pinned_rows_go_on_in_threads_with_the_lag_of_the_clock(tmp_path):
    """One version a round, the exact lag's, though slots never drain; a run in threads that goes on
    from a checkpoint is bitwise the simulated one that never stopped.
    """
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = SETTINGS | {"rlhf__weights": "pinned", "lora__rank": 3}
    runs.run(whole, **settings)
    timings = [line for line in lines(whole, "metrics.jsonl") if line.get("kind") == "timing"]
    (later,) = [line["later_programs"] for line in timings if line["stage"] == "rlhf"]
    assert later == 0, "a program is compiled after the first round"
    rows = lines(whole, "ledger.jsonl")
    assert all(row["version"] == max(0, row["round"] - 1) for row in rows)
    assert not any("versions" in row for row in rows)
    begun = [line for line in lines(whole, "schedule.jsonl") if line["rows"]]
    per_round = len(rows) // (1 + max(row["round"] for row in rows))
    assert any(line["rows"][0] % per_round for line in begun), "the slots drain between rounds"
    shutil.copytree(whole, cut)
    for step in (step for step in runs.steps(cut) if step > 3):
        shutil.rmtree(cut / "checkpoints" / "rlhf" / str(step))
    names = list(np.load(cut / "stream" / "00000003.npz"))
    assert len({name.split(".")[1] for name in names if name.startswith("versions.")}) == 2
    runs.run(cut, **settings | {"rlhf__loop": "asynchronous"})
    assert runs.steps(cut) == runs.steps(whole)
    assert_same(whole, cut)


def test_several_processes_are_refused_by_name(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(Refusal, match=r"rlhf.engine is 'slots' with rlhf.weights='round' on 2 pro"):
        check(weights="round", num_slots=16)
    check(num_slots=16)
    with pytest.raises(Refusal, match=r"num_slots is 17, .* on each of 2 slices"):
        check(num_slots=17)
    with pytest.raises(Refusal, match="the slots of 2 processes cannot share"):
        check(num_slots=8, prompts_per_update=5, total_prompts=40)


SLICED = {"rlhf__sampler_slices": 2, "rlhf__num_slots": 4, "mesh__data": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rlhf__rebuild_every": 1, "rlhf__sampler_slice_devices": 2},
        {"rlhf__weights": "pinned", "lora__rank": 3},
        {"rlhf__weights": "round", "rlhf__tau": 0},
    ],
    ids=["keep", "rebuild", "pinned", "round"],
)
def test_slices_in_threads_go_on_as_the_simulated_loop(tmp_path, changes):
    """Two slices of devices in one process, which go on from a checkpoint in threads: bitwise the
    run of the simulated loop that never stopped.
    """
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings, streams = SETTINGS | SLICED | changes, changes.get("rlhf__weights") != "round"
    runs.run(whole, **settings)
    timings = [line for line in lines(whole, "metrics.jsonl") if line.get("kind") == "timing"]
    (later,) = [line["later_programs"] for line in timings if line["stage"] == "rlhf"]
    assert later == 0, "a program is compiled after the first round"
    rows = lines(whole, "ledger.jsonl")
    if "rlhf__weights" not in changes:
        assert len([row for row in rows if "versions" in row]) >= 0.3 * len(rows)
    shutil.copytree(whole, cut)
    for step in (step for step in runs.steps(cut) if step > 3):
        shutil.rmtree(cut / "checkpoints" / "rlhf" / str(step))
    if streams:
        names = np.load(cut / "stream" / "00000003.npz").files
        assert {name.split(".")[0] for name in names} >= {"slice0", "slice1"}
    runs.run(cut, **settings | {"rlhf__loop": "asynchronous"})
    assert runs.steps(cut) == runs.steps(whole)
    assert_same(whole, cut, RECORDS if streams else RECORDS[:2])
    if streams:
        shutil.rmtree(cut / "checkpoints" / "rlhf" / str(runs.steps(cut)[-1]))
        with pytest.raises(Refusal, match=r"those of 2 slice\(s\), and this run has 1"):
            runs.run(cut, **settings | {"rlhf__sampler_slices": 0})
