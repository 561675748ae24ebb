"""The page stands alone, shows what it was given, and obeys none of it."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments import report
from rlhf_jax.report.html import write_report

VOID = {"meta", "path", "use", "br", "rect"}


class Reader(HTMLParser):
    """Text, attributes and whether every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def page(reported: Path) -> Reader:
    return Reader((reported / "report.html").read_text())


def test_nothing_is_fetched_and_nothing_runs(page: Reader) -> None:
    assert not {"script", "link", "iframe", "object", "img"} & set(page.seen)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert (value or "").startswith("#")
        if name == "style":
            assert "url(http" not in (value or "")


def test_figures_are_what_the_lines_say(page: Reader) -> None:
    assert "0.500 → 0.900" in page.text  # win-rate
    assert "± 0.02 (95 %)" in page.text  # 1.96 * 0.01
    assert "0.970 → 0.750" in page.text  # distinct completions
    assert "1 min 30 s" in page.text  # 14.2 + 4.2 + 21 + 48 + 3
    assert "0.910" in page.text  # the reward model
    assert "Not there yet" not in page.text
    assert page.seen.count("svg") == 6  # curves, trade-off, time, and one for each stage with other figures


def test_what_a_policy_wrote_is_shown_and_not_obeyed(page: Reader) -> None:
    assert "</td><script>alert(1)</script> & \\x1b[2J" in page.text
    assert "was rather dull and i slept" in page.text
    assert "was a quiet, moving joy" in page.text
    assert '"note": "<b>"' in page.text  # the config too


def test_the_newest_completion_of_a_prompt_is_better_or_worse(reported: Path) -> None:
    text = (reported / "report.html").read_text()
    row = next(part for part in text.split("<tr>") if ">the film<" in part)
    assert re.findall(r'<span class="(\w*)">([^<]*)</span>', row) == [
        ("", "0.125"),
        ("", "0.250"),
        ("up", "1.75"),
        ("up", "3.50"),
    ]


def test_plots_are_kept_as_pictures(reported: Path) -> None:
    names = {path.name for path in (reported / "plots").iterdir()}
    stages = {f"stage_{stage}.png" for stage in ("sft", "reward_model", "rlhf")}
    assert names == {"learning_curves.png", "trade_off.png", "time_per_stage.png"} | stages
    assert all((reported / "plots" / name).read_bytes().startswith(b"\x89PNG") for name in names)
    assert not list(reported.glob(".*"))  # no temporary file is left


def test_a_run_of_one_line_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"stage": "sft", "update": 0, "loss": 3.5}\n{"stage": "sft", "upd')
    page = Reader(write_report(tmp_path).read_text())
    assert "stage sft has not ended (1 updates done)" in page.text
    assert "no evaluation before training" in page.text
    assert page.seen.count("svg") == 1


def test_the_command_prints_the_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert report.main([f"--directory={tmp_path}"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    assert "stage sft has not begun" in (tmp_path / "report.html").read_text()


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([f"--directory={tmp_path / 'nowhere'}"]) == 2
    (tmp_path / "metrics.jsonl").write_text("{}\n{}\n")
    assert report.main([f"--directory={tmp_path}"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "nowhere is no run directory" in first
    assert "metrics.jsonl, line 1: expected an object" in second
