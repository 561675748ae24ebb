"""Compares runs on one page: `rlhf-jax compare runs/a runs/b`, or `rlhf-jax compare 'runs/beta_*'`.

    python -m experiments.compare RUN RUN ... --to=comparison.html

Runs that differ in their seed alone are averaged. Prints the path of the page.
What does not compare is one line and exit status 2.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rlhf_jax.cli import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page. Returns the exit status: see `command.py`."""
    parser = argparse.ArgumentParser(
        prog=command.program("compare"),
        description="Compares runs on one page. Runs that differ in their seed alone are averaged.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run's directory, or a pattern such as 'runs/beta_*'",
    )
    parser.add_argument(
        "--to", type=Path, default=Path("comparison.html"), help="the page (comparison.html)"
    )
    given = parser.parse_args(arguments)

    def body(place: command.Place) -> None:
        from rlhf_jax.report.comparison import html  # after the arguments: it imports jax

        place.directory = given.to.parent
        print(html.write(given.runs, given.to, partial(print, file=sys.stderr)))

    return command.call(body)


def start() -> None:
    """Runs the command on the arguments of the command line."""
    command.start(main)


if __name__ == "__main__":
    start()
