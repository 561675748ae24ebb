"""Published files: every layout is found, and one clear line says what is missing, broken or
malformed.
"""

import gzip
import json
import subprocess
import sys

import pytest

from rlhf_jax.tasks import gsm8k
from rlhf_jax.tasks.corpora import published_files, row_files
from tests.tasks import published

ROWS = published.gsm8k_rows(7)
OTHERS = published.gsm8k_rows(5, first=100)


def make(folder, **options):
    return gsm8k.make(gsm8k.Config(data_dir=str(folder), **options))


def prompts(task, split):
    return [task.prompt(split, index) for index in range(task.num_prompts(split))]


def expected(rows):
    return [f"[MATH_TASK] Problem:\n{row['question']}\n\nSolution:" for row in rows]


def write(folder, train="train.jsonl", test="test.jsonl"):
    """Rows of both splits in the files that are named, dealt out in order."""
    for names, rows in ((train, ROWS), (test, OTHERS)):
        names = [names] if isinstance(names, str) else names
        each = -(-len(rows) // len(names))
        for place, name in enumerate(names):
            part = rows[place * each : (place + 1) * each]
            (published.write_parquet if name.endswith("parquet") else published.write_jsonl)(
                folder / name, part
            )
            if name.endswith(".gz"):
                (folder / name).write_bytes(gzip.compress((folder / name).read_bytes()))
    return folder


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.jsonl", "test.jsonl"),
        ("grade_school_math/data/train.jsonl", "grade_school_math/data/test.jsonl"),
        ("main/train-00000-of-00001.parquet", "main/test-00000-of-00001.parquet"),
        (
            "data/train-00000-of-00001-426cd34670b48ee8.parquet",
            "data/test-00000-of-00001-21a578b9a2ef8a95.parquet",
        ),
        (
            ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
            "test-00000-of-00001.parquet",
        ),
        (["default/train/0000.parquet", "default/train/0001.parquet"], "default/test/0000.parquet"),
        ("main/train/0000.parquet", "main/test/0000.parquet"),
        ("data/train-00000-of-00001.parquet", "test.jsonl"),
        ("train.parquet", "test.parquet"),
        ("data/train.parquet", "main/test.parquet"),
        ("train.json", "test.jsonl.gz"),
        ("main/train.jsonl", "test.json"),
    ],
)
def test_every_layout_gives_the_same_rows_in_order(tmp_path, train, test):
    folder = write(tmp_path, train, test)
    # Neighbours that are of no split of ours: the first name begins like one of them.
    published.write_parquet(folder / "data" / "train_extra-00000-of-00001.parquet", OTHERS)
    published.write_jsonl(folder / "test_socratic.jsonl", ROWS)
    task = make(folder)
    assert prompts(task, "train") == expected(ROWS)
    assert prompts(task, "heldout") == expected(OTHERS)
    assert task.description == (
        "gsm8k, prompts: train: 7 of 7 rows (7473 are published); heldout: 5 of 5 rows (1319 are "
        "published)"
    )


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            ["data/train-00000-of-00003.parquet", "data/train-00002-of-00003.parquet"],
            r"train-\*: shard 1 of 3 is missing",
        ),
        (
            "data/train-00000-of-00002-0123456789abcdef.parquet",
            r"shard 1 of 2 is missing \(1 in all\); download",
        ),
        (
            ["main/train/0000.parquet", "main/train/0002.parquet"],
            r"0001\.parquet is missing, beside 0002\.parquet",
        ),
        (
            [
                "data/train-00000-of-00001.parquet",
                "data/train-00000-of-00001-0123456789abcdef.parquet",
            ],
            r"shards of different revisions, .*; keep those of one",
        ),
        (
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00003.parquet"],
            "different revisions",
        ),
        (
            "other.jsonl",
            r"no files of the split 'train': looked for data/train-\*\.parquet, .*; found "
            r"other\.jsonl, test",
        ),
    ],
)
def test_missing_files_are_named(tmp_path, train, message):
    with pytest.raises(ValueError, match=message) as error:
        make(write(tmp_path, train))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "array_record").exists()


