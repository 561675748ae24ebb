"""The page of slices of several hosts is written from the compiler's committed figures."""

import subprocess
import sys

from experiments.bench.slices_page import PAGE

AGAIN = "run python -m experiments.bench.slices_page"


def test_the_page_is_written_from_the_committed_files():
    """In a process of its own, which has as many devices as the largest slice."""
    code = "from experiments.bench.slices_page import page; print(page(), end='')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=PAGE.parents[2],
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == PAGE.read_text(), AGAIN
