"""What a report says of a run is what the lines say, also when a run stopped anywhere."""

import math
from pathlib import Path

import pytest

from rlhf_jax.records import jsonl
from rlhf_jax.report import read


def updated(stage: str, update: int, seconds: float) -> dict:
    return {"stage": stage, "update": update, "seconds": seconds}


def test_a_finished_run_misses_nothing(run_directory: Path) -> None:
    run = read.read_run(run_directory)
    assert run.missing == ()
    assert run.title == "quickstart"
    assert read.stages(run.lines) == ["sft", "comparisons", "reward_model", "rlhf", "best_of_n"]
    assert len(read.updates(run.lines, "rlhf")) == 60
    before, after = read.before_and_after(run.lines)
    assert before is not None
    assert after is not None
    assert (before["update"], after["update"]) == (0, 60)


def test_spans_of_earlier_processes_are_not_held(run_directory: Path) -> None:
    """The first span of each is: it has the time that the process began at."""
    spans = [
        {"stage": "rlhf", "began": began, "side": "trainer", "what": "train", "round_index": r}
        for began in (1.0, 2.0, 3.0)
        for r in range(3)
    ]
    (run_directory / "timeline.jsonl").unlink(missing_ok=True)
    jsonl.append_all(run_directory / "timeline.jsonl", spans)
    assert read.read_run(run_directory).spans == (spans[0], spans[3], *spans[6:])


def test_an_unfinished_run_says_what_is_missing(run_directory: Path) -> None:
    metrics = run_directory / "metrics.jsonl"
    cut = [
        text
        for text in metrics.read_text().splitlines()
        if '"rlhf", "update"' in text and "evaluate" not in text
    ]
    metrics.write_text("\n".join(cut[:7]) + "\n")
    (run_directory / "samples.jsonl").unlink()
    (run_directory / "config.json").unlink()
    assert read.read_run(run_directory).missing == (
        "config.json is not there",
        "samples.jsonl is not there",
        "stage sft has not begun",
        "stage rlhf has not ended (7 updates done)",
        "no evaluation before training",
        "no evaluation after training",
        'no samples "before"',
        'no samples "after"',
    )


def test_a_directory_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"is no run directory: none of config\.json, metrics\.jsonl"
    ):
        read.read_run(tmp_path)


def test_a_stage_has_ended_when_a_later_one_began() -> None:
    lines = [updated("sft", 0, 1.0)]
    assert not read.ended(lines, "sft")
    assert read.ended([*lines, updated("rlhf", 0, 1.0)], "sft")
    assert read.ended([*lines, {"stage": "sft", "kind": "timing", "wall_seconds": 3.0}], "sft")


def test_version_0_is_the_sft_policy_where_it_was_not_evaluated() -> None:
    lines = [{"stage": "evaluate", "of": "sft", "update": 40, "kl": 0.0}]
    assert read.before_and_after(lines) == (lines[0], None)
    lines.append({"stage": "evaluate", "of": "rlhf", "update": 7, "kl": 1.0})
    assert [(line["update"], line["kl"]) for line in read.policy_evaluations(lines)] == [
        (0, 0.0),
        (7, 1.0),
    ]
    lines.append({"stage": "evaluate", "of": "rlhf", "update": 0, "kl": 0.5})
    assert [line["update"] for line in read.policy_evaluations(lines)] == [7, 0]


def test_the_parts_of_a_stage_sum_to_its_wall_time() -> None:
    timing = {
        "stage": "sft",
        "kind": "timing",
        "wall_seconds": 11.0,
        "compile_seconds": 3.0,
        "evaluate_seconds": 2.0,
    }
    seconds = read.stage_seconds([updated("sft", 0, 1.0), updated("sft", 1, 9.0), timing])
    assert seconds == {"sft": {"compile": 3.0, "evaluate": 2.0, "other": 6.0}}


