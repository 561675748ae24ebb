"""The command report: a directory by position or by flag, and `--watch` until no process runs it."""

import contextlib
import threading
from pathlib import Path

import pytest

from rlhf_jax.cli import report
from rlhf_jax.report import html
from rlhf_jax.run_directory import lock


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory, whose report counts the lines of its metrics instead of drawing."""

    def write_report(directory: Path) -> Path:
        path = directory / "report.html"
        with path.open("a") as file:
            file.write(f"{len((directory / 'metrics.jsonl').read_text().splitlines())}\n")
        return path

    monkeypatch.setattr(html, "write_report", write_report)
    monkeypatch.setattr(report, "POLL_SECONDS", 0.01)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    return tmp_path


def add(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write("{}\n")


def test_a_run_is_given_by_position_or_by_flag(run: Path, capsys) -> None:
    for arguments in ([str(run)], [f"--directory={run}"]):
        assert report.main(arguments) == 0
        assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    for wrong in ([], [str(run), f"--directory={run}"], [str(run), "--every=0"]):
        with pytest.raises(SystemExit) as left:
            report.main(wrong)
        assert left.value.code == 2


def test_a_run_that_has_ended_is_written_once(run: Path, capsys) -> None:
    assert report.main([str(run), "--watch"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first == str(run / "report.html")
    assert last == "no process runs it any more: the report is up to date"
    assert (run / "report.html").read_text() == "1\n"


def test_a_report_is_written_when_there_is_something_new_until_the_run_ends(run: Path) -> None:
    """The page is written at once, after the second line, and at the end for the third."""

    def wait(directory: Path, seconds: float) -> None:
        """The second look finds a line more, the third nothing, the last one the end."""
        looks.append(seconds)
        if len(looks) == 1:
            add(directory)
        if len(looks) == 3:
            add(directory)
            held.close()

    looks: list[float] = []
    held = contextlib.ExitStack()
    held.enter_context(lock.hold(run))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_wait", wait)
        report.watch(run, 7.0)
    assert looks == [7.0] * 3
    assert (run / "report.html").read_text() == "1\n2\n3\n"


def test_a_wait_ends_with_the_run(run: Path) -> None:
    held = contextlib.ExitStack()
    held.enter_context(lock.hold(run))
    timer = threading.Timer(0.05, held.close)
    timer.start()
    report._wait(run, 60.0)  # the test's time limit would end it
    timer.join()


def test_an_interruption_is_one_line(run: Path, capsys, monkeypatch) -> None:
    def interrupted(directory: Path, seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "_wait", interrupted)
    with lock.hold(run):
        assert report.main([str(run), "--watch"]) == 130
    out, err = capsys.readouterr()
    assert out == f"{run / 'report.html'}, written again every 30 s\n"
    said = "interrupted; the report is that of the last figures; the same command watches on"
    assert err.strip() == said
