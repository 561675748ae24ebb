"""A tiny pipeline killed six times with SIGKILL and started again ends bitwise as one that was
never killed.
"""

import json
import shutil
import signal
from pathlib import Path

import pytest

from experiments.bench import kill

MOMENTS = 6
THREADS = "rlhf.loop=asynchronous"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kill")


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    """A run that was never killed. It fills the compile cache that the others share."""
    kill.finish(kill.start(folder / "whole", folder / "cache"))
    return folder / "whole"


def test_six_kills_change_nothing(folder, whole):
    """One directory with a sampling thread, killed at six seeded moments spread over the run, each
    time started again: it ends as the synchronous run that never was.
    """
    directory, stages = folder / "killed", []
    for lines, delay in kill.moments(kill.num_lines(whole), MOMENTS, seed=0):
        process = kill.start(directory, folder / "cache", THREADS)
        assert kill.kill_at(process, directory, lines, delay), "it ended before"
        stages.append(kill.stage_at(directory))
    assert len(set(stages)) > 2, f"the kills should be spread over the stages, and fell in {stages}"
    kill.finish(kill.start(directory, folder / "cache", THREADS))
    assert json.loads((directory / "config.json").read_text())["rlhf"]["loop"] == "asynchronous"
    assert not kill.differences(whole, directory)


@pytest.mark.usefixtures("whole")  # its programs are compiled, and found in the cache
def test_three_kills_of_a_buffered_run_change_nothing(folder):
    """A replay buffer and a sampler that is renewed every other round, killed three times in RLHF,
    with and without a sampling thread: rounds of the buffer are read from their files again.
    """
    buffered, directory = folder / "buffered", folder / "buffered_killed"
    kill.finish(kill.start_buffered(buffered, folder / "cache"))
    end = kill.num_lines(buffered)
    for lines, loop in (
        (end - 26, THREADS),
        (end - 16, "rlhf.loop=synchronous"),
        (end - 6, THREADS),
    ):
        process = kill.start_buffered(directory, folder / "cache", loop)
        assert kill.kill_at(process, directory, lines, 0.0), "it ended before"
        assert kill.stage_at(directory) in ("rlhf", "evaluate")
    kill.finish(kill.start_buffered(directory, folder / "cache", THREADS))
    assert not kill.differences(buffered, directory)


def test_an_interrupted_run_says_so_and_goes_on(folder, whole):
    """Ctrl-C in the middle of RLHF: status 130, no traceback, the round that was under way is
    saved, and nothing is lost.
    """
    directory = folder / "interrupted"
    interrupt(
        directory, folder, kill.num_lines(whole) - 30, signal.SIGINT
    )  # RLHF has just begun: it cannot be too late
    steps = [
        int(path.name)
        for path in (directory / "checkpoints" / "rlhf").iterdir()
        if path.name.isdigit()
    ]
    assert max(steps) == last_update(directory) + 1, "what was trained until the signal is saved"
    kill.finish(kill.start(directory, folder / "cache"))
    assert not kill.differences(whole, directory)


def interrupt(directory: Path, folder: Path, lines: int, number: int, *overrides: str) -> None:
    """Begins a run and sends it a signal when its metrics have so many lines."""
    process = kill.start(directory, folder / "cache", *overrides)
    kill.wait_for(process, directory, lines)
    process.send_signal(number)
    _, errors = process.communicate(timeout=kill.LIMIT_SECONDS)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert (
        f"{signal.Signals(number).name}: the round or update under way is finished and saved"
        in errors
    )
    assert "interrupted; the same command goes on" in errors


