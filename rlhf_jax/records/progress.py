"""Shows the progress of a stage, with a few metrics: a live bar on a terminal, plain lines elsewhere.

with progress("Online DPO", total=60) as bar:
    bar.advance(1, reward=0.31, gold=0.42, kl=0.8)
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, SupportsFloat, TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlhf_jax.devices import distributed

LINE_SECONDS = 5.0
REFRESH_PER_SECOND = 4
BAR_WIDTH = 24


_printed_at = time.monotonic()
_shown: list["_Count"] = []  # of the bars of this process, the innermost last


def note_printed() -> None:
    """Notes that a line has just been printed."""
    global _printed_at
    _printed_at = time.monotonic()


def silent_seconds() -> float:
    """Seconds since this process's bars, or `note_printed`, last printed a line."""
    return time.monotonic() - _printed_at


def current_line() -> str:
    """The line of the innermost bar at this moment; "" between bars."""
    return _shown[-1].line() if _shown else ""


class Bar(Protocol):
    """The progress line of a stage."""

    def advance(self, steps: int = 1, **metrics: float) -> None:
        """Counts `steps` more; metrics (scalars) replace those of the same name."""
        ...

    def say(self, text: str) -> None:
        """Prints a line of its own beside the bar."""
        ...


class _Count:
    """Steps, seconds and metrics of a stage: the text that both kinds of bar show."""

    def __init__(self, title: str, total: int, start: int, clock: Callable[[], float]) -> None:
        self.title, self.total, self.done = title, total, start
        self.metrics: dict[str, float] = {}
        self.clock, self.began = clock, clock()
        self.moved_at = self.began
        self.seen: set[bool] = set()
        self.pace = (0.0, 0)  # seconds, and the steps that they took
        self.ended = False

    def move(self, steps: int, metrics: dict[str, float]) -> None:
        """Counts steps, and their seconds for the estimate of the time left.

        The first steps of a process compile their program, and so does the first report without
        steps (an evaluation). Their seconds say nothing about the rest.
        """
        now, (seconds, counted) = self.clock(), self.pace
        if (steps > 0) in self.seen:
            self.pace = seconds + now - self.moved_at, counted + steps
        self.seen.add(steps > 0)
        self.moved_at = now
        self.done += steps
        self.metrics = self.metrics | metrics  # a new one: another thread may be reading the old

    def elapsed_seconds(self) -> float:
        return self.clock() - self.began

    def metrics_text(self) -> str:
        return "  ".join(f"{name} {format_number(value)}" for name, value in self.metrics.items())

    def time_text(self) -> str:
        """Elapsed and remaining; the latter once a step has been timed that compiled nothing."""
        elapsed, (seconds, counted) = format_seconds(self.elapsed_seconds()), self.pace
        if self.ended or not counted or self.done >= self.total:
            return elapsed
        return f"{elapsed}, {format_seconds(seconds / counted * (self.total - self.done))} left"

    def finish(self, failed: bool) -> str:
        """Ends the count. Returns "done", or the step at which the stage was stopped."""
        self.ended = True
        return (
            f"stopped at {self.done}/{self.total}" if failed or self.done < self.total else "done"
        )

    def line(self) -> str:
        percent = 100 * self.done // max(self.total, 1)
        parts = [
            self.title,
            f"{self.done}/{self.total}",
            f"{percent}%",
            self.metrics_text(),
            f"[{self.time_text()}]",
        ]
        return "  ".join(part for part in parts if part)


class _LineBar:
    """Prints a line at most every `interval_seconds`."""

    def __init__(self, count: _Count, stream: TextIO, interval_seconds: float) -> None:
        self.count, self.stream, self.interval_seconds = count, stream, interval_seconds
        self.printed_at = count.began

    def advance(self, steps: int = 1, **metrics: float) -> None:
        self.count.move(steps, metrics)
        now = self.count.clock()
        if now - self.printed_at >= self.interval_seconds:
            self.printed_at = now
            self.say(self.count.line())

    def say(self, text: str) -> None:
        note_printed()
        print(text, file=self.stream, flush=True)

    def finish(self, ending: str) -> None:
        self.say(f"{self.count.line()} {ending}")


class _LiveBar:
    """Redraws itself on a terminal a few times a second, from a thread of `rich`: the time advances
    while a step is slow.

    The metrics are behind the bar on a wide terminal, and below it on a narrow one.
    """

    def __init__(self, count: _Count, stream: TextIO) -> None:
        self.count, self.ending = count, ""
        self.live = Live(
            self,
            console=Console(file=stream, highlight=False),
            refresh_per_second=REFRESH_PER_SECOND,
        )
        self.live.start()

    def advance(self, steps: int = 1, **metrics: float) -> None:
        self.count.move(steps, metrics)

    def say(self, text: str) -> None:
        self.live.console.print(Text(text))

    def finish(self, ending: str) -> None:
        self.ending = ending
        self.live.stop()  # draws once more

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        count, metrics = (
            self.count,
            Text(self.count.metrics_text(), no_wrap=True, overflow="ellipsis"),
        )
        steps_text, clock = (
            f"{count.done}/{count.total}",
            f"{count.time_text()} {self.ending}".rstrip(),
        )
        width_left = options.max_width - len(count.title) - len(steps_text) - len(clock) - 3
        bar = ProgressBar(
            total=count.total, completed=count.done, width=max(4, min(BAR_WIDTH, width_left))
        )
        row = Table.grid(padding=(0, 1))
        cells = (
            Text(count.title, "bold", no_wrap=True),
            bar,
            Text(steps_text),
            Text(clock, "dim", no_wrap=True),
        )
        if width_left - BAR_WIDTH > len(metrics):
            row.add_row(*cells, metrics)
            yield row
        else:
            row.add_row(*cells)
            yield row
            yield Text("  ") + metrics


@contextmanager
def progress(
    title: str,
    total: int,
    start: int = 0,
    stream: TextIO | None = None,
    interval_seconds: float = LINE_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Bar]:
    """A bar of `total` steps, of which an earlier process has done `start`; the last state stays on
    the screen.

    On a terminal it is drawn over; elsewhere a line is printed every `interval_seconds` and one at
    the end. A stage that ends by an exception, or before its last step, is shown as stopped. The
    exception goes on.
    """
    out = stream or (sys.stdout if distributed.writes() else open(os.devnull, "w"))  # noqa: SIM115 - for the process's life
    count = _Count(title, total, start, clock)
    bar = (
        _LiveBar(count, out)
        if out.isatty() and os.environ.get("TERM") != "dumb"
        else _LineBar(count, out, interval_seconds)
    )
    failed = True
    _shown.append(count)
    try:
        yield bar
        failed = False
    finally:
        _shown.remove(count)
        bar.finish(count.finish(failed))


def format_number(value: SupportsFloat) -> str:
    """Three significant digits, with an exponent only for very small and very large numbers: 0.312,
    12.3, 1250, 3.0e-05, nan.
    """
    if isinstance(value, int):
        return str(value)
    real = float(value)
    if not math.isfinite(real) or real == 0:
        return f"{real:g}"
    size = math.floor(math.log10(abs(real)))
    return (
        f"{real:.1e}"
        if not -4 <= size < 7
        else f"{real:.{max(2 - size, 0)}f}"
        if size >= -1
        else f"{real:.3g}"
    )


def format_seconds(seconds: float) -> str:
    """4.2 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