def test_a_missing_folder_says_what_should_be_there(tmp_path):
    for path in ("", str(tmp_path / "none"), str(write(tmp_path) / "train.jsonl")):
        with pytest.raises(
            ValueError,
            match=r"task\.data_dir '.*' is not a folder; it should hold GSM8K: .*openai/gsm8k",
        ):
            gsm8k.make(gsm8k.Config(data_dir=path))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_columns_are_found_by_name_and_those_found_are_listed(tmp_path, suffix):
    extra = [
        {"id": n, "answer": row["answer"], "question": row["question"]}
        for n, row in enumerate(ROWS)
    ]
    writer = published.write_parquet if suffix == "parquet" else published.write_jsonl
    writer(write(tmp_path) / f"train.{suffix}", extra)
    if suffix == "parquet":
        (tmp_path / "train.parquet").rename(tmp_path / "train-00000-of-00001.parquet")
    assert prompts(make(tmp_path), "train") == expected(ROWS)
    file = next(tmp_path.glob("train*parquet"), tmp_path / "train.jsonl")
    writer(file, [{"problem": row["question"], "answer": row["answer"]} for row in ROWS])
    with pytest.raises(
        ValueError, match=r"train.* has the columns problem, answer; accepted: question, answer$"
    ):
        make(tmp_path)


LINE = json.dumps(ROWS[0])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE[:-5], r"train\.jsonl:2: .* is not JSON \(.*\); accepted: a JSON object a line"),
        ("", r":2: \"\" is not JSON"),
        ("[1]", r":2: found \[1\]; accepted: a JSON object a line"),
        ('{"question": "q"}', r":2: 'answer' is missing; found 'question'"),
        (
            '{"question": 3, "answer": "#### 1"}',
            r":2: 'question' is 3; accepted: a text that is not empty",
        ),
        ('{"question": "", "answer": "#### 1"}', r":2: 'question' is \"\"; accepted"),
        (
            '{"question": "q\\ud800", "answer": "#### 1"}',
            r":2: 'question' holds '.ud800', half of a character",
        ),
        (
            '{"question": "q", "answer": "It is 7."}',
            r":2: 'answer' has no '#### number': \"It is 7\.\"",
        ),
    ],
)
def test_a_malformed_line_is_named_and_nothing_is_kept(tmp_path, line, message):
    (write(tmp_path) / "train.jsonl").write_text(f"{LINE}\n{line}\n{LINE}\n")
    with pytest.raises(ValueError, match=message) as error:
        make(tmp_path)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "array_record").iterdir()) == []