def last_update(directory: Path) -> int:
    """The last update of RLHF that stands in metrics.jsonl."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return max(line["update"] for line in lines if line["stage"] == "rlhf" and "update" in line)


def test_preemption_of_the_threads_and_of_sft_saves_and_loses_nothing(folder, whole):
    """SIGTERM in SFT, then, started again, in RLHF with a sampling thread: each saves and stops,
    and the end is the same.
    """
    directory = folder / "preempted"
    interrupt(directory, folder, 3, signal.SIGTERM, THREADS)
    assert kill.stage_at(directory) == "sft"
    interrupt(directory, folder, kill.num_lines(whole) - 30, signal.SIGTERM, THREADS)
    assert kill.stage_at(directory) in ("rlhf", "evaluate")
    kill.finish(kill.start(directory, folder / "cache", THREADS))
    assert not kill.differences(whole, directory)


def test_a_bounded_run_that_was_killed_is_repeated_by_its_ledger(folder, whole):
    """Which versions it takes depends on the machine; every sample is trained on once, within the
    bound, and the trace of it all gives the same run without any thread.
    """
    directory, repeated, bounded = (
        folder / "bounded",
        folder / "replayed",
        (THREADS, "rlhf.clock=bounded", "rlhf.lag=2"),
    )
    assert kill.kill_at(
        kill.start(directory, folder / "cache", *bounded),
        directory,
        kill.num_lines(whole) - 20,
        0.0,
    )
    kill.finish(kill.start(directory, folder / "cache", *bounded))
    rows = [json.loads(line) for line in (directory / "ledger.jsonl").read_text().splitlines()]
    samples = [(row["ordinal"], row["sample"]) for row in rows]
    assert samples == sorted(set(samples)), "each sample once, in order"
    assert {row["ordinal"] for row in rows} == set(range(96))
    assert max(age for row in rows for age in row["ages"]) <= 2 * 3 - 1
    kill.finish(
        kill.start(repeated, folder / "cache", "rlhf.lag=2", f"rlhf.replay_schedule_of={directory}")
    )
    assert not kill.differences(directory, repeated)


def test_the_synchronous_loop_is_killed_too(folder, whole):
    directory = folder / "alone"
    assert kill.kill_at(
        kill.start(directory, folder / "cache"), directory, kill.num_lines(whole) - 20, 0.0
    )
    kill.finish(kill.start(directory, folder / "cache"))
    assert not kill.differences(whole, directory)


def test_offline_dpo_killed_before_and_after_its_first_checkpoint_ends_the_same(folder, whole):
    """Its SFT policy and its comparisons are those of the run that was never killed."""
    begin, expected, directory = f"begin={whole}", folder / "dpo", folder / "dpo_killed"
    kill.finish(kill.start_dpo(expected, folder / "cache", begin))
    assert kill.untimed(expected / "metrics.jsonl")[-1]["of"] == "dpo"
    for lines, has_checkpoint in ((1, False), (17, True)):
        process = kill.start_dpo(directory, folder / "cache", begin)
        assert kill.kill_at(process, directory, lines, 0.0), "it ended before"
        saved = [path.name for path in (directory / "checkpoints" / "dpo").glob("[0-9]*")]
        assert ("4" in saved) == has_checkpoint, saved
    kill.finish(kill.start_dpo(directory, folder / "cache", begin))
    assert not kill.differences(expected, directory, ("dpo",))


def test_a_finished_run_trains_nothing_when_it_is_started_again(folder, whole):
    files = [whole / "metrics.jsonl", whole / "samples.jsonl"]
    before = [path.read_bytes() for path in files]
    kill.finish(kill.start(whole, folder / "cache"))
    assert [path.read_bytes() for path in files] == before


def test_the_comparison_sees_a_change(folder, whole):
    """One figure of metrics.jsonl, one sample, one array of a checkpoint."""
    changed = folder / "changed"
    shutil.copytree(whole, changed)
    assert not kill.differences(whole, changed)
    lines = (changed / "metrics.jsonl").read_text().splitlines()
    last = max(place for place, line in enumerate(lines) if '"kind"' not in line)
    lines[last] = json.dumps(json.loads(lines[last]) | {"kl": -1.0})
    (changed / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with (changed / "samples.jsonl").open("a") as file:
        file.write("{}\n")
    shutil.rmtree(changed / "checkpoints" / "rlhf")
    shutil.copytree(whole / "checkpoints" / "sft", changed / "checkpoints" / "rlhf")
    assert kill.differences(whole, changed) == [
        "checkpoint of rlhf",
        "metrics.jsonl",
        "samples.jsonl",
    ]
