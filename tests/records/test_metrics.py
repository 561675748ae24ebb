"""The two places that figures go to say the same, before and after a resume."""

import math
import struct
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
    checksum (4).
    """
    found = []
    for path in sorted(directory.glob("events*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
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
