"""Exit statuses and what a person sees: one rule for all commands."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_jax import build
from rlhf_jax.cli import command, export, generate
from rlhf_jax.devices import compile_cache
from rlhf_jax.records import jsonl
from rlhf_jax.refusal import MissingInput, NotFinite, Refusal
from rlhf_jax.run_directory import run_config

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(
    path for path in (ROOT / "experiments").glob("*.py") if "__main__" in path.read_text()
)
FULL = f"Failed to write 16 bytes to file 9: {os.strerror(errno.ENOSPC)} [os_error_code='28']"


def raising(error: BaseException, directory: Path | None = None):
    def body(place: command.Place) -> None:
        place.directory = directory
        raise error

    return body


@pytest.mark.parametrize("module", [export, generate])
def test_a_command_on_a_run_has_the_compile_cache_of_its_config(module, tmp_path, monkeypatch):
    used: list[str] = []
    monkeypatch.setattr(compile_cache, "use", used.append)

    def ends_here(directory: Path):
        raise Refusal(f"enough of {directory}")

    monkeypatch.setattr(build, "of_directory", ends_here)
    run_config.write(tmp_path, {"compile_cache": "off"}, {})
    given = {
        export: [f"--directory={tmp_path}", "--to=out"],
        generate: [str(tmp_path), "--prompt=a"],
    }
    assert module.main(given[module]) == 2
    assert used == ["off"]


TOLD = [
    (Refusal("lag is -1;\naccepted: 0 or more"), 2, ["error: lag is -1; accepted: 0 or more"]),
    (Refusal("lag is -1", "seed is -1"), 2, ["error: lag is -1", "error: seed is -1"]),
    (MissingInput("no checkpoint"), 2, ["error: no checkpoint"]),
    (NotFinite("the loss of update 3 is nan"), 1, ["error: the loss of update 3 is nan"]),
    (command.Failed("a worker ended: see its log"), 1, ["error: a worker ended: see its log"]),
    (KeyboardInterrupt(), 130, ["", "interrupted; the same command goes on"]),
]


@pytest.mark.parametrize(
    ("error", "status", "said"), TOLD, ids=[type(error).__name__ for error, *_ in TOLD]
)
def test_what_is_told_in_words(capsys, error, status, said):
    assert command.call(raising(error), "the same command goes on") == status
    out, err = capsys.readouterr()
    assert not out
    assert err.splitlines() == said


@pytest.mark.parametrize(
    "error",
    [
        ValueError("could not convert string to float: 'n/a'"),
        KeyError("answer"),
        TypeError("'NoneType' object is not iterable"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "answers.txt"),
        PermissionError(errno.EACCES, "Permission denied", "answers.txt"),
        RuntimeError("the judge did not answer"),
        FloatingPointError("underflow encountered in exp"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/else/scores.txt"),
        ValueError(f"/somewhere/else/scores.txt: {FULL}"),
        ModuleNotFoundError("No module named 'judge'"),
    ],
    ids=repr,
)
def test_a_fault_of_anybodys_code_keeps_its_traceback(tmp_path, capsys, error):
    with pytest.raises(type(error)) as raised:
        command.call(raising(error, tmp_path))
    assert raised.value is error
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_fails_is_told_by_the_directory(tmp_path, capsys, number):
    error = OSError(number, os.strerror(number), str(tmp_path / "run" / "checkpoints" / "sft"))
    assert command.call(raising(error, tmp_path / "run"), "the same command goes on") == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: cannot write to {tmp_path / 'run'}: ")
    assert os.strerror(number) in said
    assert said.endswith("the same command goes on")


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_a_full_disk_inside_of_another_exception(tmp_path, capsys, kind):
    quoted = kind(f'RESOURCE_EXHAUSTED: Error writing "{tmp_path}/checkpoints/sft/5/d/00a": {FULL}')
    assert command.call(raising(quoted, tmp_path)) == 1
    wrapped = RuntimeError("a save failed")
    wrapped.__cause__ = quoted
    assert command.call(raising(wrapped, tmp_path)) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(os.strerror(errno.ENOSPC) in line for line in said)


def test_a_full_disk_that_names_no_file_is_known_by_who_wrote(tmp_path, capsys, monkeypatch):
    """Orbax writes small files through a library whose error has no name, and cleans up: then there
    is room again.
    """

    def full(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def body(place: command.Place) -> None:
        place.directory = tmp_path
        jsonl.append(tmp_path / "metrics.jsonl", {"stage": "sft"})

    monkeypatch.setattr(os, "write", full)
    assert command.call(body) == 1
    assert capsys.readouterr().err.startswith(f"error: cannot write to {tmp_path}")
    with pytest.raises(OSError, match="No space left"):
        command.call(raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), tmp_path))


def program(body: str) -> subprocess.Popen[str]:
    """A program that is a command whose body is this text."""
    text = "import gc, signal, sys, time\nfrom rlhf_jax.cli import command\n"
    # a suite in the background inherits SIG_IGN
    text += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    text += f"def body(place):\n    {body}\n"
    text += "command.start(lambda: command.call(body, 'it goes on'))"
    return subprocess.Popen(
        [sys.executable, "-c", text],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_status_130(number):
    with program("print('begun', flush=True); time.sleep(60)") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.split("\n") == ["", "interrupted; it goes on", ""]


def test_threads_that_an_interruption_leaves_behind_are_quiet():
    """Those of a save under way find the interpreter's pools closed, and would print a traceback
    after the command's last line.
    """
    body = """
