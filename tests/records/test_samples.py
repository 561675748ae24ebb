"""Completions are kept as they are, and shown so that they cannot harm a terminal."""

import io
from pathlib import Path

import pytest

from rlhf_jax.records.samples import Sample, SamplesWriter, printable, read, show

NASTY = "[red]bold[/red] \x1b[2J\x00\nnext\r\ud800 <b>&amp;</b> ünï 你好"


def test_samples_come_back_as_they_were(tmp_path: Path) -> None:
    writer = SamplesWriter(tmp_path / "run")
    samples = [
        Sample(5, NASTY, NASTY[::-1], False, gold=0.25),
        Sample(7, "a", "", True, reward=float("inf")),
    ]
    writer.write("rlhf", 3, "before", samples)
    first, second = read(tmp_path / "run" / "samples.jsonl")
    assert (first["prompt"], first["completion"]) == (NASTY, NASTY[::-1])
    assert (first["stage"], first["update"], first["kind"], first["ordinal"]) == (
        "rlhf",
        3,
        "before",
        5,
    )
    assert (first["gold"], first["reward"], first["finished"]) == (0.25, None, False)
    assert second["reward"] == float("inf")


def test_resume_cuts_samples_back(tmp_path: Path) -> None:
    writer = SamplesWriter(tmp_path)
    for update in (0, 2, 4):
        writer.write("rlhf", update, "during", [Sample(1, "a", "b", True)])
    writer.path.write_bytes(writer.path.read_bytes() + b'{"stage": "rl')
    SamplesWriter(tmp_path).resume("rlhf", 2)
    assert [line["update"] for line in read(writer.path)] == [0]


def test_an_unknown_kind_lists_those_accepted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="accepted: before, during, after"):
        SamplesWriter(tmp_path).write("rlhf", 3, "later", [])  # pyright: ignore[reportArgumentType]


def test_the_table_shows_text_and_never_obeys_it() -> None:
    stream = io.StringIO()
    samples = [
        Sample(5, "the film", NASTY, False, gold=0.25),
        Sample(7, "x", "y", True),
        Sample(8, "never shown", "", True),
    ]
    show("SFT [policy]", samples, stream, limit=2)
    text = stream.getvalue()
    assert "SFT [policy]" in text
    assert "[red]bold[/red] \\x1b[2J\\x00⏎next" in " ".join(text.split())
    assert "0.250" in text
    assert "–" in text
    assert "never shown" not in text
    assert "\x1b" not in text


def test_printable_keeps_letters_of_every_script() -> None:
    assert printable("ünï 你好\n") == "ünï 你好⏎"
    assert printable("\ud800\u202e\t") == "\\ud800\\u202e\\t"
