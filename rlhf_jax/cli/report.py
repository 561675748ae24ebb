"""Builds the report of a run again: `rlhf-jax report runs/quickstart`, and with `--watch` until the
run ends.

    python -m experiments.report --directory=runs/quickstart

Prints the path of the page. A directory without a run, or a broken file in it, is one line and exit
status 2.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax.cli import command

EVERY_SECONDS = 30.0
POLL_SECONDS = 1.0
"""Seconds between two looks at the files of the run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds the report. Returns the exit status: see `command.py`."""
    parser = argparse.ArgumentParser(
        prog=command.program("report"), description="Builds the report of a run again."
    )
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument(
        "run", nargs="?", type=Path, metavar="RUN", help="the run's directory, e.g. runs/quickstart"
    )
    place.add_argument("--directory", type=Path, help="the same")
    parser.add_argument(
        "--watch", action="store_true", help="write it again while the run goes on, until it ends"
    )
    parser.add_argument(
        "--every",
        type=float,
        default=EVERY_SECONDS,
        metavar="SECONDS",
        help="between two reports of --watch (30)",
    )
    given = parser.parse_args(arguments)
    directory = given.run or given.directory
    if not given.every > 0:
        parser.error(f"--every is {given.every:g}; accepted: seconds above 0")

    def body(place: command.Place) -> None:
        from rlhf_jax.report.html import (
            write_report,
        )  # after the arguments: drawing takes a second to import

        place.directory = directory
        if given.watch:
            watch(directory, given.every)
        else:
            print(write_report(directory))

    return command.call(
        body,
        "the report is that of the last figures; the same command watches on"
        if given.watch
        else "the same command begins again",
    )


def watch(directory: Path, every: float) -> None:
    """Writes the report whenever the run has written something, until no process runs it.

    Args:
      directory: of the run.
      every: the fewest seconds between two reports.

    Raises as `write_report`.
    """
    from rlhf_jax.report.html import write_report
    from rlhf_jax.run_directory import lock

    written: tuple[tuple[str, int, int], ...] | None = None
    while True:
        goes_on, now = lock.is_held(directory), _state(directory)
        if now != written:
            path = write_report(directory)
            if written is None:
                print(f"{path}, written again every {every:g} s" if goes_on else path, flush=True)
            written = now
        if not goes_on:
            print("no process runs it any more: the report is up to date", flush=True)
            return
        _wait(directory, every)


def _wait(directory: Path, seconds: float) -> None:
    """Waits for some seconds, or until no process runs the run."""
    from rlhf_jax.run_directory import lock

    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0 and lock.is_held(directory):
        time.sleep(min(left, POLL_SECONDS))


def _state(directory: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of every file that a report is made of."""
    files = [directory / "config.json", *sorted(directory.glob("*.jsonl"))]
    stats = [(path.name, path.stat()) for path in files if path.exists()]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def start() -> None:
    """Runs the command on the arguments of the command line."""
    command.start(main)


if __name__ == "__main__":
    start()