import concurrent.futures, threading
pool = concurrent.futures.ThreadPoolExecutor(1)
pool.submit(print).result()
def save():
    time.sleep(0.3)
    pool.submit(print)
threading.Thread(target=save).start()
raise KeyboardInterrupt"""
    process = program("exec(" + repr(body) + ", globals())")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.split() == ["interrupted;", "it", "goes", "on"]


READER = """
import subprocess, sys
from rlhf_jax.cli import run
def goes_on():
    for line in range(20_000):
        print("line", line, flush=line % 2 == 0)
        print("line", line, file=sys.stderr)
    open(sys.argv[1], "w").write("written")
run.main = goes_on
run.start()
"""


@pytest.mark.parametrize("also_errors", [False, True])
def test_a_reader_that_ends_does_not_end_a_run(tmp_path, also_errors):
    """As `rlhf-jax run ... | head -1` does, with and without `2>&1`."""
    written, errors = tmp_path / "written", tmp_path / "errors"
    with errors.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", READER, str(written)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if also_errors else file,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        assert process.wait(timeout=60) == 0
    assert written.read_text() == "written"
    if not also_errors:
        said = [line for line in errors.read_text().splitlines() if not line.startswith("line")]
        assert said == [
            "note: nobody reads the standard output any more, and the command goes on; its directory "
            "has what it finds"
        ]


def test_an_interruption_inside_of_a_callback_of_the_collector_is_not_lost():
    """Python ignores what is raised there; XLA has such a callback, and a run would go on to its
    end.
    """
    body = "gc.callbacks.append(lambda *_: sys._getframe(1).f_code.co_name == 'body' and exec('raise KeyboardInterrupt'))"
    with program(f"{body}; gc.collect(); gc.callbacks.clear(); time.sleep(60)") as process:
        began = time.monotonic()
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - began < 30
    assert said.split("\n") == ["", "interrupted; it goes on", ""]


@pytest.mark.parametrize("ending", ["return 1", "raise SystemExit(1)"])
def test_a_command_that_failed_does_not_wait_for_its_threads(ending):
    """Where a disk has failed, threads of orbax wait for it for minutes."""
    text = "import threading, time\nfrom rlhf_jax.cli import command\ncommand.GOODBYE_SECONDS = 0.2\ndef main():\n"
    text += f"    threading.Thread(target=time.sleep, args=(60,)).start()\n    {ending}\ncommand.start(main)"
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", text], cwd=ROOT).returncode == 1
    assert time.monotonic() - began < 30


CRASHES_AT_THE_END = (
    "globals()['crash'] = type('Crash', (), {'__del__': lambda self: os.abort()})()"
)
"""Stands for XLA's client, which is destroyed at the interpreter's end under calls that an
interruption left running.
"""


@pytest.mark.parametrize(
    ("ending", "status", "said"),
    [
        ("raise KeyboardInterrupt", 130, "interrupted; it goes on"),
        ("raise Refusal('no')", 2, "error: no"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_command_that_failed_keeps_its_status_where_the_interpreters_end_would_crash(
    ending, status, said
):
    imports = "import atexit, os; from rlhf_jax.refusal import Refusal"
    with program(
        f"{imports}; {CRASHES_AT_THE_END}; atexit.register(print, 'closed'); {ending}"
    ) as process:
        printed, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert errors.rstrip().endswith(said)
    assert printed == "closed\n"  # what others do at the exit is still done


def test_what_nobody_can_catch_is_still_printed():
    body = "gc.callbacks.append(lambda *_: 1 / 0); gc.collect(); gc.callbacks.clear()"
    with program(body) as process:
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "ZeroDivisionError" in said


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_every_command_starts_by_the_same_rule(path):
    source = path.read_text()
    if f"from rlhf_jax.cli.{path.stem} import start" in source:
        source = (ROOT / "rlhf_jax" / "cli" / path.name).read_text()
    assert "command.start(main)" in source
    assert "command.call(" in source
    assert "sys.exit" not in source


def test_there_are_commands():
    assert {"run", "evaluate", "export", "plan", "report", "sweep"} <= {
        path.stem for path in COMMANDS
    }


def test_a_platform_that_cannot_be_used_is_told_in_a_line(tmp_path):
    """JAX's own message has a traceback through its modules."""
    words = ["run", "tiny", f"--config.directory={tmp_path / 'run'}"]
    ended = subprocess.run(
        [sys.executable, "-m", "rlhf_jax.cli.main", *words],
        env=os.environ | {"JAX_PLATFORMS": "tpux"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == command.FAILED
    assert ended.stderr.startswith("error: JAX_PLATFORMS is 'tpux': Unable to initialize backend")
    assert len(ended.stderr.splitlines()) == 1
