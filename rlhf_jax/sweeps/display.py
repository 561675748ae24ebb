"""The cells of a sweep as they run: a table that is drawn over on a terminal, lines elsewhere."""

import os
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlhf_jax.records.progress import format_number, format_seconds
from rlhf_jax.sweeps.tasks import State, Task

REFRESH_PER_SECOND = 2
SILENCE_SECONDS = 9.0
ROWS_APART = 6  # the lines of a terminal that are not rows of the table
LEAST_ROWS = 4
SHOWN = {"win_rate_share": "win-rate", "gold_mean": "gold", "kl_nats_per_completion": "KL"}
STYLES = {State.RUNNING: "bold", State.FAILED: "red", State.NOT_RUN: "red", State.WAITING: "dim"}
ORDER = (State.FAILED, State.RUNNING, State.NOT_RUN, State.WAITING, State.DONE)
"""Of the rows that are shown where a terminal has not room for all."""


class Display:
    """Shows tasks while they run; use it as a context manager."""

    def __init__(self, tasks: Sequence[Task], stream: TextIO | None = None) -> None:
        self.tasks, self.out = tasks, stream or sys.stdout
        self.began = self.printed_at = time.monotonic()
        self.live: Live | None = None
        if self.out.isatty() and os.environ.get("TERM") != "dumb":
            console = Console(file=self.out, highlight=False)
            self.live = Live(self, console=console, refresh_per_second=REFRESH_PER_SECOND)

    def __enter__(self) -> "Display":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.stop()

    def changed(self, task: Task) -> None:
        """Shows a task whose state has changed.

        A cell that was done already when the command began is counted, without a line.
        """
        if task.state is not State.DONE or task.began:
            self._say(self._line(task))

    def tick(self) -> None:
        """Prints a line where nothing has been printed for a while; a terminal moves by itself."""
        if time.monotonic() - self.printed_at >= SILENCE_SECONDS:
            at_work = [
                f"{task.name} ({task.progress() or 'starting'})"
                for task in self.tasks
                if task.state is State.RUNNING
            ]
            self._say("; ".join([self.counts(), *at_work]))

    def counts(self) -> str:
        """The cells by state: "3 of 18 cells done, 2 running, 4 min 10 s"."""
        cells = [task for task in self.tasks if task.is_cell]
        number = {state: sum(cell.state is state for cell in cells) for state in State}
        parts = [f"{number[State.DONE]} of {len(cells)} cells done"]
        parts += [
            f"{number[state]} {state.value}"
            for state in (State.RUNNING, State.FAILED, State.NOT_RUN)
            if number[state]
        ]
        return ", ".join([*parts, format_seconds(time.monotonic() - self.began)])

    def _say(self, text: str) -> None:
        self.printed_at = time.monotonic()
        if not self.live:
            print(text, file=self.out, flush=True)

    def _line(self, task: Task) -> str:
        parts = [task.name, task.state.value]
        if task.state in (State.DONE, State.FAILED):
            parts.append(format_seconds(time.monotonic() - task.began))
        return "  ".join([*parts, *filter(None, [figures_of(task), task.reason])])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [task for task in self.tasks if task.is_cell or task.state is not State.DONE]
        room = max(LEAST_ROWS, console.height - ROWS_APART)
        kept = sorted(rows, key=lambda task: ORDER.index(task.state))[:room]
        table = Table(box=None, pad_edge=False)
        for title in ("cell", "state", "", ""):
            table.add_column(title, no_wrap=True, overflow="ellipsis")
        for task in rows:
            if task not in kept:
                continue
            doing = task.reason or figures_of(task)
            clock = ""
            if task.state is State.RUNNING:
                doing = task.progress() or "starting"
                clock = format_seconds(time.monotonic() - task.began)
            style = STYLES.get(task.state, "")
            cells = (task.name, task.state.value, doing, clock)
            table.add_row(*(Text(cell, style) for cell in cells))
        yield table
        if len(rows) > len(kept):
            yield Text(f"and {len(rows) - len(kept)} more", "dim")
        yield Text(self.counts(), "bold")


def figures_of(task: Task) -> str:
    """The figures of a cell that is done, in short; "" before."""
    return "  ".join(
        f"{short} {format_number(task.figures[column])}"
        for column, short in SHOWN.items()
        if column in task.figures
    )
