"""Signs of life of a command that is silent for a while."""

import io
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.cli import pulse
from rlhf_jax.records import progress
from rlhf_jax.runtime import activity


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_silent_stage_says_where_it_is(monkeypatch):
    """The thread prints by itself, and again only after another silence."""
    monkeypatch.setattr(pulse, "SILENCE_SECONDS", 0.05)
    monkeypatch.setattr(pulse, "CHECK_SECONDS", 0.01)
    out = io.StringIO()
    with progress.progress("SFT", total=500, stream=io.StringIO()):
        pulse.start(out)
        until = time.monotonic() + 30
        while out.getvalue().count("\n") < 3 and time.monotonic() < until:
            time.sleep(0.02)
        monkeypatch.setattr(pulse, "SILENCE_SECONDS", 1e9)
    assert out.getvalue().count("SFT  0/500  0%") >= 3


def test_a_terminal_gets_no_lines():
    before = threading.active_count()
    pulse.start(Terminal())
    assert threading.active_count() == before


def test_a_line_says_that_a_program_is_compiled():
    """The thread is inside of JAX's tracing while the function is traced."""
    seen = []

    def traced(x):
        seen.append(pulse.doing(4))
        return x + 1

    jax.jit(traced)(jnp.zeros(3))
    assert seen
    assert seen[0].startswith("compiling program 5, ")
    assert not pulse.doing(4).startswith("compiling")


def test_a_line_names_the_activity():
    with activity.at_work("the evaluation of version 16"):
        assert pulse.doing(0).startswith("in the evaluation of version 16 for ")


@pytest.mark.parametrize("nested", [False, True])
def test_without_anything_to_name_the_line_is_not_empty(nested):
    if not nested:
        assert pulse.line(0)
    else:
        with progress.progress("SFT", total=2, stream=io.StringIO()):
            assert pulse.line(0).startswith("SFT  0/2")
