"""The runs of a grid, some at a time: the stages that cells share, and the cells once these are there.

Every task is a run directory of its own, made by the command `run`. A run goes on from its last
checkpoint, so that a sweep that was killed loses nothing. A task whose directory another process is
at work in, such as a run that outlived a killed sweep, is waited for.
"""

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from rlhf_jax.records import jsonl, metrics
from rlhf_jax.run_directory import lock, stage_records
from rlhf_jax.sweeps.grid import Setting

ENDED = "cell.json"
POLL_SECONDS = 0.2
LEAVE_SECONDS = 120.0
"""How long a run that is told to stop may take to end its update and to save it."""
TAIL_BYTES = 16384
NO_WORD = "it ended without a word"


class State(Enum):
    """The state of a task."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    NOT_RUN = "not run"


class Process(Protocol):
    """A run that has been started, here or as a job of a cluster."""

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        ...

    def terminate(self) -> None:
        """Asks it to save its work and to end."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once it has ended."""
        ...


@dataclass(eq=False)
class Task:
    """A run: its name, its directory, and the arguments of the command `run`.

    `stage` names the stage that a shared directory is made for; "" for a cell. `needs` are the
    tasks that must be done before. `reason` says why it is not done. `figures` are those of its
    last evaluation, once it is done.
    """

    name: str
    directory: Path
    arguments: list[str]
    log: Path
    needs: list["Task"] = field(default_factory=list)
    stage: str = ""
    setting: Setting = field(default_factory=dict)
    seed: int = 0
    updates: Mapping[str, int] = field(default_factory=dict)
    state: State = State.WAITING
    reason: str = ""
    began: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def is_cell(self) -> bool:
        """True for a cell, false for a stage that cells share."""
        return not self.stage

    def is_done(self) -> bool:
        """True where the results are in the directory."""
        if self.stage:
            return not stage_records.unfinished(self.directory, self.stage)
        return (self.directory / ENDED).exists()

    def progress(self) -> str:
        """The stage that the run is in, and its update: "rlhf 12/64"; "" before the first one."""
        lines = last_lines_of_metrics(self.directory)
        if not lines:
            return ""
        stage = lines[-1].get("of", lines[-1].get("stage", ""))
        done = [line["update"] + 1 for line in lines if stage == line["stage"] and "update" in line]
        total = self.updates.get(stage)
        return f"{stage} {done[-1]}/{total}" if done and total else stage


def last_lines_of_metrics(directory: Path) -> list[dict[str, Any]]:
    """The last whole lines of a run's metrics; none without one."""
    try:
        with (directory / metrics.FILE).open("rb") as file:
            start = max(0, file.seek(0, 2) - TAIL_BYTES)
            file.seek(start)
            whole, _, _torn = file.read().rpartition(b"\n")
        lines = whole.split(b"\n")[1 if start else 0 :]  # the first may have lost its beginning
        return [json.loads(line) for line in lines if line]
    except (OSError, ValueError):
        return []


def last_line(log: Path) -> str:
    """The last line of a run's log, which says what ended it."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return NO_WORD
    return lines[-1].strip() if lines else NO_WORD


def mark_ended(task: Task, code: str) -> None:
    """Writes down that a cell has ended.

    Args:
      task: a cell.
      code: the digest of the package's code.
    """
    told = {"setting": task.setting, "seed": task.seed, "code": code}
    jsonl.replace(task.directory / ENDED, json.dumps(told, indent=1).encode())


def code_of(task: Task) -> str:
    """The digest of the code that a cell which has ended was made with; "" where nothing says so."""
    try:
        return str(json.loads((task.directory / ENDED).read_bytes())["code"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


class Conductor:
    """Runs tasks, at most `limit` at once, and tells `changed` of every one whose state changes."""

    def __init__(
        self,
        tasks: Sequence[Task],
        start: Callable[[Task], Process],
        limit: int,
        code: str,
        changed: Callable[[Task], None],
    ) -> None:
        self.tasks, self.start, self.limit, self.code = tasks, start, limit, code
        self.changed = changed
        self.running: list[tuple[Task, Process]] = []

    def run(self, tick: Callable[[], None]) -> None:
        """Runs what is not done. A task that fails stops those that need it, and no other.

        However this ends, every run that was started has ended too, with its work saved.

        Args:
          tick: called a few times a second.
        """
        for task in self.tasks:
            if task.is_done():
                self._set(task, State.DONE)
        try:
            while self.running or self._startable() or self._of(State.WAITING):
                self._reap()
                for task in self._startable()[: self.limit - len(self.running)]:
                    self._begin(task)
                tick()
                time.sleep(POLL_SECONDS)
        finally:
            self._leave()

    def _of(self, state: State) -> list[Task]:
        return [task for task in self.tasks if task.state is state]

    def _startable(self) -> list[Task]:
        """Waiting tasks whose needs are done and whose directories are free."""
        return [
            task
            for task in self._of(State.WAITING)
            if all(need.state is State.DONE for need in task.needs)
            and not lock.is_held(task.directory)
        ]

    def _begin(self, task: Task) -> None:
        if task.is_done():  # by another process, which it has waited for
            self._set(task, State.DONE)
            return
        task.began = time.monotonic()
        self.running.append((task, self.start(task)))
        self._set(task, State.RUNNING)

    def _reap(self) -> None:
        """Takes note of the runs that have ended."""
        ended = [(task, status) for task, run in self.running if (status := run.poll()) is not None]
        self.running = [pair for pair in self.running if pair[0] not in [task for task, _ in ended]]
        for task, status in ended:
            if status == 0:
                if task.is_cell:
                    mark_ended(task, self.code)
                self._set(task, State.DONE)
            elif lock.is_held(task.directory):  # another process was there first
                self._set(task, State.WAITING)
            else:
                self._set(task, State.FAILED, last_line(task.log))
                self._give_up(task)

    def _give_up(self, failed: Task) -> None:
        """Marks the tasks that need a failed one."""
        for task in self._of(State.WAITING):
            if failed in task.needs:
                self._set(task, State.NOT_RUN, f"it needs {failed.name}")
                self._give_up(task)

    def _set(self, task: Task, state: State, reason: str = "") -> None:
        if task.state is not state:
            task.state, task.reason = state, reason
            self.changed(task)

    def _leave(self) -> None:
        """Tells every run to save its work and to end, and waits for them."""
        for _, process in self.running:
            process.terminate()
        deadline = time.monotonic() + LEAVE_SECONDS
        for _, process in self.running:
            with contextlib.suppress(subprocess.TimeoutExpired):  # the next sweep waits for it
                process.wait(max(1.0, deadline - time.monotonic()))
