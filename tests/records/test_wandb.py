"""Offline, W&B is told every line once, over starts of which one was killed, and nothing is sent."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2

from rlhf_jax.records import tracking
from rlhf_jax.records.trackers import wandb
from rlhf_jax.refusal import Refusal

ROOT = Path(__file__).parents[2]
BLOCK, HEADER = 32768, 7
LIMIT_SECONDS = 60
START = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from rlhf_jax.records.metrics import MetricsWriter
    from rlhf_jax.records.trackers import wandb
    from rlhf_jax.records.trackers.api import Identity

    directory, digest, first, stop = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:5])
    identity = Identity(
        "my_run", {"algorithm.beta": 0.5, "seed": 3}, {"command": "rlhf-jax run"}, digest
    )
    writer = MetricsWriter(directory, lambda: {"wandb": lambda: wandb.make(directory, identity)})
    writer.resume("rlhf", first, first + 1 if first else 0)
    for update in range(first, stop):
        writer.write("rlhf", update, {"loss": update / 2}, seconds=float(update))
        if update % 2 == 0:
            writer.write("evaluate", update + 1, {"kl": 0.5}, of="rlhf")
    for n in (1, 2):
        writer.write("evaluate", 0, {"n": n}, of="best_of_n")
    print("written", flush=True)
    if "hang" in sys.argv:
        time.sleep(600)
    writer.close()
    """)


def records(directory: Path) -> Iterator[Any]:
    """The records of W&B's files of a run, oldest start first: blocks of LevelDB's log format, in
    which a record is cut at the ends of blocks.
    """
    for path in sorted(directory.glob("wandb/offline-run-*/*.wandb")):
        data, place, whole = path.read_bytes(), HEADER, b""
        while place + HEADER <= len(data):
            if BLOCK - place % BLOCK < HEADER:
                place += BLOCK - place % BLOCK
                continue
            _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
            whole += data[place + HEADER : place + HEADER + length]
            place += HEADER + length
            if kind in (1, 4):  # whole, or the last piece
                yield wandb_internal_pb2.Record.FromString(whole)
                whole = b""


def history(directory: Path) -> list[dict[str, Any]]:
    """The lines that W&B was told, with its own step as "_step"."""
    return [
        {
            (item.key or item.nested_key[0]): json.loads(item.value_json)
            for item in record.history.item
        }
        for record in records(directory)
        if record.WhichOneof("record_type") == "history"
    ]


class Network:
    """A proxy that every program is told to use, and that nobody may reach."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def reached(self) -> bool:
        try:
            self.socket.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.fixture
def network() -> Iterator[Network]:
    found = Network()
    yield found
    found.socket.close()


def start(directory: Path, network: Network, *arguments: str) -> subprocess.Popen[str]:
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "")
    proxies = dict.fromkeys(proxies, network.address) | {"no_proxy": "", "NO_PROXY": ""}
    chosen = {"WANDB_MODE": "offline", "WANDB_BASE_URL": network.address, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", START, str(directory), *arguments],
        env=os.environ | proxies | chosen,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Waits for a start. Returns its notes."""
    out, said = process.communicate(timeout=LIMIT_SECONDS)
    assert (process.returncode, out) == (0, "written\n"), said
    return said


def test_lines_are_told_once_over_starts_and_nothing_is_sent(tmp_path: Path, network: Network):
    killed = start(tmp_path, network, "one", "0", "5", "hang")
    assert killed.stdout is not None
    assert killed.stdout.readline() == "written\n"
    limit = time.monotonic() + LIMIT_SECONDS
    while len(history(tmp_path)) < 10 and time.monotonic() < limit:  # W&B writes a second later
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    state = json.loads((tmp_path / "wandb" / "run.json").read_text())

    said = finish(start(tmp_path, network, "one", "3", "7"))
    assert said == (
        f"note: W&B run {state['id']} is kept in {tmp_path}/wandb; to send it: wandb sync "
        f"{tmp_path}/wandb/offline-run-*\n"
    )
    lines = history(tmp_path)
    assert [line["_step"] for line in lines] == list(range(13))
    trained = [(line["rlhf/update"], line["rlhf/loss"]) for line in lines if "rlhf/loss" in line]
    assert trained == [(update, update / 2) for update in range(7)]
    evaluated = [line["evaluate_rlhf/update"] for line in lines if "evaluate_rlhf/kl" in line]
    assert evaluated == [1, 3, 5, 7]
    assert [line["evaluate_best_of_n/n"] for line in lines if "evaluate_best_of_n/n" in line] == [
        1,
        2,
    ]
    assert lines[0]["rlhf/seconds"] == 0.0
    runs = [record.run for record in records(tmp_path) if record.HasField("run")]
    assert {(run.run_id, run.project, run.display_name) for run in runs} == {
        (state["id"], "rlhf_jax", "my_run")
    }
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert (config["algorithm"], config["seed"]) == ({"beta": 0.5}, 3)
    assert config["start"] == {"command": "rlhf-jax run"}
    axes = {
        (record.metric.glob_name, record.metric.step_metric)
        for record in records(tmp_path)
        if record.HasField("metric") and record.metric.glob_name
    }
    assert ("rlhf/*", "rlhf/update") in axes

    said = finish(start(tmp_path, network, "two", "0", "1"))
    assert f"have changed since W&B run {state['id']} began: a new one begins" in said
    again = json.loads((tmp_path / "wandb" / "run.json").read_text())
    assert again["id"] != state["id"]
    assert again["sent"]["rlhf"] == [0, 0]
    assert not network.reached()


def test_a_run_that_is_to_send_needs_somebody_who_is_logged_in(tmp_path: Path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(wandb, "is_logged_in", lambda: False)
    with pytest.raises(Refusal, match=r"nobody is logged in to W&B; accepted: `wandb login`"):
        tracking.check("tensorboard,wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracking.check("tensorboard,wandb")
