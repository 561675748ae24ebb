"""The matrix of compiled recipes: its index is of the programs of today, its page of the committed
figures, and the planner says no less than the compiler.
"""

from dataclasses import replace

import pytest

from experiments.bench import matrix, matrix_page

NAMES = [name for name in matrix.CASES if name in matrix.read_index()]
QUICK, *OTHERS = NAMES
SHARE_OF_MEMORY = 0.08
AGAIN = (
    "run python -m experiments.bench.matrix --index, then python -m experiments.bench.matrix_page"
)


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
    for call, placement, _ in matrix_page.placed(name):
        working = matrix_page.said(name, call.name).working_bytes
        if working is not None:
            working += matrix_page.problem(name).further_bytes(call, placement)
            found = matrix_page.peak(name)
            assert found.expected <= found.usable, "the planner's own plan"
            assert found.stays + working <= found.usable, call.name


@pytest.mark.parametrize("name", NAMES)
def test_peaks_are_within_a_share_of_the_device_s_memory(name):
    difference = matrix_page.peak(name).difference
    assert difference is None or abs(difference) <= SHARE_OF_MEMORY


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_sampling_on_links_are_those_of_the_compiler(name):
    for call, placement, costs in matrix_page.placed(name):
        found = matrix_page.said(name, call.name).link_bytes
        if call.kind == "generate" and found:
            assert costs.link_bytes(call, placement) == pytest.approx(found, rel=0.1)


def test_one_plan_does_not_fit_with_float32_gradients():
    """The reason of the default: by the planner, the other recipes fit with the plan that they have."""
    over = []
    for name in NAMES:
        of, usable = matrix_page.problem(name), matrix_page.peak(name).usable
        stays = of.resident_bytes(matrix_page.plan(name))
        for call, placement, costs in matrix_page.placed(name):
            shape = costs.shapes[call.role]
            wide = replace(shape, float32_gradients=shape.compute_bytes == 2)
            costs = replace(costs, shapes={**costs.shapes, call.role: wide}, _parts={})
            if stays + costs.working_bytes(call, placement) > usable:
                over.append((name, call.name))
    assert over == [("tldr-1b", "train_policy")]


def test_a_figure_of_another_depth_is_on_the_line_through_two(monkeypatch):
    """Working bytes of 10 at two layers and 14 at four are 54 at 24; an older line says so."""
    lines = {
        layers: {"layers": layers, "reason": "", "working_bytes": size, "link_bytes": 1.0,
                 "flops": 2.0, "fingerprint": str(layers)}
        for layers, size in ((2, 10.0), (4, 14.0))
    }  # fmt: skip
    for today, how in ((True, "extrapolated"), (False, "extrapolated, older program")):

        def line_of(name, call, layers, today=today):
            return lines.get(layers), today

        monkeypatch.setattr(matrix_page, "line_of", line_of)
        found = matrix_page.said("tldr-410m", "generate")
        assert (found.working_bytes, found.link_bytes, found.how) == (54.0, 1.0, how)
        assert found.programs == {2: "2", 4: "4"}