def test_bytes_that_are_no_text_are_named(tmp_path):
    (write(tmp_path) / "train.jsonl").write_bytes(LINE.encode() + b'\n{"question": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"train\.jsonl:2: found a byte 0xe9 that is not UTF-8"):
        make(tmp_path)
    (tmp_path / "train.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train\.jsonl is empty; .*download it again"):
        make(tmp_path)


def test_a_malformed_row_of_a_table_is_named(tmp_path):
    file = "train-00000-of-00001.parquet"
    published.write_parquet(
        write(tmp_path, file) / file, [ROWS[0], {"question": "q", "answer": None}]
    )
    with pytest.raises(
        ValueError,
        match=r"train-00000-of-00001\.parquet, row 2: 'answer' is null; accepted: a text",
    ):
        make(tmp_path)


def test_a_damaged_table_is_named(tmp_path):
    file = write(tmp_path, "train-00000-of-00001.parquet") / "train-00000-of-00001.parquet"
    whole = file.read_bytes()
    middle = bytes(255 - byte for byte in whole[8:200])
    for damaged in (
        whole[:-9],
        whole[: len(whole) // 2],
        b"",
        b"version https://git-lfs",
        whole[:8] + middle + whole[200:],
    ):
        file.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"of-00001\.parquet is not a whole parquet file \(.*\); download it"
        ) as error:
            make(tmp_path)
        assert "\n" not in str(error.value)


def test_only_newlines_end_a_line(tmp_path):
    odd = "one\u2028two\x85three\rfour"
    rows = [*ROWS, {"question": odd, "answer": "#### 7"}]
    published.write_jsonl(write(tmp_path) / "train.jsonl", rows)
    assert "\u2028" in (tmp_path / "train.jsonl").read_text(encoding="utf-8")
    data = (tmp_path / "train.jsonl").read_bytes()
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"))
    assert prompts(make(tmp_path), "train") == expected(rows)


def test_a_prompt_is_kept_once_and_on_one_side(tmp_path):
    again = [{"question": ROWS[2]["question"], "answer": "#### 5"}]
    published.write_jsonl(write(tmp_path) / "train.jsonl", [*ROWS, *again])
    published.write_jsonl(tmp_path / "test.jsonl", [*again, *OTHERS, OTHERS[3]])
    task = make(tmp_path)
    assert prompts(task, "train") == expected(ROWS)
    assert prompts(task, "heldout") == expected(OTHERS)
    assert task.references("train", 2)[0].strip().endswith("#### 996")
    assert task.description.endswith(
        "train: 7 of 8 rows (7473 are published); heldout: 5 of 7 rows (1319 are published)"
    )
    published.write_jsonl(tmp_path / "test.jsonl", again)
    with pytest.raises(
        ValueError, match=r"test\.jsonl: none of 1 rows is left for the split 'heldout'"
    ):
        make(tmp_path)


def test_older_forms_come_before_newer_ones(tmp_path):
    """A folder that was read as train.jsonl is read so still when a table is put beside it."""
    folder = write(tmp_path)
    published.write_parquet(folder / "train.parquet", OTHERS)
    assert prompts(make(folder), "train") == expected(ROWS)


def test_bytes_of_a_table_that_are_no_text_are_named(tmp_path, monkeypatch):
    import pyarrow
    from pyarrow import parquet

    monkeypatch.setattr(row_files, "ROWS_PER_BATCH", 3)
    file = tmp_path / "rows.parquet"
    for bad, byte in ((b"caf\xe9", "0xe9"), (b"half \xed\xa0\xbd", "0xed"), (b"\x80", "0x80")):
        data = pyarrow.array([b"ok", *[b"fine"] * 3, bad, b"ok"], pyarrow.binary())
        texts = pyarrow.StringArray.from_buffers(6, *data.buffers()[1:])
        said = pyarrow.StructArray.from_arrays([texts, texts], ["role", "content"])
        lists = pyarrow.ListArray.from_arrays(list(range(7)), said)
        parquet.write_table(
            pyarrow.table({"number": list(range(6)), "question": texts, "messages": lists}), file
        )
        for columns in (("number", "question"), ("messages",)):
            with pytest.raises(
                ValueError,
                match=rf"rows\.parquet, row 5: '\w+' holds a byte {byte} that is not UTF-8",
            ) as error:
                list(row_files.read(file, columns))
            assert "\n" not in str(error.value)
    assert [row["number"] for _, row in row_files.read(file, ("number",))] == list(range(6))


def test_tables_are_read_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "ROWS_PER_BATCH", 3)
    file = published.write_parquet(tmp_path / "rows.parquet", ROWS)
    found = list(row_files.read(file, ("question",)))
    assert [row for _, row in found] == [{"question": row["question"]} for row in ROWS]
    assert [where for where, _ in found] == [f"{file}, row {number}" for number in range(1, 8)]


def test_the_first_layout_that_fits_reads_a_file(tmp_path):
    file = published.write_jsonl(tmp_path / "rows.jsonl", [{"a": "1", "b": "2"}])

    def layout(name, *columns):
        return published_files.Layout(columns, lambda where, row: {name: row[columns[0]]})

    layouts = [layout("none", "c"), layout("both", "b", "a"), layout("one", "a")]
    assert list(published_files.records([file], layouts)) == [(f"{file}:1", {"both": "2"})]
    with pytest.raises(ValueError, match=r"has the columns a, b; accepted: c; or a, d$"):
        list(published_files.records([file], [layouts[0], layout("x", "a", "d")]))


def test_nothing_heavy_is_imported_before_a_task_is_made():
    code = "import sys; from rlhf_jax.tasks import gsm8k, tldr, no_robots, ultrafeedback; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "rlhf_jax.tasks.gsm8k" in loaded
    assert not {"tensorflow_datasets", "pyarrow", "jinja2", "tensorflow", "absl"} & set(loaded)
