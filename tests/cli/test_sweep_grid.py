"""The command sweep with a grid, in processes of its own: refusals, a kill, a failed cell, and what
the same command then does.
"""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 600
BROKEN = """\
def luck(completions):
    raise ZeroDivisionError("no such luck")
"""
SMALL = (
    "sft.num_updates=4",
    "sft.checkpoint_every=4",
    "rlhf.total_prompts=16",
    "rlhf.evaluate_every=2",
    "evaluate.num_prompts=16",
    "evaluate.num_prompts_between=16",
    "best_of_n_prompts=8",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "broken.py").write_text(BROKEN)
    return folder


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "rlhf_jax.cli.sweep", "tiny", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_cell_that_cannot_run_is_one_line_and_nothing_is_begun(folder):
    process = start(folder, "--grid", "algorithm.beta=0.1,-1", "--grid", "rlhf.lag=0,1")
    _, errors = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 2
    assert errors.count("\n") == 1
    assert "algorithm.beta=-1 rlhf.lag=0" in errors
    assert not (folder / "runs").exists()


@pytest.fixture(scope="module")
def killed(folder):
    """A sweep of two cells, of which the second fails. It is killed when the first has ended."""
    arguments = ["--grid", "reward=gold,broken.py:luck", "--seeds=1", "--workers=1"]
    arguments += [f"--config.{text}" for text in SMALL]
    process = start(folder, *arguments)
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (ended := list(folder.glob("runs/sweeps/tiny/cells/*/cell.json"))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    modified = {path: path.stat().st_mtime_ns for path in [*ended, *folder.glob("runs/stages/*/*")]}
    again = start(folder, *arguments)
    return modified, again.communicate(timeout=LIMIT_SECONDS), again.returncode


def test_after_a_kill_the_same_command_runs_what_is_left(folder, killed):
    modified, (printed, _), _ = killed
    assert len([path for path in modified if path.name == "cell.json"]) == 1
    later = {path: path.stat().st_mtime_ns for path in modified}
    assert later == modified, "nothing that had ended was run again"
    assert "reward=broken.py:luck seed=0  running" in printed or "failed" in printed
    assert "reward=gold seed=0  running" not in printed


def test_a_failed_cell_is_named_with_its_last_line_and_the_command_that_repeats_it(folder, killed):
    _, (printed, errors), status = killed
    assert status == 1
    assert "reward=broken.py:luck seed=0 failed: error: the reward broken.py:luck raised" in errors
    assert "no such luck" in errors
    (again,) = [line for line in errors.splitlines() if line.startswith("  again: ")]
    for text in (
        "tiny",
        "--config.reward=broken.py:luck",
        "--config.seed=0",
        "--config.begin=runs/stages/sft-",
    ):
        assert text in again
    assert errors.splitlines()[-1].startswith("error: 1 of 2 cells are not done")
    assert "1 of 2 cells done, 1 failed" in printed


def test_the_table_has_the_figures_of_the_cell_that_is_done(folder, killed):
    rows = list(csv.DictReader((folder / "runs/sweeps/tiny/results.csv").open()))
    assert [row["status"] for row in rows] == ["done", "failed"]
    assert float(rows[0]["kl_nats_per_completion"]) >= 0
    assert rows[0]["updates"] == "2"
    assert "no such luck" in rows[1]["reason"]
    assert (folder / rows[0]["directory"] / "report.html").exists()
