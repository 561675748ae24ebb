"""Signs of life: who is taken for dead, and when; and two real processes of which one is killed while
the other waits outside of any collective.
"""

import os
import signal
import subprocess
import sys

import jax
import pytest

from experiments.bench.processes import free_port
from rlhf_jax.devices.processes.liveness import BEAT_SECONDS, LIMIT_SECONDS, Watch


class Notices(dict):
    """A board of one process; it does not answer while `ended`."""

    ended = False

    def write(self, name, text):
        if self.ended:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: connection refused")
        self[name] = text

    read = dict.get


class World:
    """Watches of three processes and one clock."""

    def __init__(self):
        self.now, self.board = 0.0, Notices()
        self.watches = [Watch(self.board, k, 3, lambda: self.now) for k in range(3)]

    def look(self, *processes):
        """All that these say after the next beat."""
        self.now += BEAT_SECONDS
        return {said for k in processes if (said := self.watches[k].look())}


def test_nobody_dies_while_all_beat():
    world = World()
    assert not any(world.look(0, 1, 2) for _ in range(100))


def test_a_process_that_never_beats_and_one_that_stops_are_named():
    for beats, silent in ((0, "1"), (4, "2")):
        world = World()
        others = [k for k in range(3) if str(k) != silent]
        for _ in range(beats):
            assert not world.look(0, 1, 2)
        said, looked = set(), 0
        while not said:
            said, looked = world.look(*others), looked + 1
        assert LIMIT_SECONDS <= looked * BEAT_SECONDS <= LIMIT_SECONDS + 2 * BEAT_SECONDS
        assert all(text.startswith(f"process {silent} has not been heard of") for text in said)


def test_a_process_that_has_left_is_not_missed():
    world = World()
    world.look(0, 1, 2)
    world.watches[1].leave()
    assert not any(world.look(0, 2) for _ in range(100))


def test_the_others_are_told_what_a_process_is_at_work_on():
    world = World()
    world.look(0, 1, 2)
    assert [dict(watch.elsewhere) for watch in world.watches] == [{}, {}, {}]
    world.watches[1].work = lambda: "the reward judge of 2 rows"
    world.look(1, 0, 2)
    assert (
        world.watches[0].elsewhere
        == world.watches[2].elsewhere
        == {1: "the reward judge of 2 rows"}
    )
    assert world.watches[1].elsewhere == {}
    assert not any(world.look(0, 1, 2) for _ in range(100)), "as many signs as without work"
    world.watches[1].work = str
    world.look(1, 0)
    assert world.watches[0].elsewhere == {}
    world.watches[1].leave()
    world.look(0)
    assert world.watches[0].elsewhere == {}


def test_a_service_that_does_not_answer_for_a_while_is_no_death():
    world = World()
    for seconds, died in ((LIMIT_SECONDS - 2 * BEAT_SECONDS, False), (2 * LIMIT_SECONDS, True)):
        world.look(0, 1, 2)
        world.board.ended, said = True, set()
        for _ in range(int(seconds / BEAT_SECONDS)):
            said |= world.look(0)
        world.board.ended = False
        assert bool(said) == died
    assert "the coordination service has not answered" in said.pop()


SCRIPT = """
import os, signal, sys, time
from rlhf_jax.devices import distributed
from rlhf_jax.devices.processes import liveness
liveness.BEAT_SECONDS, liveness.LIMIT_SECONDS = 0.5, 6.0
assert distributed.initialize()
print("met", flush=True)
time.sleep(float(sys.argv[1]))
"""


def start(port, process, seconds):
    """One of two processes, which ends well after so many seconds."""
    variables = {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(process)}
    variables |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(seconds)],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_waits_elsewhere_ends_with_a_line(victim):
    port = free_port()
    both = [start(port, process, 90) for process in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "met\n"
    both[victim].send_signal(signal.SIGKILL)
    _, errors = both[1 - victim].communicate(timeout=60)
    assert both[1 - victim].returncode == 1
    assert f"process {1 - victim} of 2: process {victim} has not been heard of" in errors
    assert "the same command goes on from the last checkpoint" in errors
    assert "Traceback" not in errors
    both[victim].communicate()


def test_processes_that_end_well_miss_nobody():
    """The first has nothing to do for longer than the limit, while the second goes on."""
    port = free_port()
    both = [start(port, process, 12 * process) for process in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert not any("heard of" in errors for _, errors in said)
