"""Lines are read in turn and from the end, and a start reads no more of a long file than its end."""

import json
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlhf_jax.clock import Clock
from rlhf_jax.records import jsonl, ledger, lines, metrics
from rlhf_jax.records.samples import SamplesWriter
from rlhf_jax.refusal import Refusal
from rlhf_jax.stages.checks import earlier

ROUNDS, ROWS = 2000, 10
PROC = Path("/proc/self/io")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose ledger, metrics and samples have 20,000 lines each."""
    directory = tmp_path_factory.mktemp("long")
    row = {"ordinal": 3, "prompt_hash": 5, "sample": 0, "length": 7, "ages": [0], "gold": None}
    for name in (ledger.FILE, metrics.FILE, "samples.jsonl"):
        jsonl.append_all(
            directory / name,
            (
                {"stage": "rlhf", "update": r, "round": r, "version": max(0, r - 1)}
                | row
                | {"kind": "during", "text": 'he said "version": 3 ' + "x" * 60}
                for r in range(ROUNDS)
                for _ in range(ROWS)
            ),
        )
    return directory


@contextmanager
def reading_at_most(share: float, directory: Path) -> Iterator[None]:
    """Fails where the process reads more bytes than this share of the ledger of a directory."""

    def read() -> int:
        return int(PROC.read_text().split("rchar: ")[1].split()[0])

    before = read()
    yield
    assert read() - before < share * (directory / ledger.FILE).stat().st_size


def resumed_ledger(directory: Path) -> None:
    ledger.Ledger(directory).resume(ROUNDS - 3, updates_per_round=1)


def resumed_metrics(directory: Path) -> None:
    with metrics.MetricsWriter(directory) as writer:
        writer.resume("rlhf", ROUNDS - 3, ROUNDS - 2)


def resumed_samples(directory: Path) -> None:
    SamplesWriter(directory).resume("rlhf", ROUNDS - 3)


@pytest.mark.skipif(not PROC.exists(), reason="the kernel's count of bytes read")
@pytest.mark.parametrize("resume", [resumed_ledger, resumed_metrics, resumed_samples])
def test_a_resume_reads_the_end_alone(
    long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: Callable[[Path], None]
) -> None:
    for path in long.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    parsed: list[object] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or loads(text))
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1 << 14)
    with reading_at_most(0.05, tmp_path):
        resume(tmp_path)
    assert len(parsed) < 2 * ROWS
    (name,) = [
        path.name
        for path in long.iterdir()
        if path.stat().st_size != (tmp_path / path.name).stat().st_size
    ]
    kept = jsonl.read(tmp_path / name)
    assert len(kept) == (ROUNDS - 3) * ROWS
    assert kept == jsonl.read(long / name)[: len(kept)]


@pytest.mark.skipif(not PROC.exists(), reason="the kernel's count of bytes read")
def test_a_check_for_another_stage_reads_the_end_alone(long: Path) -> None:
    with reading_at_most(0.2, long):
        assert earlier._has_lines(long, "rlhf", "dpo")
        assert not earlier._has_lines(long, "dpo", "rlhf")
        assert lines.last_update(long / metrics.FILE, "rlhf") == ROUNDS - 1


def peak_bytes(body: Callable[[], object]) -> int:
    """The most memory that Python objects of a call take at once."""
    tracemalloc.start()
    try:
        body()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_schedule_is_read_without_the_rows_in_memory(
    long: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json, "loads", lambda text: pytest.fail("a row was parsed"))
    path, clock = long / ledger.FILE, Clock(ROUNDS)
    expected = tuple(max(0, r - 1) for r in range(ROUNDS))
    size = path.stat().st_size
    # a set and its integers for each round, and no rows
    assert peak_bytes(lambda: ledger.version_schedule(path, clock)) < 400 * ROUNDS < size / 4
    assert ledger.version_schedule(path, clock) == expected
    assert peak_bytes(lambda: ledger.lengths(path)) < size / 4
    assert ledger.lengths(path) == (7,) * (ROUNDS * ROWS)


def test_a_schedule_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    written = ledger.Ledger(tmp_path)
    for version in (0, 1):
        written.path.unlink(missing_ok=True)
        rows = [{"round": r, "version": r * version} for r in range(2)]
        for r in range(2):
            written.write(r, rows[r : r + 1])
        assert ledger.version_schedule(written.path, Clock(2)) == (0, version)


@pytest.mark.parametrize(
    "text",
    [
        '{"stage":"rlhf","text":"\\"round\\": 8","version":5,"round":4}',
        '{"stage": "rlhf", "text": "\\"round\\": 8, \\"version\\": 9", "round": 4, "version": 5}',
    ],
    ids=["without spaces", "a text that quotes a row"],
)
def test_integers_of_a_row_that_somebody_else_wrote(path: Path, text: str) -> None:
    path.write_text(text + "\n" + text)
    assert list(lines.integers(path, ("round", "version"))) == [(4, 5)]


@pytest.mark.parametrize("value", ["null", "true", "1.5", '"4"'])
def test_a_row_without_the_integer_is_named(path: Path, value: str) -> None:
    path.write_text('{"stage": "rlhf", "round": 4}\n{"stage": "rlhf", "round": ' + value + "}\n")
    with pytest.raises(Refusal, match=r"ledger.jsonl, line 2: expected an integer as 'round'"):
        list(lines.integers(path, ("round",)))


@pytest.mark.parametrize("block", [1, 2, 5, 1000])
@pytest.mark.parametrize("text", ["", "a", "a\n", "\n", "a\nbc\n\nd", "aa\nbb\ncc\n"])
def test_lines_from_the_end_are_those_from_the_beginning(
    path: Path, monkeypatch: pytest.MonkeyPatch, block: int, text: str
) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", block)
    path.write_text(text)
    found = list(lines.from_end(path))
    assert [piece for _, piece in reversed(found)] == list(lines.texts(path))
    for begin, piece in found:
        assert path.read_bytes()[begin : begin + len(piece) + 1] == piece + b"\n"


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ('{"stage": "sft", "update": 3}', lines.Head("sft", None, 3)),
        (
            '{"stage": "evaluate", "of": "sft", "update": 3, "x": 1}',
            lines.Head("evaluate", "sft", 3),
        ),
        ('{"stage": "evaluate", "update": 3, "of": "sft"}', lines.Head("evaluate", "sft", 3)),
        ('{"update":3,"stage":"sft"}', lines.Head("sft", None, 3)),
        ('{"stage": "sft", "kind": "timing"}', lines.Head("sft", None, None)),
    ],
)
def test_the_head_of_a_line(path: Path, text: str, head: lines.Head) -> None:
    assert lines.head_of(text.encode(), path, 0) == head


def test_a_line_that_was_cut_within_is_no_head(path: Path) -> None:
    path.write_text('{"stage": "sft", "update": 3, "loss"\n')
    with pytest.raises(Refusal, match=r"ledger.jsonl, line 1: not JSON"):
        lines.last_update(path, "sft")
