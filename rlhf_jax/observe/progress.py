"""Shows how far a stage is, with the figures that matter: a live bar on a terminal, plain lines elsewhere.

with progress("Online DPO", total=60) as bar:
    bar.advance(1, reward=0.31, gold=0.42, kl=0.8)
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

LINE_SECONDS = 5.0
REFRESH_PER_SECOND = 4


class Bar(Protocol):
    """What a stage tells of its progress."""

    def advance(self, steps: int = 1, **figures: float) -> None:
        """`steps` more are done; figures (scalars) replace those of the same name."""
        ...


class _Count:
    """How far, how long, and what the figures are: the text that both kinds of bar show."""

    def __init__(self, title: str, total: int, start: int, clock: Callable[[], float]) -> None:
        self.title, self.total, self.start, self.done = title, total, start, start
        self.figures: dict[str, float] = {}
        self.clock, self.began = clock, clock()

    def move(self, steps: int, figures: dict[str, float]) -> None:
        self.done += steps
        self.figures |= figures

    def elapsed_seconds(self) -> float:
        return self.clock() - self.began

    def figures_text(self) -> str:
        return "  ".join(f"{name} {format_figure(value)}" for name, value in self.figures.items())

    def time_text(self) -> str:
        """Elapsed and remaining; what an earlier process did (`start`) does not count in the rate."""
        elapsed = self.elapsed_seconds()
        if self.done == self.start or self.done >= self.total:
            return format_seconds(elapsed)
        left = elapsed / (self.done - self.start) * (self.total - self.done)
        return f"{format_seconds(elapsed)}, {format_seconds(left)} left"

    def line(self) -> str:
        percent = 100 * self.done // max(self.total, 1)
        parts = [self.title, f"{self.done}/{self.total}", f"{percent}%", self.figures_text(), f"[{self.time_text()}]"]
        return "  ".join(part for part in parts if part)


class _LineBar:
    """Prints a line at most every `interval_seconds`."""

    def __init__(self, count: _Count, stream: TextIO, interval_seconds: float) -> None:
        self.count, self.stream, self.interval_seconds = count, stream, interval_seconds
        self.printed_at = count.began

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.count.move(steps, figures)
        now = self.count.clock()
        if now - self.printed_at >= self.interval_seconds:
            self.printed_at = now
            print(self.count.line(), file=self.stream, flush=True)

    def finish(self, ending: str) -> None:
        print(f"{self.count.line()} {ending}", file=self.stream, flush=True)


class _LiveBar:
    """Redraws one line of a terminal a few times a second, from a thread of `rich`."""

    def __init__(self, count: _Count, stream: TextIO) -> None:
        self.count = count
        columns = (
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[time]}", style="dim", markup=False),
            TextColumn("{task.fields[figures]}", markup=False),
        )
        self.display = Progress(*columns, console=Console(file=stream), refresh_per_second=REFRESH_PER_SECOND)
        self.task = self.display.add_task(count.title, total=count.total, completed=count.start, time="", figures="")
        self.display.start()

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.count.move(steps, figures)
        self.display.update(
            self.task, completed=self.count.done, time=self.count.time_text(), figures=self.count.figures_text()
        )

    def finish(self, ending: str) -> None:
        self.display.update(self.task, time=f"{self.count.time_text()} {ending}")
        self.display.stop()


@contextmanager
def progress(
    title: str,
    total: int,
    start: int = 0,
    stream: TextIO | None = None,
    interval_seconds: float = LINE_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Bar]:
    """A bar of `total` steps, of which an earlier process has done `start`; the last state stays on the screen.

    On a terminal it is drawn over; elsewhere a line is printed every `interval_seconds` and one at the end. A stage
    that ends by an exception is shown as stopped, and the exception goes on.
    """
    out = sys.stdout if stream is None else stream
    count = _Count(title, total, start, clock)
    bar = _LiveBar(count, out) if out.isatty() else _LineBar(count, out, interval_seconds)
    ending = "stopped"
    try:
        yield bar
        ending = "done"
    finally:
        bar.finish(ending)


def format_figure(value: Any) -> str:
    """Three significant digits, without exponents where they can be helped: 0.312, 12.3, 1250, 3.0e-05, nan."""
    if isinstance(value, int):
        return str(value)
    real = float(value)
    if not math.isfinite(real) or real == 0:
        return f"{real:g}"
    size = math.floor(math.log10(abs(real)))
    return f"{real:.1e}" if not -4 <= size < 7 else f"{real:.{max(2 - size, 0)}f}" if size >= -1 else f"{real:.3g}"


def format_seconds(seconds: float) -> str:
    """4.2 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
