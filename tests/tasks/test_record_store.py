"""Records on disk: never stale, never half built, whoever builds at the same time."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from rlhf_jax.tasks import gsm8k
from rlhf_jax.tasks.corpora import record_store
from tests.tasks import published


@pytest.fixture
def folder(tmp_path):
    return published.write_gsm8k(tmp_path / "gsm8k")


def make(folder, **options):
    return gsm8k.make(gsm8k.Config(data_dir=str(folder), **options))


def stores(folder):
    return sorted(path.name for path in (folder / "array_record").iterdir())


def source(folder, rows, published=(211,)):
    files = {"train": [folder / "train.jsonl"], "heldout": [folder / "test.jsonl"]}
    return record_store.Source(
        "gsm8k", "prompts", dict.fromkeys(files, published), files, rows, ("prompt",)
    )


def test_a_second_task_reads_what_the_first_has_built(folder, monkeypatch, capfd):
    first = make(folder)
    names = stores(folder)
    monkeypatch.setattr(record_store, "_build", None)
    second = make(folder)
    assert stores(folder) == names
    assert len(names) == 1
    for split in ("train", "heldout"):
        for index in range(first.num_prompts(split)):
            assert second.prompt(split, index) == first.prompt(split, index)
            assert second.references(split, index) == first.references(split, index)
    assert capfd.readouterr() == ("", "")


def test_an_edited_file_is_read_anew(folder):
    before = make(folder).prompt("train", 3)
    file = folder / "train.jsonl"
    status = file.stat()
    file.write_bytes(file.read_bytes().replace(b"Dan has", b"Eve has"))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    assert before.replace("Dan", "Eve") == make(folder).prompt("train", 3) != before
    assert len(stores(folder)) == 2


def test_options_that_change_records_have_records_of_their_own(folder):
    assert "<<" not in make(folder).references("train", 0)[0]
    assert "<<" in make(folder, calculator=True).references("train", 0)[0]
    assert len(stores(folder)) == 2


def test_changed_code_makes_the_records_anew(folder, monkeypatch, tmp_path):
    make(folder)
    changed = tmp_path / "row_files.py"
    changed.write_text("# another way to read rows\n")
    monkeypatch.setattr(record_store, "CODE", (changed,))
    make(folder)
    assert len(stores(folder)) == 2


def test_the_cache_may_be_elsewhere(folder, tmp_path):
    task = make(folder, cache_dir=str(tmp_path / "cache" / "deep"))
    assert not (folder / "array_record").exists()
    assert len(list((tmp_path / "cache" / "deep").iterdir())) == 1
    assert task.num_prompts("train") == published.NUM_TRAIN


def test_a_place_that_cannot_be_written_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file cannot be written \(.*\); set task\.cache_dir"):
        make(folder, cache_dir=str(tmp_path / "file"))


def test_two_builds_at_once_end_in_one_store(folder, monkeypatch):
    move = record_store._move
    others = []

    def meanwhile(part, directory):
        monkeypatch.setattr(record_store, "_move", move)
        others.append(make(folder))
        move(part, directory)

    monkeypatch.setattr(record_store, "_move", meanwhile)
    late = make(folder)
    assert len(stores(folder)) == len(others) == 1
    assert late.prompt("heldout", 7) == others[0].prompt("heldout", 7)


def test_a_move_that_fails_otherwise_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        record_store._move(tmp_path / "none", tmp_path / "directory")


DIES = """
import os, sys
from pathlib import Path
from rlhf_jax.tasks import gsm8k
from rlhf_jax.tasks.corpora import record_store
def move(part, directory):
    assert (Path(part) / "gsm8k_prompts" / "1.0.0" / "dataset_info.json").is_file()
    os._exit(9)
if sys.argv[2] == "before the move":
    record_store._move = move
if sys.argv[2] == "among the rows":
    gsm8k.row_files.text = lambda where, row, key: os._exit(9) if where.endswith("test.jsonl:5") else row[key]
gsm8k.make(gsm8k.Config(data_dir=sys.argv[1]))
"""


@pytest.mark.parametrize("moment", ["among the rows", "before the move"])
def test_a_build_that_was_killed_never_looks_finished(folder, moment):
    died = subprocess.run(
        [sys.executable, "-c", DIES, str(folder), moment], capture_output=True, text=True
    )
    assert died.returncode == 9, died.stderr
    (left,) = stores(folder)
    assert ".part-" in left
    assert make(folder).num_prompts("heldout") == published.NUM_HELDOUT
    assert sum(".part-" not in name for name in stores(folder)) == 1


def test_a_file_that_changes_while_it_is_read_is_an_error(folder):
    def rows(split):
        yield "row", {"prompt": split}
        with (folder / "train.jsonl").open("a") as file:
            file.write("{}\n")

    with pytest.raises(ValueError, match=r"train\.jsonl.* changed while it was read; run again"):
        record_store.open_store(source(folder, rows), folder / "array_record")
    assert stores(folder) == []


def test_records_are_read_by_index_and_by_slice_from_many_threads(folder, monkeypatch):
    def rows(split):
        return ((f"row {n}", {"prompt": f"{split} {n} é\u2028\n"}) for n in range(211))

    monkeypatch.setattr(record_store, "RECORDS_PER_BATCH", 97)
    store = record_store.open_store(
        source(folder, rows, published=(7, 211)), folder / "array_record"
    )
    assert store.description == "train: 211 of 211 rows; heldout: 211 of 211 rows"
    records = store.splits["train"]
    expected = [{"prompt": f"train {n} é\u2028\n"} for n in range(211)]
    assert len(records) == 211
    assert list(records) == expected
    assert records[5:200:7] == expected[5:200:7]
    assert records[7:7] == []
    assert records[-1] == expected[-1]
    for index in (211, -212):
        with pytest.raises(IndexError, match=f"record {index} of 211"):
            records[index]
    order = [(n * 97) % 211 for n in range(211)] * 5
    with ThreadPoolExecutor(7) as pool:
        assert list(pool.map(records.__getitem__, order)) == [expected[n] for n in order]
