"""The two places that figures go to say the same, before and after a resume."""

import math
import signal
import struct
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from rlhf_jax.records.metrics import MetricsWriter, read
from rlhf_jax.records.trackers import tensorboard
from rlhf_jax.records.trackers.api import Identity

IDENTITY = Identity(
    "a_run",
    {"algorithm.beta": 0.5, "best_of_n": (1, 2), "seed": 3},
    {"command": "rlhf-jax run | tee", "commit": "abc", "environment": {"versions": {"jax": "1"}}},
)


def events(directory: Path) -> list[Event]:
    """Records of a run's event files, as TensorBoard reads them: length (8), checksum (4), data,
    checksum (4). The rest of a file is not read after a torn one.
    """
    found = []
    for path in sorted(directory.glob("events*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            if len(data) < 16 + length:
                break
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def shown(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: (step, value) by tag; the start of a session drops what came before,
    from its step on.
    """
    tags: dict[str, list[tuple[int, float]]] = {}
    for event in events(directory):
        if event.session_log.status == SessionLog.START:
            tags = {
                tag: [pair for pair in pairs if pair[0] < event.step] for tag, pairs in tags.items()
            }
        for value in event.summary.value:
            tags.setdefault(value.tag, []).append((event.step, value.simple_value))
    return {tag: pairs for tag, pairs in tags.items() if pairs}


def with_tensorboard(directory: Path) -> MetricsWriter:
    make = partial(tensorboard.make, directory, IDENTITY)
    return MetricsWriter(directory, lambda: {"tensorboard": make})


def test_a_line_is_on_the_disk_when_write_returns(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "run")
    writer.write("rlhf", 0, {"loss": jnp.float32(0.5), "kl": np.float32(2), "n": 3}, seconds=1.5)
    writer.write("evaluate", 1, {"gold_mean": math.nan}, of="rlhf")
    writer.write_timing("rlhf", {"wall_seconds": 7.0, "compile_seconds": 3})
    first, second, third = read(tmp_path / "run" / "metrics.jsonl")
    assert first == {"stage": "rlhf", "update": 0, "seconds": 1.5, "loss": 0.5, "kl": 2.0, "n": 3}
    assert (second["stage"], second["of"], second["update"]) == ("evaluate", "rlhf", 1)
    assert math.isnan(second["gold_mean"])
    assert third == {"stage": "rlhf", "kind": "timing", "wall_seconds": 7.0, "compile_seconds": 3}
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_what_a_line_may_not_say(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    with pytest.raises(ValueError, match=r"may not be named \['seconds'\]"):
        writer.write("rlhf", 0, {"seconds": 3.0})
    with pytest.raises(ValueError, match="an evaluation says what it is of"):
        writer.write("evaluate", 0, {"kl": 3.0})
    with pytest.raises(ValueError, match="an evaluation says what it is of"):
        writer.write("rlhf", 0, {"kl": 3.0}, of="sft")
    with pytest.raises(ValueError, match=r"not \['wall'\]"):
        writer.write_timing("rlhf", {"wall": 3.0})
    assert not writer.path.exists()


def test_tensorboard_says_what_the_lines_say(tmp_path: Path) -> None:
    with with_tensorboard(tmp_path) as writer:
        for update in range(3):
            writer.write("sft", update, {"loss": 2.0 - update}, seconds=0.5)
        writer.write("evaluate", 3, {"gold_mean": 0.25, "kl": 0.5}, of="sft")
    assert shown(tmp_path / "tensorboard" / "sft") == {"sft/loss": [(0, 2.0), (1, 1.0), (2, 0.0)]}
    evaluated = shown(tmp_path / "tensorboard" / "evaluate_sft")
    assert evaluated == {"evaluate/gold_mean": [(3, 0.25)], "evaluate/kl": [(3, 0.5)]}


def test_a_resumed_run_shows_each_update_once(tmp_path: Path) -> None:
    killed = with_tensorboard(tmp_path)
    for update in range(5):
        killed.write("rlhf", update, {"loss": float(update)})
        killed.write("evaluate", update + 1, {"kl": float(update)}, of="rlhf")
    killed.write("sft", 7, {"loss": 7.0})
    killed.close()
    with killed.path.open("a") as file:
        file.write('{"stage": "rlhf", "upd')
    with with_tensorboard(tmp_path) as writer:
        writer.resume("rlhf", 3, evaluations_from=4)
        for update in range(3, 5):
            writer.write("rlhf", update, {"loss": 10.0 + update})
    left = [(line["stage"], line["update"]) for line in read(writer.path)]
    trained = [("rlhf", update) for update in range(5)]
    assert [pair for pair in left if pair[0] == "rlhf"] == trained
    assert [pair for pair in left if pair[0] == "evaluate"] == [
        ("evaluate", version) for version in (1, 2, 3)
    ]
    assert ("sft", 7) in left
    run = shown(tmp_path / "tensorboard" / "rlhf")["rlhf/loss"]
    assert run == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 13.0), (4, 14.0)]
    assert shown(tmp_path / "tensorboard" / "evaluate_rlhf")["evaluate/kl"] == [
        (1, 0.0),
        (2, 1.0),
        (3, 2.0),
    ]
    assert shown(tmp_path / "tensorboard" / "sft") == {"sft/loss": [(7, 7.0)]}


def test_events_that_a_kill_lost_are_written_again(tmp_path: Path) -> None:
    with with_tensorboard(tmp_path) as writer:
        writer.write("rlhf", 0, {"loss": 3.0})
        writer.write("rlhf", 1, {"loss": 5.0})
    for path in (tmp_path / "tensorboard" / "rlhf").iterdir():
        path.write_bytes(b"")  # the lines are written at once, the events only every few seconds
    with with_tensorboard(tmp_path) as writer:
        writer.resume("rlhf", 2)
    assert shown(tmp_path / "tensorboard" / "rlhf") == {"rlhf/loss": [(0, 3.0), (1, 5.0)]}


def num_written(directory: Path) -> int:
    """Lines that all event files of a series hold together, also those that are dropped."""
    return sum(event.HasField("summary") for event in events(directory))


def tell_rlhf(directory: Path, updates: range, evaluations: range, loss: float = 0.0) -> Path:
    """A process that goes on at the first of these updates, if it is not 0, and ends."""
    with with_tensorboard(directory) as writer:
        if updates.start:
            writer.resume("rlhf", updates.start)
        for update in updates:
            writer.write("rlhf", update, {"loss": loss + update, "kl": math.nan}, seconds=update)
        for version in evaluations:
            writer.write("evaluate", version, {"kl": loss + version}, of="rlhf")
    return directory / "tensorboard"


def test_a_resumed_run_writes_only_what_its_event_files_lack(tmp_path: Path) -> None:
    written = tell_rlhf(tmp_path, range(5), range(1, 3))
    for _ in range(2):
        tell_rlhf(tmp_path, range(5, 5), range(0))
    assert (num_written(written / "rlhf"), num_written(written / "evaluate_rlhf")) == (5, 2)
    tell_rlhf(tmp_path, range(5, 8), range(0))
    assert (num_written(written / "rlhf"), num_written(written / "evaluate_rlhf")) == (8, 2)
    assert shown(written / "rlhf")["rlhf/loss"] == [(step, step) for step in range(8)]


def test_a_run_that_is_cut_back_drops_what_it_makes_again(tmp_path: Path) -> None:
    """To a checkpoint before the last one. Updates with the same figures are not written again."""
    written = tell_rlhf(tmp_path, range(6), range(1, 7))
    tell_rlhf(tmp_path, range(3, 4), range(0))  # stopped before it is as far again
    assert shown(written / "rlhf")["rlhf/loss"] == [(step, step) for step in range(4)]
    assert shown(written / "evaluate_rlhf")["evaluate/kl"] == [(1, 1.0), (2, 2.0)]
    assert num_written(written / "rlhf") == 6
    tell_rlhf(tmp_path, range(2, 5), range(4, 5), loss=10.0)
    of_step = [(0, 0.0), (1, 1.0), (2, 12.0), (3, 13.0), (4, 14.0)]
    assert shown(written / "rlhf")["rlhf/loss"] == of_step
    assert num_written(written / "rlhf") == 9
    assert shown(written / "evaluate_rlhf")["evaluate/kl"] == [(1, 1.0), (4, 14.0)]


def test_lines_of_one_step_are_told_apart(tmp_path: Path) -> None:
    """As those of best-of-n: the second of three is lost, and the first is not dropped with it."""
    for lost in (True, False):
        with with_tensorboard(tmp_path) as writer:
            if not lost:
                writer.resume("best_of_n", 1, evaluations_from=1)
            for n in (1.0, 2.0, 4.0) if lost else ():
                writer.write("evaluate", 0, {"n": n}, of="best_of_n")
        if lost:
            lines = writer.path.read_text().splitlines(keepends=True)
            writer.path.write_text("".join([lines[0], lines[2]]))
    found = shown(tmp_path / "tensorboard" / "evaluate_best_of_n")["evaluate/n"]
    assert found == [(0, 1.0), (0, 4.0)]


def test_a_torn_event_is_written_again(tmp_path: Path) -> None:
    written = tell_rlhf(tmp_path, range(3), range(0))
    (file,) = (written / "rlhf").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    assert shown(written / "rlhf")["rlhf/loss"] == [(0, 0.0), (1, 1.0)]
    tell_rlhf(tmp_path, range(3, 4), range(0))
    assert shown(written / "rlhf")["rlhf/loss"] == [(step, step) for step in range(4)]
    assert num_written(written / "rlhf") == 4


def test_the_events_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    """It wrote the start of a session at step 0, and every line again."""
    written = tell_rlhf(tmp_path, range(3), range(0))
    tracker = tensorboard.make(tmp_path, IDENTITY)
    writer = tracker._open("rlhf")
    start = SessionLog(status=SessionLog.START)
    writer.write_event(Event(step=0, session_log=start))
    for step in range(3):
        tracker.log("rlhf", step, {"loss": float(step), "kl": math.nan}, None)
    tracker.close()
    tell_rlhf(tmp_path, range(3, 4), range(0))
    assert num_written(written / "rlhf") == 7
    assert shown(written / "rlhf")["rlhf/loss"] == [(step, step) for step in range(4)]


KILLED = """
import os, signal, sys
from functools import partial
from rlhf_jax.records.metrics import MetricsWriter
from rlhf_jax.records.trackers import tensorboard
from rlhf_jax.records.trackers.api import Identity

directory, begin, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
log = tensorboard.TensorBoard.log

def killed(self, series, step, figures, seconds):
    if step == last:
        os.kill(os.getpid(), signal.SIGKILL)
    log(self, series, step, figures, seconds)

tensorboard.TensorBoard.log = killed
make = partial(tensorboard.make, __import__("pathlib").Path(directory), Identity("run", {}, {}))
writer = MetricsWriter(directory, lambda: {"tensorboard": make})
writer.resume("rlhf", begin)
for update in range(begin, 9):
    writer.write("rlhf", update, {"loss": float(update)})
"""


def test_nothing_is_lost_by_kills_between_a_line_and_its_event(tmp_path: Path) -> None:
    """SIGKILL once the line is on the disk, and again in the process that goes on from version 2."""
    for begin, last in ((0, 3), (2, 5)):
        killed = [sys.executable, "-c", KILLED, str(tmp_path), str(begin), str(last)]
        assert subprocess.run(killed).returncode == -signal.SIGKILL
    with with_tensorboard(tmp_path) as writer:
        writer.resume("rlhf", 6)
    lines = [(line["update"], line["loss"]) for line in read(writer.path)]
    assert lines == [(step, step) for step in range(6)]
    assert shown(tmp_path / "tensorboard" / "rlhf")["rlhf/loss"] == lines
    assert num_written(tmp_path / "tensorboard" / "rlhf") == 6


def test_two_processes_of_one_second_do_not_overwrite_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1700000003.0)  # event files are named by the second
    for update in range(2):
        with with_tensorboard(tmp_path) as writer:
            writer.write("sft", update, {"loss": 3.0})
    assert shown(tmp_path / "tensorboard" / "sft") == {"sft/loss": [(0, 3.0), (1, 3.0)]}


def test_tensorboard_is_given_the_identity_of_the_run(tmp_path: Path) -> None:
    for update in range(2):
        with with_tensorboard(tmp_path) as writer:
            writer.write("sft", update, {"loss": 3.0})
    told = events(tmp_path / "tensorboard")
    values = [(event.step, value) for event in told for value in event.summary.value]
    tables = [
        (step, value.tensor.string_val[0].decode())
        for step, value in values
        if value.metadata.plugin_data.plugin_name == "text"
    ]
    assert [step for step, _ in tables] == [0, 1]  # one for each start
    assert "| command | rlhf-jax run \\| tee |" in tables[0][1]
    assert "| environment.versions.jax | 1 |" in tables[0][1]
    assert "| algorithm.beta | 0.5 |" in tables[0][1]
    parameters = [
        value.metadata.plugin_data.content
        for _, value in values
        if value.metadata.plugin_data.plugin_name == "hparams"
    ]
    assert any(b"algorithm.beta" in content for content in parameters)


class Failing:
    """A tracker whose calls raise from its third line on."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def log(self, series: str, step: int, figures: object, seconds: object) -> None:
        if len(self.told) == 2:
            raise ConnectionError("the network\nis away")
        self.told.append((series, step))

    def restart(self, series: str) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        raise ConnectionError("still away")


def test_a_tracker_that_fails_is_named_once_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = Failing()
    make = partial(tensorboard.make, tmp_path, IDENTITY)
    with MetricsWriter(tmp_path, lambda: {"mine": lambda: failing, "tensorboard": make}) as writer:
        for update in range(5):
            writer.write("rlhf", update, {"loss": 2.0})
    assert failing.told == [("rlhf", 0), ("rlhf", 1)]
    assert len(read(writer.path)) == 5
    assert len(shown(tmp_path / "tensorboard" / "rlhf")["rlhf/loss"]) == 5
    assert capsys.readouterr().err == (
        "note: the tracker mine failed at rlhf 2 and is left out from here on (ConnectionError: "
        "the network is away); metrics.jsonl has every figure\n"
    )


def test_a_tracker_may_fail_at_its_start_its_restart_and_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Failing:
        raise ConnectionError("no network")

    with MetricsWriter(tmp_path, lambda: {"start": broken, "end": Failing}) as writer:
        writer.write("sft", 0, {"loss": 2.0})
    with MetricsWriter(tmp_path, lambda: {"restart": Failing}) as writer:
        writer.resume("sft", 1)
        writer.write("sft", 1, {"loss": 2.0})
    assert [line["update"] for line in read(writer.path)] == [0, 1]
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in said] == [
        "note: the tracker start failed at its start and is left out from here on",
        "note: the tracker end failed at its end and is left out from here on",
        "note: the tracker restart failed at the stage sft and is left out from here on",
    ]


def test_an_interrupt_in_a_tracker_is_no_failure(tmp_path: Path) -> None:
    def interrupted() -> Failing:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        MetricsWriter(tmp_path, lambda: {"mine": interrupted}).write("sft", 0, {"loss": 2.0})
