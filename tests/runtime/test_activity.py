"""Seconds of compilation: a union over nested traces and threads, apart from the other seconds."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.runtime import activity


@pytest.fixture
def listening(monkeypatch):
    """Nothing was compiled so far, and every event is heard from now on."""
    activity.listen_to_compiles()
    monkeypatch.setattr(activity, "_compiling", [])


def test_overlapping_intervals_count_once(listening):
    # A trace of 1 s inside of one of 3 s, a thread that compiles from 5 to 8 beside one from 6 to
    # 9, and 2 s alone: [1, 4], [5, 9] and [20, 22].
    for end, seconds in ((3.0, 1.0), (4.0, 3.0), (8.0, 3.0), (9.0, 3.0), (22.0, 2.0)):
        activity._add_interval(end, seconds)
    assert activity._compiling == [(1.0, 4.0), (5.0, 9.0), (20.0, 22.0)]
    assert activity.compile_seconds(0.0, 30.0) == 9.0
    assert activity.compile_seconds(2.0, 6.0) == 3.0
    assert activity.seconds_without_compiling(2.0, 6.0) == 1.0
    assert activity.compile_seconds(10.0, 15.0) == 0.0


def test_a_program_s_compilation_is_told_apart(listening):
    began = time.perf_counter()
    thread = threading.Thread(
        target=lambda: jax.jit(lambda x: jnp.sin(x * 3.0625) @ x)(jnp.ones((3, 3)))
    )
    thread.start()
    thread.join()
    compiled = activity.timings_since(began)
    assert 0 < compiled["compile_seconds"] <= compiled["wall_seconds"]
    time.sleep(0.05)
    later = activity.timings_since(began)
    assert later["compile_seconds"] == compiled["compile_seconds"]
    assert later["wall_seconds"] >= compiled["wall_seconds"] + 0.05


def test_what_was_not_listened_to_is_not_told(monkeypatch):
    now = time.perf_counter()
    monkeypatch.setattr(activity, "_listening_since", now)
    assert "compile_seconds" not in activity.timings_since(now - 1.0)
    assert "compile_seconds" in activity.timings_since(now)
    monkeypatch.setattr(activity, "_listening_since", None)
    assert activity.timings_since(now).keys() == {"wall_seconds"}
