"""The page of slices of several hosts is written from the compiler's committed figures."""

from experiments.bench import slices_page


def test_the_page_is_written_from_the_committed_files():
    again = "run python -m experiments.bench.slices_page"
    assert slices_page.PAGE.read_text() == slices_page.page(), again
