"""One process at a time holds a directory; the lock ends with it, however it ends."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_jax.refusal import Refusal
from rlhf_jax.run_directory import lock

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from rlhf_jax.run_directory import lock
with lock.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.1)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_with_who_holds_it(tmp_path, holder):
    words = rf"run is in use by process {holder.pid} on .+ since \d{{4}}-"
    with pytest.raises(Refusal, match=words) as refused, lock.hold(tmp_path / "run"):
        pass
    assert "\n" not in str(refused.value)


def test_a_held_lock_is_seen_without_taking_it(tmp_path, holder):
    assert lock.is_held(tmp_path / "run")
    holder.kill()
    holder.wait()
    assert not lock.is_held(tmp_path / "run")
    assert not lock.is_held(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    with lock.hold(tmp_path / "run"):
        assert lock.is_held(tmp_path / "run")


def test_the_lock_of_a_killed_process_is_free(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock.hold(tmp_path / "run"):
        pass


def test_another_name_of_the_directory_is_the_same_lock(tmp_path, holder):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(Refusal, match="in use"), lock.hold(tmp_path / "link"):
        pass


def test_a_process_may_hold_it_several_times(tmp_path):
    with lock.hold(tmp_path):
        with lock.hold(tmp_path), lock.hold(tmp_path / "." / "other" / ".."):
            pass
        assert lock._held, "the inner ones have not given it up"
    assert not lock._held


def test_it_is_given_up_when_what_held_it_raises(tmp_path):
    with pytest.raises(ZeroDivisionError), lock.hold(tmp_path):
        raise ZeroDivisionError
    assert not lock._held


def test_a_disk_without_locks_is_told(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    with lock.hold(tmp_path):
        pass
    assert "has no locks: nothing keeps a second process out" in capsys.readouterr().err
