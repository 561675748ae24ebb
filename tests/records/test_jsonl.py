"""Lines survive kills and full disks, and are cut back to exactly what a checkpoint was preceded
by.
"""

import json
import math
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.records import jsonl, lines
from rlhf_jax.refusal import Refusal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def write_updates(path: Path, stage: str, count: int) -> None:
    for update in range(count):
        jsonl.append(path, {"stage": stage, "update": update, "loss": 1 / (update + 3)})


def test_what_is_appended_is_read(path: Path) -> None:
    write_updates(path, "sft", 3)
    assert jsonl.read(path) == [
        {"stage": "sft", "update": j, "loss": 1 / (j + 3)} for j in range(3)
    ]


def test_numbers_that_json_cannot_say_come_back(path: Path) -> None:
    values = [math.nan, math.inf, -math.inf, np.float32(0.1), np.int32(7), 7, True]
    for update, value in enumerate(values):
        jsonl.append(path, {"stage": "sft", "update": update, "loss": jsonl.number(value)})
    for text in path.read_text().splitlines():
        json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    found = [line["loss"] for line in jsonl.read(path)]
    assert math.isnan(found[0])
    assert found[1:] == [math.inf, -math.inf, float(np.float32(0.1)), 7, 7, 1.0]
    assert type(found[5]) is int


def test_a_completion_that_reads_NaN_stays_text(path: Path) -> None:
    jsonl.append(path, {"stage": "rlhf", "completion": "NaN", "prompt": "Infinity", "gold": "NaN"})
    (line,) = jsonl.read(path)
    assert (line["completion"], line["prompt"]) == ("NaN", "Infinity")
    assert math.isnan(line["gold"])


def test_torn_at_any_byte_the_whole_lines_are_read(path: Path) -> None:
    write_updates(path, "sft", 3)
    data = path.read_bytes()
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        assert [line["update"] for line in jsonl.read(path)] == list(
            range(data[:size].count(b"\n"))
        )


def test_a_torn_line_is_not_glued_to_the_next(path: Path) -> None:
    write_updates(path, "sft", 2)
    with path.open("ab") as file:
        file.write(b'{"stage": "sft", "upd')
    jsonl.drop_torn_line(path)
    jsonl.append(path, {"stage": "sft", "update": 2})
    assert [line["update"] for line in jsonl.read(path)] == [0, 1, 2]