def test_seconds_to_the_first_update_are_told_apart_from_training() -> None:
    """Two processes: 40 s to the first update and 1 s for each later one; then 20 s to the next,
    again with 1 s for each.
    """
    seconds = [40.0, 41.0, 42.0, 43.0, 20.0, 21.0, 22.0]
    lines: list[dict] = [updated("rlhf", update, second) for update, second in enumerate(seconds)]
    lines.append({"stage": "rlhf", "kind": "timing", "wall_seconds": 30.0, "evaluate_seconds": 5.0})
    assert read.stage_seconds(lines) == {
        "rlhf": {"start": 39.0 + 19.0, "evaluate": 5.0, "other": 73.0 - 63.0}
    }


def test_parts_never_exceed_the_wall_time() -> None:
    lines: list[dict] = [
        updated("sft", update, second) for update, second in enumerate([9.0, 9.5, 10.0])
    ]
    lines.append({"stage": "sft", "kind": "timing", "wall_seconds": 10.0, "evaluate_seconds": 4.0})
    assert read.stage_seconds(lines) == {"sft": {"start": 6.0, "evaluate": 4.0}}


def test_notices_of_a_run_are_read_once_each(tmp_path: Path) -> None:
    said = {"stage": "rlhf", "kind": "notice", "text": "80 % of completions are cut"}
    lines = [updated("sft", 0, 1.0), said, said | {"text": "all groups are flat"}, said]
    assert read.notices(lines) == ["80 % of completions are cut", "all groups are flat"]
    assert read.stages(lines) == ["sft"]


def test_a_resumed_stage_took_the_time_of_every_process() -> None:
    # one process for 7 s, one for 5 s, and a third that needed 3 s to its last update and 4 s to
    # its end
    lines = [
        updated("rlhf", update, seconds) for update, seconds in enumerate([2.0, 7.0, 1.0, 5.0, 3.0])
    ]
    assert read.stage_seconds(lines) == {"rlhf": {"other": 7.0 + 5.0 + 3.0}}
    lines.append({"stage": "rlhf", "kind": "timing", "wall_seconds": 4.0})
    assert read.stage_seconds(lines) == {"rlhf": {"other": 7.0 + 5.0 + 4.0}}


def test_a_process_that_did_not_end_is_told_to_start_and_the_last_one_to_compile() -> None:
    """The first process needs 40 s to its first update and 1 s for each later one; the second, of
    whose timing compilation is known, 20 s and 1 s.
    """
    seconds = [40.0, 41.0, 42.0, 20.0, 21.0, 22.0]
    lines: list[dict] = [updated("rlhf", update, second) for update, second in enumerate(seconds)]
    timing = {"wall_seconds": 30.0, "compile_seconds": 15.0, "evaluate_seconds": 5.0}
    lines.append({"stage": "rlhf", "kind": "timing", **timing})
    assert read.stage_seconds(lines) == {
        "rlhf": {"start": 39.0, "compile": 15.0, "evaluate": 5.0, "other": 72.0 - 59.0}
    }


def test_speeds_are_medians_and_percentiles_over_the_updates_of_a_stage() -> None:
    lines = [
        {"stage": "sft", "update": j, "step_seconds": seconds, "seconds": 9.0, "loss": 1.0}
        for j, seconds in enumerate([0.1, 0.2, 0.3, 0.4, 2.0], start=1)
    ]
    lines += [
        {"stage": "rlhf", "update": 1, "train_mfu": 0.4, "round_seconds": math.nan},
        {"stage": "evaluate", "of": "rlhf", "update": 1, "evaluate_seconds": 3.0},
        {"stage": "rlhf", "kind": "timing", "wall_seconds": 4.0},
    ]
    speeds = read.speeds(lines)
    assert set(speeds) == {"sft", "rlhf"}
    assert set(speeds["sft"]) == {"step_seconds"}
    spread = speeds["sft"]["step_seconds"]
    assert (spread.median, spread.count) == (0.3, 5)
    assert spread.low == pytest.approx(0.14)
    assert spread.high == pytest.approx(1.36)
    assert speeds["rlhf"] == {"train_mfu": read.Spread(0.4, 0.4, 0.4, 1)}
