"""The pages on updates per minibatch and on samples per prompt, from invented results."""

import re

import pytest

from experiments.studies import schedule_axis

from . import invented
from .invented import pages_of

AXES = {"epochs": ("num_epochs", (1, 2, 3)), "samples": ("samples_per_prompt", (2, 4, 8))}


@pytest.fixture(scope="module", params=list(AXES))
def part(request):
    return request.param


@pytest.fixture(scope="module")
def lines(part):
    return invented.lines_of(part, every=4)


def rows(text, begins):
    return [line.split(" | ") for line in text.splitlines() if re.match(begins, line)]


def test_the_page_has_a_row_for_each_value_and_a_contrast_for_each_other(part, lines):
    pages = pages_of(part, lines)
    text = pages[f"{part}.md"]
    _, values = AXES[part]
    assert [row[0] for row in rows(text, r"\| \d+ \| ")] == [f"| {value}" for value in values]
    named = [row[0] for row in rows(text, r"\| \d\. ")]
    assert len(named) == {"epochs": 2, "samples": 3}[part]
    assert set(pages) == {f"{part}.md", f"{part}_ends.png", f"{part}_kl.png"}
    assert "larger" in text, "in the invented results more epochs and samples learn more"


def test_a_contrast_is_the_difference_of_the_ends(part, lines):
    axis, values = AXES[part]
    group = schedule_axis.of_axis(lines, axis)
    first, last = (
        {
            line["seed"]: line["curve"][-1]["win_rate"]
            for line in lines
            if line["schedule"]["lag"] == 1 and line["schedule"][axis] == value
        }
        for value in (values[0], values[-1])
    )
    assert schedule_axis.of_the_ends(group)[-1].values == pytest.approx(
        {seed: last[seed] - first[seed] for seed in last}
    )


def test_an_early_evaluation_is_found_by_its_update(part, lines):
    axis, values = AXES[part]
    group, update = schedule_axis.of_axis(lines, axis), {"epochs": 64, "samples": 32}[part]
    found = schedule_axis.after(group, values[1], update)
    for line in lines:
        if line["schedule"]["lag"] == 1 and line["schedule"][axis] == values[1]:
            (rate,) = [e["win_rate"] for e in line["curve"] if e["update"] == update]
            assert found[line["seed"]] == rate
    assert schedule_axis.after(group, values[1], 10_000) == {}


def test_collapsed_runs_stand_beside_their_contrast(part, lines):
    axis, values = AXES[part]
    fallen = [
        line
        for line in lines
        if line["schedule"]["lag"] == 1 and line["schedule"][axis] == values[-1]
    ]
    lower = [
        line
        if line is not fallen[0]
        else line | {"curve": [*line["curve"][:-1], line["curve"][-1] | {"win_rate": 0.1}]}
        for line in lines
    ]
    text = pages_of(part, lower)[f"{part}.md"]
    assert f"| {values[-1]} | " in text
    assert rows(text, rf"\| {values[-1]} \| ")[0][-1] == "1 of 5 |"
    assert "1 of its runs collapsed" in text
    assert "of its runs collapsed" not in pages_of(part, lines)[f"{part}.md"]


def test_the_picture_of_one_group_shows_its_curves_to_their_ends(part, lines):
    """Also where a run collapsed, after which the limits are kept."""
    axis, values = AXES[part]
    lower = [
        line
        if line["schedule"][axis] != values[-1] or line["seed"]
        else line | {"curve": [*line["curve"][:-1], line["curve"][-1] | {"win_rate": 0.1}]}
        for line in lines
    ]
    (ax,) = pages_of(part, lower)[f"{part}_kl.png"].axes
    most = max(line["curve"][-1]["kl"] for line in lines if line["schedule"][axis] == values[0])
    assert ax.get_xlim()[1] > 0.9 * most > 1.0
