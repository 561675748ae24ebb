"""The matrix of compiled recipes: its index is of the programs of today, its page of the committed
figures, and the planner says no less than the compiler.
"""

import pytest

from experiments.bench import matrix, matrix_page

NAMES = [name for name in matrix.CASES if name in matrix.read_index()]
QUICK, *OTHERS = NAMES
SHARE_OF_MEMORY = 0.08


def test_the_page_is_written_from_the_committed_files():
    again = "run python -m experiments.bench.matrix_page"
    assert matrix_page.PAGE.read_text() == matrix_page.page(), again


def test_every_recipe_is_in_the_index():
    assert list(matrix.CASES) == NAMES
    assert all(line["slice"] for line in matrix.read_figures().values())


def test_the_index_is_of_today():
    """A recipe at two layers; a plan or program that has changed makes its rows stale."""
    assert list(matrix.stale([QUICK], quick=True)) == [], AGAIN


@pytest.mark.parametrize("name", OTHERS)
def test_the_index_is_of_today_for_all_recipes(name):
    assert list(matrix.stale([name], quick=True)) == [], AGAIN


AGAIN = (
    "run python -m experiments.bench.matrix --index, then python -m experiments.bench.matrix_page"
)


def test_another_program_is_seen(monkeypatch):
    monkeypatch.setattr(matrix, "lowered", lambda *_: {"generate": "0", "reference": "1"})
    index = matrix.read_index()
    index[QUICK]["programs"]["generate"]["2"] = "0"
    monkeypatch.setattr(matrix, "read_index", lambda: index)
    found = list(matrix.stale([QUICK], quick=True))
    assert found == [f"{QUICK}: reference at 2 layers is another program"]


@pytest.mark.parametrize("name", NAMES)
def test_the_planner_never_says_fits_where_the_compiler_says_no(name):
    """Of each plan in the index, which the planner has chosen: what stays and the most that a
    compiled call needs is within the memory that may be used.
    """
    for call, _, _ in matrix_page.placed(name):
        working = matrix_page.said(name, call.name).working_bytes
        if working is not None:
            found = matrix_page.peak(name)
            assert found.expected <= found.usable, "the planner's own plan"
            assert found.stays + working <= found.usable, call.name


@pytest.mark.parametrize("name", NAMES)
def test_peaks_are_within_a_share_of_the_device_s_memory(name):
    difference = matrix_page.peak(name).difference
    assert difference is None or abs(difference) <= SHARE_OF_MEMORY
