"""Notices of what a run trains on: said when a condition begins and when it has ended, and on the
head of the report.
"""

import json

import pytest

from rlhf_jax.report import html, notices

LIMITS = notices.Limits(8, -1.0)
SOUND = {"finished": 0.9, "flat_group_share": 0.2, "idle_row_share": 0.1}


def said_of(*rounds: dict[str, float], limits: notices.Limits = LIMITS) -> list[str]:
    said: list[str] = []
    told = notices.Notices(said.append, limits)
    for round_index, figures in enumerate(rounds):
        told.take(round_index, SOUND | figures)
    return said


def test_cut_completions_say_how_many_where_and_what_to_change():
    said = said_of({}, {"finished": 0.0625, "flat_group_share": 0.75})
    assert said == [
        "notice: in round 1, 94 % of completions have no EOS within lengths.max_completion_tokens "
        "= 8 and get the score -1 "
        "instead; 75 % of prompts have one score for all their samples, and train on no reward. "
        "Raise "
        "lengths.max_completion_tokens, or train SFT for longer"
    ]
    kept = said_of({"finished": 0.25, "flat_group_share": 0.0}, limits=notices.Limits(27, None))
    assert kept[0].startswith(
        "notice: in round 0, 75 % of completions have no EOS within lengths.max_completion_tokens "
        "= 27. Raise"
    )


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"flat_group_share": 1.0}, "every prompt has one score for all its samples"),
        ({"flat_group_share": 0.8}, "80 % of prompts have one score for all their samples"),
        ({"flat_group_share": 0.75, "idle_row_share": 1.0}, "rlhf.oversample samples more"),
        ({"idle_row_share": 1.0}, "every row an advantage or a weight of zero"),
        ({"flat_group_share": 1.0, "idle_row_share": 1.0}, "every prompt has one score"),
        (
            {"finished": 0.0, "flat_group_share": 1.0, "idle_row_share": 1.0},
            "100 % of completions have no EOS",
        ),
    ],
)
def test_one_cause_is_said_and_not_its_consequences(figures, words):
    said = said_of(figures)
    assert len(said) == 1
    assert words in said[0]


def test_a_condition_is_said_once_and_again_when_it_has_ended():
    """Rounds with and without it in turn are one spell; four without it end it, and it may begin
    again.
    """
    cut: dict[str, float] = {"finished": 0.0}
    said = said_of({}, cut, cut, {}, cut, {}, {}, {}, {}, {}, {}, cut)
    assert [line.split(",")[0] for line in said] == [
        "notice: in round 1",
        "notice: no more cut completions since round 5",
        "notice: in round 11",
    ]


@pytest.mark.parametrize(
    "figures", [{}, {"loss": 1.0}, SOUND, SOUND | {"finished": 0.5, "flat_group_share": 0.74}]
)
def test_sound_rounds_and_figures_that_are_not_there_say_nothing(figures):
    said: list[str] = []
    notices.Notices(said.append, LIMITS).take(0, figures)
    assert not said


def test_the_head_of_the_page_has_them(run_directory):
    metrics = run_directory / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(json.dumps(line | {"finished": 0.0}) + "\n" for line in lines))
    page = html.write_report(run_directory).read_text()
    head = page[: page.index("Completions before and after</h2>")]
    assert "100 % of completions have no EOS within lengths.max_completion_tokens" in head


def test_a_report_counts_the_updates():
    config = {
        "lengths": {"max_completion_tokens": 8},
        "rlhf": {"scoring": {"replace_missing_eos": True, "missing_eos_score": -1.0}},
    }
    lines = [{"stage": "rlhf", "update": update, **SOUND} for update in range(10)]
    assert notices.find(lines, config) == []
    for line, finished in zip(lines, (0.0, 0.1, 0.2), strict=False):
        line |= {"finished": finished, "flat_group_share": 1.0}
    lines[7] |= {"flat_group_share": 1.0}
    found = notices.find(lines, config)
    assert len(found) == 2
    assert found[0].startswith(
        "In 3 of 10 updates, 90 % of completions have no EOS within lengths.max_completion_tokens "
        "= 8"
    )
    assert found[1].startswith("In 1 of 10 updates, every prompt has one score")
