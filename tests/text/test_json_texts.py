"""JSON of others: what is read, and one line that names the place of everything that cannot be."""

import gzip

import pytest

from rlhf_jax.text import json_texts

LINE = b'{"prompt": "a"}\n'


def test_an_object_is_read_with_a_mark_at_its_beginning_and_odd_numbers(tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(
        b'\xef\xbb\xbf{"a": [1e30, NaN], "b": "\xc3\xa9\xe2\x80\xa8\\ud83d\\ude00", "c": 1, "c": 1}'
    )
    found = json_texts.read_object(file)
    assert (found["a"][0], found["b"], found["c"]) == (1e30, "é\u2028😀", 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[1]", r": found \[1\]; accepted: a JSON object"),
        (b"", ': "" is not JSON'),
        (b'{"a": "caf\xe9"}', r":1: found a byte 0xe9 that is not UTF-8"),
        (b'{"a": 1,\n"b":\n"\xff"}', r":3: found a byte 0xff that is not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), r":1: found a byte 0x.. that is not UTF-8"),
        (
            b'{"a": {"b": ["x", "y\\ud83d"]}}',
            r": 'a\.b\[1\]' holds '.ud83d', half of a character; remove it",
        ),
        (b'{"a": {"\\ude00": 1}}', "half of a character"),
        (b'{"eos": "a", "eos": "b"}', r'the key "eos" has two values, "a" and "b"'),
        (b'{"a": {"b": 1, "b": 2}}', r'the key "b" has two values, 1 and 2'),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read: Exceeds the limit"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_the_file(tmp_path, data, message):
    file = tmp_path / "config.json"
    file.write_bytes(data)
    with pytest.raises(json_texts.Refusal, match=message) as error:
        json_texts.read_object(file)
    assert str(error.value).startswith(f"{file}:")
    assert "\n" not in str(error.value)
    str(error.value).encode()  # can be printed


def test_a_file_that_is_not_there_and_a_folder(tmp_path):
    with pytest.raises(json_texts.MissingInput, match=r"none\.json is missing"):
        json_texts.read_object(tmp_path / "none.json")
    with pytest.raises(json_texts.Refusal, match=r"cannot be read \(Is a directory\)"):
        json_texts.read_object(tmp_path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LINE + b"{", r":2: .* is not JSON \(.*\); accepted: a JSON object a line"),
        (LINE + b"\n", r":2: \"\" is not JSON"),
        (LINE + b'"text"', r":2: found \"text\"; accepted: a JSON object a line"),
        (LINE + LINE + b'{"a": "caf\xe9"}', r":3: found a byte 0xe9"),
        (LINE + b"\xef\xbb\xbf" + LINE, r":2: .* is not JSON"),
        (LINE + b'{"a": 1, "a": 2}', r':2: .* the key "a" has two values'),
    ],
)
def test_a_wrong_line_is_named(tmp_path, pack, data, message):
    file = tmp_path / ("rows.jsonl" if pack is bytes else "rows.jsonl.gz")
    file.write_bytes(pack(data))
    with pytest.raises(json_texts.Refusal, match=message) as error:
        list(json_texts.lines(file))
    assert str(error.value).startswith(f"{file}:")


def test_a_packed_file_that_is_cut_or_none_is_named(tmp_path):
    file = tmp_path / "rows.jsonl.gz"
    for data in (gzip.compress(LINE * 2000)[:60], LINE):
        file.write_bytes(data)
        with pytest.raises(
            json_texts.Refusal, match=r"rows\.jsonl\.gz cannot be read after line \d+ \(.+\)"
        ):
            list(json_texts.lines(file))


def test_only_newlines_end_a_line(tmp_path):
    file = tmp_path / "rows.jsonl"
    odd = "one\u2028two\x85three"
    file.write_bytes(b'\xef\xbb\xbf{"a": "' + odd.encode() + b'"}\r\n' + LINE)
    assert [row for _, row in json_texts.lines(file)] == [{"a": odd}, {"prompt": "a"}]
    assert [where for where, _ in json_texts.lines(file)] == [f"{file}:1", f"{file}:2"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "w: 'k' is null; accepted: a text that is not empty"),
        (3, "w: 'k' is 3; accepted"),
        (float("nan"), "w: 'k' is NaN; accepted"),
        ("", "w: 'k' is \"\"; accepted: a text that is not empty"),
        ("b\ud83d", r"w: 'k' holds '.ud83d', half of a character; remove it"),
    ],
)
def test_a_field_that_is_no_text_is_named(value, message):
    with pytest.raises(json_texts.Refusal, match=message):
        json_texts.text("w", {"k": value}, "k")
    assert json_texts.text("w", {"k": "\U0001f600"}, "k") == "\U0001f600"
    assert json_texts.text("w", {"k": ""}, "k", empty=True) == ""
