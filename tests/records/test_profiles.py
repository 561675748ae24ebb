"""Traces of chosen updates: which events each covers, and that none is left open."""

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.records import profiles

UPDATES = range(6)


def events(version=0):
    """Rounds of two updates: what begins a round, then each update by its number."""
    for update in UPDATES[version:]:
        if update % 2 == 0:
            yield f"sampled {update // 2}"
        yield update


def ended(event):
    return (event, jnp.ones(())) if isinstance(event, int) else None


@pytest.fixture
def said(monkeypatch):
    """What was traced, in order with the events that were taken."""
    lines = []
    start = lambda folder: lines.append(f"start {folder.rpartition('/')[2]}")  # noqa: E731
    monkeypatch.setattr(jax.profiler, "start_trace", start)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: lines.append("stop"))
    return lines


def taken(said, tmp_path, updates, version=0):
    for event in profiles.traced(events(version), ended, updates, tmp_path, version):
        said.append(event)
    return said


def test_a_trace_covers_what_leads_to_its_update(said, tmp_path):
    assert taken(said, tmp_path, (1, 4, 5)) == [
        *("start update_1", "sampled 0", "stop", 0, 1, "sampled 1", 2, "start update_4", "stop"),
        *(3, "start update_5", "sampled 2", "stop", 4, 5),
    ]


def test_a_run_that_goes_on_traces_what_is_left(said, tmp_path):
    assert taken(said, tmp_path, (1, 5), version=4)[-5:] == [
        *("start update_5", "sampled 2", "stop", 4, 5)
    ]
    assert said.count("stop") == 1


def test_an_interrupt_closes_the_trace(said, tmp_path):
    loop = profiles.traced(events(), ended, (2,), tmp_path, 0)
    assert [next(loop), next(loop)] == ["sampled 0", 0]
    with pytest.raises(KeyboardInterrupt):
        loop.throw(KeyboardInterrupt())
    loop = profiles.traced(interrupted(), ended, (1,), tmp_path, 0)
    with pytest.raises(KeyboardInterrupt):
        list(loop)
    assert said == ["start update_1", "stop"]


def interrupted():
    yield "sampled 0"
    raise KeyboardInterrupt


def test_without_chosen_updates_the_loop_is_as_it_was(tmp_path):
    loop = events()
    assert profiles.traced(loop, ended, (), tmp_path, 0) is loop


def test_the_profiler_writes_a_trace(tmp_path):
    """Of jax itself, so that what TensorBoard reads is there."""
    for _ in profiles.traced(events(), ended, (2,), tmp_path, 0):
        jnp.ones((4, 4)).sum().block_until_ready()
    assert [path.name for path in (tmp_path / profiles.FOLDER).iterdir()] == ["update_2"]
    assert list(tmp_path.rglob("*.xplane.pb"))
