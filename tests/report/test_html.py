"""The page stands alone, says what the run is, shows what it was given, and obeys none of it."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlhf_jax.cli import report
from rlhf_jax.records import jsonl
from rlhf_jax.records.jsonl import Line
from rlhf_jax.records.metrics import MetricsWriter
from rlhf_jax.report import html, read
from rlhf_jax.report.html import write_report

pytestmark = pytest.mark.pictures

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
            assert re.fullmatch(r"#.*|[a-z_]+(\.jsonl?)?", value or ""), (
                value
            )  # a section, or a file of the run
        if name == "style":
            assert "url(http" not in (value or "")


def test_figures_are_what_the_lines_say(page: Reader) -> None:
    assert "0.500 → 0.900" in page.text  # win-rate
    assert "± 0.020 (1.96 standard errors over prompts)" in page.text  # of 0.01
    assert "0.400 → 1.300" in page.text  # gold, with the decimals of its interval
    assert "± 0.059 (1.96 standard errors over prompts)" in page.text  # of 0.03
    assert "0.970 → 0.750" in page.text  # distinct completions
    assert "0.00 → 2.00" in page.text  # the learned reward
    assert "5 stages, 13.1 s of it to compile" in page.text  # 3.1 + 4 + 6
    assert "1 min 30 s" in page.text  # 14.2 + 4.2 + 21 + 48 + 3
    assert "0.910" in page.text  # the reward model
    assert "Not there yet" not in page.text
    # nine learning curves, two of the trade-off, time; two other figures of SFT, two of the reward
    # model, five of RLHF
    # those of the trade-off and of time are drawn for a narrow page too
    assert page.seen.count("svg") == 9 + 2 * (2 + 1) + 2 + 2 + 5


def test_what_a_policy_wrote_is_shown_and_not_obeyed(page: Reader) -> None:
    assert "</td><script>alert(1)</script> & \\x1b[2J" in page.text
    assert "was rather dull and i slept" in page.text
    assert "was a quiet, moving joy" in page.text
    assert '"note": "<b>"' in page.text  # the config too


def test_the_newest_completion_of_a_prompt_is_better_or_worse(reported: Path) -> None:
    text = (reported / "report.html").read_text()
    row = next(part for part in text.split("<tr>") if ">the film<" in part)
    number = r'<td class="number"[^>]*>(?:<span class="(\w*)">)?([^<]*)<'
    assert re.findall(number, row) == [
        ("", "0.125"),
        ("", "0.250"),
        ("up", "1.75"),
        ("up", "3.50"),
    ]


def test_the_page_says_what_the_run_is(reported: Path) -> None:
    page = Reader((reported / "report.html").read_text())
    assert page.seen.count("h1") == 1
    assert "online_dpo on reviews" in page.text
    assert "learned (SFT standard deviations)" in page.text
    assert "sft 40 · reward_model 40 · rlhf 60" in page.text
    links = {
        value
        for name, value in page.attributes
        if name == "href" and value and not value.startswith("#")
    }
    assert links == {"config.json", "metrics.jsonl", "samples.jsonl", "plots"}


def test_the_contents_lead_to_sections_that_are_there(page: Reader) -> None:
    places = {value for name, value in page.attributes if name == "id"}
    links = [
        value[1:]
        for name, value in page.attributes
        if name == "href" and value and value.startswith("#")
    ]
    assert (
        len(
            [
                link
                for link in links
                if link in ("what-training-did", "evaluations", "resolved-config")
            ]
        )
        == 3
    )
    assert set(links) <= places
    assert "who-waited-for-whom" not in links  # no timeline was written


def test_every_figure_is_explained_and_every_cell_of_a_stacked_table_named(page: Reader) -> None:
    assert page.seen.count("figcaption") >= 12
    named = [value for name, value in page.attributes if name == "data-label"]
    assert {"prompt", "before", "after", "gold", "reward", "figure", "rlhf, update 60"} <= set(
        named
    )
    assert "exp of the SFT policy's negative log-likelihood per token" in page.text
    assert "`" not in page.text


def test_no_value_of_a_run_is_markup(run_directory: Path) -> None:
    """Names, prose, labels and numbers of a table are escaped as completions are."""
    nasty = "</b></td></h1><script>alert(1)</script>"
    config = json.loads((run_directory / "config.json").read_text())
    config |= {"algorithm": {"name": nasty}, "seed": nasty, "begin": nasty, "reward": nasty}
    config["task"]["name"] = nasty
    (run_directory / "config.json").write_text(json.dumps(config))
    start = {"stage": "start", "command": nasty, "commit": "<b>", "version": nasty, "host": nasty}
    start |= {"date": nasty, "at": {nasty: 1}, "changed": {nasty: [1, 2]}, "differences": [nasty]}
    start |= {"environment": {"device": nasty, "num_devices": 1}, "origins": {"sft": nasty}}
    (run_directory / "starts.jsonl").write_text(json.dumps(start) + "\n")
    with MetricsWriter(run_directory) as writer:
        writer.write("evaluate", 61, {"gold_mean": 1.0, nasty: 2.0}, of="rlhf")
    with (run_directory / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "rlhf", "kind": "notice", "text": f"`{nasty}`"}) + "\n")
    samples = run_directory / "samples.jsonl"
    samples.write_text(samples.read_text().replace("the film", nasty.replace('"', "'")))
    page = words(run_directory)
    assert "script" not in Reader(page).seen
    assert page.count("&lt;script&gt;") >= 15


def test_a_run_without_a_reward_model_has_no_card_of_it(run_directory: Path) -> None:
    """Nor has one without gold, and no card is empty."""

    def cards(page: str) -> list[tuple[str, str]]:
        return re.findall(r'<div class="card"><span>([^<]*)</span><b>(.*?)</b>', page)

    titles = [title for title, _ in cards(words(run_directory))]
    assert "Reward model" in titles
    assert "Gold win-rate" in titles
    metrics = run_directory / "metrics.jsonl"
    lines = [
        line
        for line in read.read_run(run_directory).lines
        if line["stage"] == "rlhf" or line.get("of") == "rlhf"
    ]
    names = ("reward_mean", "gold_mean", "gold_mean_stderr", "win_rate", "win_rate_stderr")
    kept = [{key: value for key, value in line.items() if key not in names} for line in lines]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in kept))
    page = words(run_directory)
    assert [title for title, _ in cards(page)] == [
        "KL to the SFT policy",
        "Distinct completions",
        "Wall time",
    ]
    assert all(re.sub("<.*?>", "", value).strip() for _, value in cards(page))
    assert "<td></td>" not in page


def rewritten(directory: Path, change: Callable[[Line], Line]) -> Reader:
    """The page of a run whose lines of metrics are changed."""
    path = directory / "metrics.jsonl"
    lines = [json.dumps(change(line)) for line in read.read_run(directory).lines]
    path.write_text("\n".join(lines) + "\n")
    return Reader(write_report(directory).read_text())


def words(directory: Path) -> str:
    """The page without its pictures, which take seconds to draw."""
    run = read.read_run(directory)
    return html.render(run, {})


def without_gold(line: Line) -> Line:
    return {
        name: value for name, value in line.items() if "gold" not in name and "win_rate" not in name
    }


def test_a_run_without_gold_does_not_mention_it(run_directory: Path) -> None:
    samples = run_directory / "samples.jsonl"
    samples.write_text(re.sub(r'"gold": [^,]*', '"gold": null', samples.read_text()))
    (run_directory / "metrics.jsonl").write_text(
        "".join(
            text
            for text in (run_directory / "metrics.jsonl").read_text().splitlines(True)
            if "best_of_n" not in text
        )
    )
    page = rewritten(run_directory, without_gold)
    shown = page.text[: page.text.rindex("All figures of each stage")]
    assert "gold" not in shown.lower()
    assert "0.00 → 2.00" in shown
    assert "of held-out comparisons ordered as labelled" in shown


@pytest.mark.parametrize("stderr", ["NaN", None])
def test_a_standard_error_that_is_not_known_is_not_printed(
    run_directory: Path, stderr: str | float | None
) -> None:
    """A single held-out prompt has a standard error that is not a number."""

    def change(line: Line) -> Line:
        return {name: stderr if name.endswith("_stderr") else value for name, value in line.items()}

    page = rewritten(run_directory, change)
    assert "nan" not in page.text.lower()
    assert "None" not in page.text
    assert "0.500 → 0.900" in page.text


def test_figures_that_are_not_finite_do_not_break_the_page(run_directory: Path) -> None:
    def change(line: Line) -> Line:
        lost = {"gold_mean": "NaN", "kl": "Infinity"} if line.get("update") == 60 else {}
        return line | {name: value for name, value in lost.items() if name in line}

    assert "0.400 → nan" in rewritten(run_directory, change).text


def test_an_interval_of_few_prompts_is_not_called_one_of_95_percent(run_directory: Path) -> None:
    """The run asks for 1,024 prompts.

    Its split holds two, so that two completions are kept; then it holds 24 and more.
    """
    page = Reader(words(run_directory))
    assert "(1.96 standard errors over prompts)" in page.text
    assert "95 %" not in page.text
    with (run_directory / "samples.jsonl").open("a") as file:
        for ordinal in range(24):
            line = {
                "stage": "rlhf",
                "update": 60,
                "kind": "after",
                "ordinal": ordinal,
                "prompt": "p",
                "completion": "c",
            }
            file.write(json.dumps(line | {"finished": True, "gold": None, "reward": None}) + "\n")
    page = Reader(words(run_directory))
    assert "± 0.020 (95 %)" in page.text
    assert "standard errors" not in page.text


def test_what_was_recorded_of_starts_is_shown(run_directory: Path) -> None:
    starts = [
        {"stage": "start", "date": "2026-11-28T10:20:00+00:00", "command": "python -m "
                                                                           "experiments.run --old", "commit": ""},
        {
            "stage": "start",
            "date": "2026-11-29T08:00:00+00:00",
            "command": "python -m experiments.run --config=a.py --config.note='<b>'",
            "version": "0.1.0",
            "commit": "0123456789abcdef0123456789abcdef01234567+changes",
            "environment": {
                "python": "3.11.7", "versions": {"jax": "0.10.1"}, "device": "TPU v5e", "num_devices": 8, "num_processes": 2,
                "processor": "A processor", "cores": 112,
            },
        },
    ]  # fmt: skip
    (run_directory / "starts.jsonl").write_text(
        "".join(json.dumps(start) + "\n" for start in starts)
    )
    page = Reader(words(run_directory))
    assert "2026-11-28 10:20:00 UTC; 2 starts, the last at 2026-11-29 08:00:00 UTC" in page.text
    assert "python -m experiments.run --config=a.py --config.note='<b>'" in page.text
    assert "0123456789ab with changes" in page.text
    assert "rlhf_jax 0.1.0, python 3.11.7, jax 0.10.1" in page.text
    assert "8 × TPU v5e on 2 hosts; A processor, 112 cores" in page.text


def test_starts_say_from_which_version_and_what_was_changed(run_directory: Path) -> None:
    start = {
        "stage": "start", "date": "2026-11-29T08:00:00+00:00", "host": "node-7", "command": "", "commit": "",
        "environment": {"device": "cpu", "num_devices": 2}, "at": {"sft": 60, "rlhf": 16},
        "changed": {"rlhf.loop": ["synchronous", "asynchronous"], "mesh.data": [4, 2]},
        "differences": ["the number of devices was 4 and is 2"],
    }  # fmt: skip
    (run_directory / "starts.jsonl").write_text(json.dumps(start) + "\n")
    config = json.loads((run_directory / "config.json").read_text())
    (run_directory / "config.json").write_text(json.dumps(config | {"begin": "runs/first@16"}))
    page = Reader(words(run_directory))
    for said in (
        "node-7",
        "sft 60, rlhf 16",
        "rlhf.loop: 'synchronous' → 'asynchronous'; mesh.data: 4 → 2",
    ):
        assert said in page.text
    assert "the number of devices was 4 and is 2" in page.text
    assert "runs/first@16" in page.text


def test_completions_during_training_name_their_updates(run_directory: Path) -> None:
    lines = [
        {"stage": "rlhf", "update": update, "kind": "during", "ordinal": row, "prompt": "p", "completion": f"u{update}",
         "finished": True, "gold": None, "reward": 0.5}
        for update in range(64)
        for row in range(4)
    ]  # fmt: skip
    path = run_directory / "samples.jsonl"
    kept = [text for text in path.read_text().splitlines() if '"during"' not in text]
    path.write_text("\n".join([*kept, *map(json.dumps, lines)]) + "\n")
    page = Reader(words(run_directory))
    assert "Completions during training: updates 0 to 63, 15 of 64" in page.text
    assert "u0" in page.text
    assert "u63" in page.text


def test_notices_stand_at_the_head(run_directory: Path) -> None:
    with (run_directory / "metrics.jsonl").open("a") as file:
        file.write(
            json.dumps(
                {"stage": "rlhf", "kind": "notice", "text": "80 % are cut: raise `lengths.max`"}
            )
            + "\n"
        )
    text = words(run_directory)
    assert text.index("80 % are cut: raise <code>lengths.max</code>") < text.index('class="cards"')


def test_a_single_picture_is_as_large_as_one_of_many(run_directory: Path) -> None:
    """A run whose SFT policy was not evaluated has one picture of the trade-off: it must not fill
    the page.
    """

    def change(line: Line) -> Line:
        return {
            name: value for name, value in line.items() if name not in ("gold_mean", "reward_mean")
        }

    assert rewritten(run_directory, change).seen.count("svg") == 8 + 2 * (1 + 1) + 2 + 2 + 5
    text = (run_directory / "report.html").read_text()
    section = text.partition('id="what-it-cost-in-kl"')[2].partition("<svg")[0]
    assert 'class="pictures"' in section


def test_plots_are_kept_as_pictures(reported: Path) -> None:
    names = {path.name for path in (reported / "plots").iterdir()}
    stages = {f"stage_{stage}.png" for stage in ("sft", "reward_model", "rlhf")}
    assert names == {"learning_curves.png", "trade_off.png", "time_per_stage.png"} | stages
    assert all((reported / "plots" / name).read_bytes().startswith(b"\x89PNG") for name in names)
    assert not list(reported.glob(".*"))  # no temporary file is left


def test_a_run_of_one_line_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"stage": "sft", "update": 0, "loss": 3.5}\n{"stage": "sft", "upd'
    )
    page = Reader(write_report(tmp_path).read_text())
    assert "stage sft has not ended (1 updates done)" in page.text
    assert "no evaluation before training" in page.text
    assert page.seen.count("svg") == 1


def test_the_command_prints_the_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert report.main([f"--directory={tmp_path}"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    assert "stage sft has not begun" in (tmp_path / "report.html").read_text()


def test_the_command_says_what_is_wrong_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([f"--directory={tmp_path / 'nowhere'}"]) == 2
    (tmp_path / "metrics.jsonl").write_text("{}\n{}\n")
    assert report.main([f"--directory={tmp_path}"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "nowhere is no run directory" in first
    assert "metrics.jsonl, line 1: expected an object" in second


@pytest.mark.parametrize("content", [b'{"seed": 0, "ta', b"\xff\xfe", b"[]", b""])
def test_a_damaged_config_is_told_in_one_line(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert report.main([f"--directory={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.json is damaged" in line


def test_the_speed_of_each_stage_is_shown_with_its_unit(run_directory: Path) -> None:
    speeds = {"round_seconds": 0.25, "samples_per_second": 2048.0, "train_mfu": 0.41}
    path = run_directory / "metrics.jsonl"
    lines = jsonl.read(path)
    path.write_text(
        "".join(
            json.dumps(
                line | speeds
                if line["stage"] == "rlhf" and "update" in line and "of" not in line
                else line
            )
            + "\n"
            for line in lines
        )
    )
    text = write_report(run_directory).read_text()
    section = text.split('id="speed"')[1]
    for figure, shown in (("a round", "0.25 s"), ("samples per second", "2048"), ("(MFU)", "41 %")):
        assert figure in section
        assert shown in section


def test_a_run_without_speeds_has_no_section_of_them(reported: Path) -> None:
    assert 'id="speed"' not in (reported / html.FILE).read_text()
