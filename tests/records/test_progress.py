"""A bar tells where a stage is, on a terminal and in a log file, and does not flood either."""

import io
import re

import pytest

from rlhf_jax.records import progress as progress_module
from rlhf_jax.records.progress import format_number, format_seconds, progress


class Clock:
    """Time that moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_file_gets_a_line_every_interval_and_one_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    with progress("Online DPO", total=60, stream=stream, interval_seconds=5, clock=clock) as bar:
        for update in range(60):
            clock.now += 0.5
            bar.advance(1, reward=update / 10, kl=0.8)
    printed = stream.getvalue().splitlines()
    assert len(printed) == 30 / 5 + 1
    # 10 of 60 steps after 5 s: 50 steps of 0.5 s are left
    assert printed[0] == "Online DPO  10/60  16%  reward 0.900  kl 0.800  [5.0 s, 25.0 s left]"
    assert printed[-1] == "Online DPO  60/60  100%  reward 5.90  kl 0.800  [30.0 s] done"


def test_each_line_is_flushed() -> None:
    class Counting(io.StringIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    stream, clock = Counting(), Clock()
    with progress("SFT", total=2, stream=stream, clock=clock) as bar:
        clock.now += 7
        bar.advance()
        assert stream.flushed == 1
    assert stream.flushed == 2


def test_time_left_counts_only_what_this_process_did() -> None:
    stream, clock = io.StringIO(), Clock()
    with progress("SFT", total=100, start=90, stream=stream, clock=clock) as bar:
        for _ in range(2):
            clock.now += 10
            bar.advance(4)
    assert stream.getvalue().splitlines()[1] == "SFT  98/100  98%  [20.0 s, 5.0 s left]"


def test_seconds_that_compile_do_not_count_in_the_time_left() -> None:
    """The first step compiles for 40 s and the first evaluation for 30 s; a step then takes 1 s, an
    evaluation 6 s.
    """
    stream, clock = io.StringIO(), Clock()
    with progress("GRPO", total=20, stream=stream, interval_seconds=0, clock=clock) as bar:
        for seconds, steps in ((40, 1), (30, 0), (1, 1), (1, 1), (6, 0), (1, 1)):
            clock.now += seconds
            bar.advance(steps)
    times = [line.partition("[")[2].partition("]")[0] for line in stream.getvalue().splitlines()]
    # 18 steps of 1 s; 17 steps of 1 s; 17 steps of (1 + 1 + 6) / 2 s; 16 of (1 + 1 + 6 + 1) / 3 s
    assert times[:3] == ["40.0 s", "1 min 10 s", "1 min 11 s, 18.0 s left"]
    assert times[3:6] == [
        "1 min 12 s, 17.0 s left",
        "1 min 18 s, 1 min 08 s left",
        "1 min 19 s, 48.0 s left",
    ]


def test_a_stage_that_fails_is_shown_as_stopped() -> None:
    stream = io.StringIO()

    def fail() -> None:
        with progress("SFT", total=3, stream=stream, clock=Clock()) as bar:
            bar.advance(loss=0.5)
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert stream.getvalue() == "SFT  1/3  33%  loss 0.500  [0.0 s] stopped at 1/3\n"


@pytest.mark.parametrize(
    ("done", "ending"), [(2, "stopped at 2/3"), (0, "stopped at 0/3"), (3, "done")]
)
def test_a_stage_that_ends_early_without_an_exception_is_not_done(done: int, ending: str) -> None:
    stream, clock = io.StringIO(), Clock()
    with progress("GRPO", total=3, stream=stream, clock=clock) as bar:
        for _ in range(done):
            clock.now += 1
            bar.advance()
    assert stream.getvalue() == f"GRPO  {done}/3  {100 * done // 3}%  [{done}.0 s] {ending}\n"


def test_a_terminal_shows_where_a_stage_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress("GRPO", total=3, stream=stream, clock=Clock()) as bar:
        bar.advance()
    assert "stopped at 1/3" in stream.getvalue()
    assert "done" not in stream.getvalue()


def screen(columns: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a terminal of that width shows at the end of a stage."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    with progress("Online [DPO]", total=3, stream=stream, clock=Clock()) as bar:
        for update in range(3):
            bar.advance(1, gold=update / 8, kl=0.5)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())  # colours, cursor movements
    return [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()]


def test_a_wide_terminal_shows_the_last_state_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    last = screen(100, monkeypatch)[-1]
    assert last == "Online [DPO] " + "━" * 24 + " 3/3 0.0 s done gold 0.250  kl 0.500"


def test_a_narrow_terminal_loses_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    bar, figures = screen(40, monkeypatch)[-2:]
    assert bar == "Online [DPO] " + "━" * 12 + " 3/3 0.0 s done"
    assert figures == "  gold 0.250  kl 0.500"


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with progress("SFT", total=1, stream=stream, clock=Clock()) as bar:
        bar.advance()
    assert stream.getvalue() == "SFT  1/1  100%  [0.0 s] done\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.3124, "0.312"),
        (12.34, "12.3"),
        (1250.4, "1250"),
        (3e-5, "3.0e-05"),
        (float("nan"), "nan"),
        (0.0, "0"),
    ]
    + [
        (7, "7"),
        (0.0012345, "0.00123"),
        (-0.0421, "-0.0421"),
        (999.9, "1000"),
        (1.2e8, "1.2e+08"),
        (-12.34, "-12.3"),
    ],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.24, "4.2 s"),
        (59.97, "1 min 00 s"),
        (185.4, "3 min 05 s"),
        (7620, "2 h 07 min"),
    ],
)
def test_times_are_readable(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["log file", "terminal"])
def test_a_notice_has_a_line_of_its_own(stream) -> None:
    """It is said at once, and no mark-up of the terminal's library is made of its brackets."""
    with progress("SFT", total=2, stream=stream) as bar:
        bar.advance()
        bar.say("notice: [red] 94 % of completions are cut")
        assert "notice: [red] 94 % of completions are cut\n" in stream.getvalue()


def test_the_innermost_bar_is_the_current_one_and_an_ended_one_is_not():
    assert progress_module.current_line() == ""
    with progress("SFT", total=4, stream=io.StringIO(), clock=Clock()) as bar:
        bar.advance(1, loss=2.0)
        assert progress_module.current_line() == "SFT  1/4  25%  loss 2.00  [0.0 s]"
        with progress("inner", total=1, stream=io.StringIO(), clock=Clock()):
            assert progress_module.current_line().startswith("inner  0/1")
    assert progress_module.current_line() == ""


def test_a_printed_line_ends_the_silence(monkeypatch):
    monkeypatch.setattr(progress_module, "_printed_at", progress_module.time.monotonic() - 100)
    assert progress_module.silent_seconds() > 99
    with progress("SFT", total=1, stream=io.StringIO()) as bar:
        bar.say("a line")
        assert progress_module.silent_seconds() < 50