@pytest.mark.parametrize("text", ["{", "[1]", '{"update": 3}', "", '{"stage": 3}'])
def test_a_broken_line_before_the_last_is_an_error_with_its_place(path: Path, text: str) -> None:
    path.write_text('{"stage": "sft", "update": 0}\n' + text + '\n{"stage": "sft", "update": 1}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: "):
        jsonl.read(path)


def test_cut_back_keeps_what_preceded_the_version(path: Path) -> None:
    write_updates(path, "sft", 2)
    jsonl.append(path, {"stage": "sft", "kind": "timing", "wall_seconds": 3.0})
    for update in range(5):
        jsonl.append(path, {"stage": "rlhf", "update": update})
        jsonl.append(path, {"stage": "evaluate", "of": "rlhf", "update": update + 1})
    jsonl.append(path, {"stage": "evaluate", "of": "sft", "update": 9})
    jsonl.append(path, {"stage": "rlhf", "kind": "timing", "wall_seconds": 7.0})
    with path.open("ab") as file:
        file.write(b'{"stage": "rlhf"')
    before = path.read_bytes().splitlines()
    jsonl.cut_back(path, "rlhf", 3)
    # 0-2 are of sft; 3-12 are update 0, version 1, update 1, version 2, update 2, version 3, ...;
    # 13 is of sft again
    assert path.read_bytes().splitlines() == [*before[:8], before[13]]


def test_evaluations_have_a_limit_of_their_own(path: Path) -> None:
    for version in range(5):
        jsonl.append(path, {"stage": "evaluate", "of": "rlhf", "update": version})
    jsonl.cut_back(path, "rlhf", 2, evaluations_from=3)
    assert [line["update"] for line in jsonl.read(path)] == [0, 1, 2]


def test_cut_back_tells_the_last_update_that_remains(path: Path) -> None:
    write_updates(path, "sft", 2)
    assert jsonl.cut_back(path, "rlhf", 5) is None
    write_updates(path, "rlhf", 7)
    assert jsonl.cut_back(path, "rlhf", 5) == 4
    assert jsonl.cut_back(path, "rlhf", 6) == 4
    assert jsonl.cut_back(path, "rlhf", 0) is None
    assert [line["stage"] for line in jsonl.read(path)] == ["sft", "sft"]


def test_lines_that_are_cut_are_kept_aside_after_those_before(path: Path, tmp_path: Path) -> None:
    aside = tmp_path / "aside" / "lines"
    for updates in (7, 5):
        path.unlink(missing_ok=True)
        write_updates(path, "rlhf", updates)
        write_updates(path, "sft", 1)
        jsonl.cut_back(path, "rlhf", 3, aside=aside)
        kept = [(line["stage"], line["update"]) for line in jsonl.read(path)]
        assert kept == [("rlhf", 0), ("rlhf", 1), ("rlhf", 2), ("sft", 0)]
    assert [line["update"] for line in jsonl.read(aside)] == [3, 4, 5, 6, 3, 4]


@pytest.mark.parametrize("block", [1, 7, 64])
def test_a_cut_is_the_same_in_blocks_of_any_size(
    path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", block)
    write_updates(path, "rlhf", 5)
    with path.open("ab") as file:
        file.write(b'{"stage": "rl')
    whole = path.read_bytes().splitlines()
    jsonl.drop_torn_line(path)
    assert path.read_bytes().splitlines() == whole[:5]
    jsonl.cut_back(path, "rlhf", 2)
    assert path.read_bytes().splitlines() == whole[:2]


def test_a_broken_line_near_the_end_is_an_error_with_its_place(path: Path) -> None:
    write_updates(path, "rlhf", 4)
    before, broken = path.read_bytes(), b'{"stage": "rlhf", "upd\n'
    path.write_bytes(before + broken + before)
    with pytest.raises(Refusal, match=r"metrics.jsonl, line 5: not JSON"):
        jsonl.cut_back(path, "rlhf", 0)
    assert path.read_bytes() == before + broken + before


def test_cut_back_of_a_missing_file_makes_none(path: Path) -> None:
    jsonl.cut_back(path, "rlhf", 3)
    jsonl.drop_torn_line(path)
    assert not path.exists()


def test_a_failed_rename_leaves_the_file_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last line is of another stage and stays, so that the file is replaced."""
    write_updates(path, "rlhf", 3)
    write_updates(path, "sft", 1)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jsonl.os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*metrics.jsonl: No space left on device"):
        jsonl.cut_back(path, "rlhf", 1)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_one_line_that_names_the_file() -> None:
    with pytest.raises(
        OSError, match=r"^\[Errno 28\] cannot write /dev/full: No space left on device$"
    ):
        jsonl.append(Path("/dev/full"), {"stage": "sft"})


def test_a_line_that_fits_only_in_part_is_taken_back(path: Path) -> None:
    write_updates(path, "sft", 2)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # the kernel writes up to the limit, then refuses: what a disk does that fills up in the middle
    # of a line
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 11, limits[1]))
        with pytest.raises(OSError, match=r"cannot write .*metrics.jsonl"):
            jsonl.append(path, {"stage": "sft", "update": 2, "loss": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before


def test_reading_and_writing_start_no_device_backend(tmp_path):
    """A backend that starts early takes a GPU's memory, and comes before `jax.distributed` has been
    told of other processes.
    """
    code = """
import sys
from jax._src import xla_bridge
from rlhf_jax.records import jsonl, metrics, notes
path = __import__("pathlib").Path(sys.argv[1])
jsonl.append(path, {"stage": "sft", "update": 0})
jsonl.replace(path, path.read_bytes())
jsonl.cut_back(path, "sft", 1)
notes.say("written")
assert len(jsonl.read(path)) == 1
assert not xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "metrics.jsonl")], check=True)
