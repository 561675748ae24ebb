"""The page on younger losses from invented results."""

import re

import pytest

from experiments.studies.losses import findings

from . import invented


@pytest.fixture(scope="module")
def lines():
    return invented.lines_of("losses")


def rows(text):
    return [line.split(" | ") for line in text.splitlines() if re.match(r"\| \d\. ", line)]


def test_every_primary_contrast_has_a_row(lines):
    text = findings.pages(lines)["losses.md"]
    named = [row[0].removeprefix("| ") for row in rows(text)]
    assert [name[3:] for name in named] == [
        *(f"drop of {name} − drop of Online DPO, lag 15" for name in ("GSPO", "CISPO", "OAPL")),
        *(
            f"drop of {name} − drop of Online DPO, 64 minibatches"
            for name in ("GSPO", "CISPO", "OAPL")
        ),
        "drop of Online DPO, renewed every 16 rounds − its drop at lag 15",
        "drop of Online DPO, renewed every 64 rounds − its drop at 64 minibatches",
    ]


def ends(lines, arm):
    return {line["seed"]: line["curve"][-1]["win_rate"] for line in lines if line["arm"] == arm}


def contrasts_of(lines):
    usual = [line for line in lines if findings.CADENCE not in line["arm"]]
    return findings.primary_contrasts(
        findings.groups(usual, "lag"),
        findings.groups(usual, "num_minibatches"),
        findings.cadences(lines),
    )


def test_contrasts_are_differences_of_drops_by_seed(lines):
    found = contrasts_of(lines)
    fresh, late = ends(lines, "online_dpo"), ends(lines, "online_dpo-lag15")
    cispo, cispo_late = ends(lines, "cispo"), ends(lines, "cispo-lag15")
    assert found[1].values == pytest.approx(
        {s: cispo[s] - cispo_late[s] - (fresh[s] - late[s]) for s in fresh}
    )
    never, minibatches = (
        ends(lines, f"online_dpo-{name}") for name in ("sync_every64", "num_minibatches64")
    )
    assert found[7].values == pytest.approx({s: minibatches[s] - never[s] for s in fresh})


def test_a_seldom_renewed_sampler_is_not_taken_for_age_0(lines):
    """The lines' schedules do not have the cadence."""
    usual = [line for line in lines if findings.CADENCE not in line["arm"]]
    group = findings.of(findings.groups(usual, "lag"), "online_dpo")
    assert {line["arm"] for line in group.arms[0]} == {"online_dpo"}
    assert [*findings.cadences(lines)] == [16, 64]


def test_collapsed_runs_are_marked(lines):
    fallen = [
        line
        if (line["arm"], line["seed"]) != ("online_dpo-sync_every64", 3)
        else line | {"curve": [*line["curve"][:-1], line["curve"][-1] | {"win_rate": 0.1}]}
        for line in lines
    ]
    assert [contrast.note for contrast in contrasts_of(fallen)] == [
        *[""] * 7,
        "1 of its runs collapsed",
    ]
    text = findings.pages(fallen)["losses.md"]
    assert "every 64 rounds" in text
    assert "1 of 5" in text
