"""Builds the report of a run again: `python -m experiments.report --directory=runs/quickstart`.

Prints the path of the page. A directory without a run, or a broken file in it, is one line and exit
status 2.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax.cli import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds the report. Returns the exit status: see `command.py`."""
    parser = argparse.ArgumentParser(
        prog=command.program("report"), description="Builds the report of a run again."
    )
    parser.add_argument(
        "--directory", type=Path, required=True, help="the run's directory, e.g. runs/quickstart"
    )
    directory = parser.parse_args(arguments).directory

    def body(place: command.Place) -> None:
        from rlhf_jax.report.html import (
            write_report,
        )  # after the arguments: drawing takes a second to import

        place.directory = directory
        print(write_report(directory))

    return command.call(body)


def start() -> None:
    """Runs the command on the arguments of the command line."""
    command.start(main)


if __name__ == "__main__":
    start()
