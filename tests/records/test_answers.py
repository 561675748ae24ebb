"""Answers of a reward that are kept: asked once, appended whole, shared by processes, copied from a
run that is replayed.
"""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from rlhf_jax.records import answers
from rlhf_jax.records.answers import Answers
from rlhf_jax.refusal import Refusal


class Counting:
    """Gives 0, 1, 2, ...: another answer each time, and remembers the indices that it was asked
    about.
    """

    def __init__(self):
        self.asked, self.count = [], 0

    def __call__(self, indices):
        self.asked.append(list(indices))
        self.count += len(indices)
        return np.arange(self.count - len(indices), self.count, dtype=np.float64)


def test_a_question_is_asked_once(tmp_path):
    """Twice in one call, in a later call, and in a later process."""
    path, ask = tmp_path / "answers" / "whim.jsonl", Counting()
    store = Answers(path)
    np.testing.assert_array_equal(store.given(["a", "b", "a", "c"], ask), [0, 1, 0, 2])
    np.testing.assert_array_equal(store.given(["c", "d", "a"], ask), [2, 3, 0])
    assert ask.asked == [[0, 1, 3], [1]]
    np.testing.assert_array_equal(Answers(path).given(["d", "c", "b", "a"], ask), [3, 2, 1, 0])
    assert ask.count == 4
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"stage": "reward", "key": "a", "answer": 0.0}
    assert [line["key"] for line in lines] == ["a", "b", "c", "d"]


def test_answers_come_back_to_the_bit(tmp_path):
    values = np.array([1 / 3, -1e-300, 1e300, np.float32(0.1), -0.0])
    keys = [str(place) for place in range(len(values))]
    first = Answers(tmp_path / "x.jsonl").given(keys, lambda indices: values[indices])
    again = Answers(tmp_path / "x.jsonl").given(keys, Counting())
    assert first.tobytes() == again.tobytes() == values.tobytes()


def test_nothing_is_read_or_written_before_the_first_question(tmp_path):
    Answers(tmp_path / "answers" / "whim.jsonl")
    assert not list(tmp_path.iterdir())


def test_what_a_kill_has_torn_is_asked_again(tmp_path):
    path = tmp_path / "whim.jsonl"
    Answers(path).given(["a", "b"], Counting())
    path.write_bytes(path.read_bytes()[:-5])
    np.testing.assert_array_equal(
        Answers(path).given(["a", "b"], lambda indices: np.array([7.0])), [0, 7]
    )
    assert answers.read(path) == {"a": 0.0, "b": 7.0}


def test_an_ask_that_fails_leaves_nothing(tmp_path):
    def fails(indices):
        raise OSError("the server is gone")

    store = Answers(tmp_path / "whim.jsonl")
    with pytest.raises(OSError, match="the server is gone"):
        store.given(["a"], fails)
    assert not (tmp_path / "whim.jsonl").exists()
    np.testing.assert_array_equal(store.given(["a"], Counting()), [0])


def test_the_answers_of_a_replayed_run_are_copied(tmp_path):
    Answers(tmp_path / "before.jsonl").given(["a", "b"], Counting())
    store = Answers(tmp_path / "now.jsonl", tmp_path / "before.jsonl")
    ask = Counting()
    np.testing.assert_array_equal(store.given(["b", "new"], ask), [1, 0])
    assert ask.asked == [[1]]
    assert answers.read(tmp_path / "now.jsonl") == {"b": 1.0, "new": 0.0}
    assert answers.read(tmp_path / "before.jsonl") == {"a": 0.0, "b": 1.0}
    np.testing.assert_array_equal(
        Answers(tmp_path / "other.jsonl", tmp_path / "gone.jsonl").given(["a"], ask), [1]
    )


def test_of_two_that_ask_at_once_the_first_answer_is_taken_by_both(tmp_path):
    """As cells of a study that share a reward do."""
    path = tmp_path / "whim.jsonl"
    one, other = Answers(path), Answers(path)

    def slow(indices):
        other.given(["a"], lambda indices: np.array([5.0]))  # answered meanwhile
        return np.array([1.0, 2.0])

    np.testing.assert_array_equal(one.given(["a", "b"], slow), [5, 2])
    assert answers.read(path) == {"a": 5.0, "b": 2.0}
    np.testing.assert_array_equal(other.given(["b"], Counting()), [2])


def test_what_is_appended_during_a_read_is_read_next_time(tmp_path, monkeypatch):
    path = tmp_path / "whim.jsonl"
    one, other = answers.Answers(path), answers.Answers(path)
    other.given(["a"], lambda indices: np.array([5.0]))
    read = answers.read

    def slow(path):
        found = read(path)
        if "b" not in found:
            other.given(["b"], lambda indices: np.array([6.0]))  # after the read, before its end
        return found

    monkeypatch.setattr(answers, "read", slow)
    np.testing.assert_array_equal(one.given(["a", "b"], lambda indices: np.array([7.0])), [5, 6])
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert keys == ["a", "b"]


WRITER = """
import sys
from pathlib import Path
import numpy as np
from rlhf_jax.records.answers import Answers
store, number = Answers(Path(sys.argv[1])), float(sys.argv[2])
for place in range(200):
    keys = [str(place), str(place + 1)]
    store.given(keys, lambda indices: np.full(len(indices), number))
"""


def test_processes_that_write_at_once_agree(tmp_path):
    path = tmp_path / "whim.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(number)])
        for number in (1, 2)
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert sorted(keys, key=int) == [str(place) for place in range(201)], (
        "one line for each question"
    )


def test_threads_take_turns(tmp_path):
    store, ask = Answers(tmp_path / "whim.jsonl"), Counting()
    threads = [threading.Thread(target=store.given, args=(["a", "b", "c"], ask)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ask.asked == [[0, 1, 2]]


@pytest.mark.parametrize(
    "line", ['{"stage": "reward", "key": "a"}', '{"stage": "reward", "key": 3, "answer": 1}', "{}"]
)
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "whim.jsonl"
    path.write_text(f'{{"stage": "reward", "key": "a", "answer": 1}}\n{line}\n')
    with pytest.raises(Refusal, match=r"whim\.jsonl, line 2: "):
        Answers(path).given(["b"], Counting())


def test_a_file_is_of_one_name_and_its_settings():
    names = {
        answers.file_name("whim", "my_lab:whim", {}),
        answers.file_name("whim", "my_lab:other", {}),
        answers.file_name("whim", "my_lab:whim", {"url": "a"}),
        answers.file_name("whim", "my_lab:whim", {"url": "b"}),
        answers.file_name("whim_2", "my_lab:whim", {}),
    }
    assert len(names) == 5
    assert all(name.startswith("whim") for name in names)
    assert answers.file_name("x", "n", {"a": 1, "b": 2}) == answers.file_name(
        "x", "n", {"b": 2, "a": 1}
    )


def test_keys_tell_questions_apart():
    questions = [
        ("ab", "c"),
        ("a", "bc"),
        ("ab", "c", True),
        ("ab", "c", False),
        ("ab", "c", {"level": 1}),
        ("ab", "c", {"level": np.arange(2)}),
    ]
    assert len({answers.key(*question) for question in questions}) == len(questions)
    assert answers.key("a", "b", {"x": 1, "y": object()}) == answers.key(
        "a", "b", {"y": object(), "x": 1}
    )
    assert answers.key("\ud800", "b")
