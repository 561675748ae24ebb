"""Builds the report of a run again: `python -m experiments.report --directory=runs/quickstart`.

Prints the path of the page. A directory without a run, or a broken file in it, is one line and exit status 2.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax.refusal import Refusal


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report", description="Builds the report of a run again."
    )
    parser.add_argument("--directory", type=Path, required=True, help="the run's directory, e.g. runs/quickstart")
    directory = parser.parse_args(arguments).directory
    from rlhf_jax.report.html import write_report  # after the arguments: drawing takes a second to import

    try:
        print(write_report(directory))
    except (OSError, Refusal) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
