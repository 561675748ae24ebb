"""The rows of a supervised stage: made ahead in a thread, in order, and their errors."""

import threading

import pytest

from rlhf_jax.runtime import supervised


def test_the_next_rows_are_made_while_these_are_used():
    """Rows 1 are made before anybody asks for them: the event would not be set otherwise."""
    made, threads = [threading.Event() for _ in range(3)], set()

    def rows(update):
        threads.add(threading.current_thread())
        made[update].set()
        return update * 10

    with supervised.ahead(rows, 3) as take:
        assert take(0) == 0
        assert made[1].wait(10)
        assert not made[2].is_set()
        assert [take(1), take(2)] == [10, 20]
    assert threading.current_thread() not in threads


def test_a_resumed_stage_begins_anywhere_and_makes_no_row_past_its_end():
    asked = []
    with supervised.ahead(lambda update: asked.append(update) or update, 7) as take:
        assert [take(5), take(6)] == [5, 6]
    assert asked == [5, 6]


def test_an_error_comes_out_at_its_own_update():
    def rows(update):
        if update == 1:
            raise ValueError("update 1 has no rows")
        return update

    with supervised.ahead(rows, 3) as take:
        assert take(0) == 0
        with pytest.raises(ValueError, match="update 1 has no rows"):
            take(1)


def test_several_processes_make_rows_where_they_are_asked_for(monkeypatch):
    """There rows are collective, and so is the step."""
    monkeypatch.setattr(supervised.distributed, "several", lambda: True)
    with supervised.ahead(lambda update: threading.current_thread(), 3) as take:
        assert take(0) is threading.current_thread()
