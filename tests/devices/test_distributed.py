"""Several processes on this machine, each with CPU devices of its own, train as one process does on
the same samples.
"""

import dataclasses
import json
import signal
import socket
import time
from itertools import chain
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from experiments.bench import kill, kill_hosts
from experiments.bench.processes import Processes
from rlhf_jax.clock import Clock
from rlhf_jax.devices import distributed, mesh, sharding
from rlhf_jax.records import jsonl
from rlhf_jax.records.checkpoints import Checkpoints, abstract_like
from rlhf_jax.records.streams import schedules
from rlhf_jax.runtime import synchronous
from rlhf_jax.runtime.program import Program
from tests.devices import host
from tests.runtime import rounds

LIMIT_SECONDS = 600  # of a child, on a machine that does other things too
SETTINGS = (
    *kill.SIZES,
    "sft.num_updates=4",
    "reward_model.num_updates=4",
    "rlhf.total_prompts=48",
    "rlhf.evaluate_every=0",
    "rlhf.loop=asynchronous",
)
PIPELINE = (
    "-m",
    "experiments.run",
    "--config=configs/quickstart.py",
    *(f"--config.{each}" for each in SETTINGS),
)


LINES_BEFORE = (
    6 + 6 + 1 + 6
)  # of metrics: SFT, comparisons, reward model; RLHF's first evaluation, and update 5


def found_by(directory: Path, scenario: str, count: int, devices: int) -> dict[str, np.ndarray]:
    """What the processes of `host.py` found, which is the same for all."""
    script = str(Path(__file__).with_name("host.py"))
    processes = Processes(directory, [script, str(directory), scenario], count, devices)
    assert processes.wait(LIMIT_SECONDS) == [0] * count, processes.said()
    found = [dict(np.load(directory / f"{place}.npz")) for place in range(count)]
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, value in found[0].items():
            if not name.startswith("refused/"):
                np.testing.assert_array_equal(
                    other[name], value, err_msg=f"{name} differs between processes"
                )
    return found[-1]


@pytest.fixture(scope="module")
def alone():
    """What one process finds."""
    program = rounds.program_of(Clock(host.ROUNDS, lag=1))
    return host.run(program, synchronous)


@pytest.fixture(scope="module")
def sharded():
    """What one process finds on a mesh with fsdp of 2."""
    shared = rounds.make_program((1, 2, 1))
    return host.run(rounds.program_of(Clock(host.ROUNDS, lag=1), shared), synchronous)


@pytest.fixture(scope="module")
def saved_at(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("slices")


@pytest.fixture(scope="module")
def slices(saved_at):
    return found_by(saved_at, "slices", 2, 2)


@pytest.fixture(scope="module")
def in_flight(tmp_path_factory):
    return found_by(tmp_path_factory.mktemp("inflight"), "inflight", 2, 2)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return found_by(tmp_path_factory.mktemp("four"), "rows", 4, 1)


@pytest.fixture(scope="module")
def copies_of_four(tmp_path_factory):
    return found_by(tmp_path_factory.mktemp("copies_of_four"), "four", 4, 2)


def check_equal(found, expected, prefix=""):
    """The same samples, token for token, and figures and params within a float32's tolerance."""
    assert {name for name in found if name.startswith(prefix)} >= {
        prefix + name for name in expected
    }
    for name, value in expected.items():
        exact = name.startswith(("tokens", "ordinal", "version", "rounds"))
        np.testing.assert_allclose(
            found[prefix + name],
            value,
            rtol=0 if exact else 2e-5,
            atol=0 if exact else 2e-6,
            err_msg=prefix + name,
        )


def test_four_processes_train_as_one(four, alone):
    spooled = four.pop("spooled")
    check_answers(four)
    check_equal(four, alone)
    np.testing.assert_array_equal(spooled, alone["tokens_BC/0"])
    assert len(np.unique(alone["ordinal_B/0"])) == 4, (
        "each of four hosts had a prompt of its own to sample"
    )


def test_two_processes_with_slices_and_threads_train_as_one(slices, alone):
    check_equal(slices, alone, "asynchronous/")


@pytest.mark.parametrize("name", host.INFLIGHT)
def test_two_processes_in_flight_train_as_one(in_flight, name):
    """A slice of each of two processes draws what two slices of one process draw. `host.py` asserts
    that threads of uneven speeds, the simulated loop and a resumed run are equal to the bit there.
    """
    shared = rounds.make_program()
    slices = mesh.sampler_slices(shared.spec.mesh, host.INFLIGHT_SLICES, 1)
    spec = dataclasses.replace(shared.spec, sampler_slices=slices)
    program, stream = host.inflight_program(Program(spec, shared.reference_params), name)
    expected, _ = host.run_inflight(program, stream, threaded=False)
    versions = [expected[f"version_BC/{r}"] for r in range(host.INFLIGHT_ROUNDS)]
    mixed = np.mean([row.max() > row[0] for version_BC in versions for row in version_BC])
    if name == "pinned":
        exact = [program.spec.clock.version(r) for r in range(host.INFLIGHT_ROUNDS)]
        assert [set(version_BC[:, 0]) for version_BC in versions] == [{each} for each in exact]
        assert mixed == 0
    else:
        assert mixed >= 0.3
    check_equal(in_flight, expected, f"{name}/")


def test_a_buffer_has_the_groups_of_one_process(slices, alone):
    """Groups are gathered over the hosts that hold them."""
    expected = host.run(rounds.program_of(host.BUFFERED), synchronous)
    check_equal(slices, expected, "buffered/")
    assert expected["loss/2"] != alone["loss/2"]


def test_a_plan_is_the_same_on_every_host(slices, alone):
    """A mesh with fsdp inside each host, the sampler on the second device of each, the reward on
    both.
    """
    check_equal(slices, alone, "planned/")


def test_one_copy_of_the_params_over_two_processes_trains_as_one_process(slices, sharded):
    """Threaded, at lag 1: bitwise the synchronous loop and a resumed run, which `host.py` asserts."""
    check_equal(slices, sharded, "one_copy/")
    assert slices["one_copy/share"] == 0.5


@pytest.mark.parametrize(
    ("name", "shape", "share"), [("one", (1, 4, 1), 1 / 4), ("two", (2, 2, 1), 1 / 2)]
)
def test_four_processes_share_one_copy_or_two_of_the_params(copies_of_four, name, shape, share):
    """As one process on that mesh. `host.py` asserts that the threaded, the synchronous and the
    resumed run are equal to the bit, and `found_by` that all processes dispatched in one order.
    """
    program = rounds.program_of(Clock(host.ROUNDS, lag=1), rounds.make_program(shape))
    check_equal(copies_of_four, host.run(program, synchronous), f"{name}/")
    assert copies_of_four[f"{name}/share"] == share
    log = str(copies_of_four[f"{name}/dispatched"]).split("; ")
    assert sum(": train_policy on " in entry for entry in log) == host.ROUNDS


def test_gradients_of_two_copies_may_cross_the_network_in_bfloat16(copies_of_four):
    """The first losses are those of float32, before any update; later ones and params are near them
    and not the same. `host.py` asserts that the threaded, the synchronous and the resumed run are
    equal to the bit.
    """

    def figures(name, kind):
        found = sorted(key for key in copies_of_four if key.startswith(f"{name}/{kind}/"))
        return np.concatenate([np.ravel(copies_of_four[key]) for key in found])

    for kind in ("params", "norm"):
        exact, rounded = figures("two", kind), figures("rounded", kind)
        assert 1e-6 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 0.02
    assert figures("rounded", "loss")[0] == figures("two", "loss")[0]


def test_a_ring_that_visits_hosts_in_any_order_trains_as_one_process(slices, alone):
    check_equal(slices, alone, "permuted/")


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1)])
def test_a_checkpoint_of_two_processes_is_restored_on_another_mesh(slices, saved_at, shape):
    """It was saved by two processes of two devices, each with a quarter of the params on a device."""
    program = rounds.make_program((1, 2, 1))
    states = program.state_shapes
    where = tiny.make_mesh(shape)
    layouts = {
        role: sharding.state_shardings(model, states[role], optimizer, where)
        for role, (model, optimizer) in program.spec.trained.items()
    }
    checkpoints = Checkpoints(saved_at / "over_four", only_read=True)
    restored = checkpoints.restore(host.ROUNDS, abstract_like(states, layouts))
    checkpoints.close()
    params = jax.tree.leaves(restored["policy"].params)
    assert {len(leaf.sharding.device_set) for leaf in params} == {4}
    for place, leaf in enumerate(params):
        np.testing.assert_array_equal(np.asarray(leaf), slices[f"permuted/params/{place}"])


def test_spanning_programs_have_one_order_on_all_processes(slices):
    """`found_by` has compared the logs, in which each process slept at random."""
    for lag in (0, 1, 2):
        log = str(slices[f"dispatched/{lag}"]).split("; ")
        updates = [entry for entry in log if ": train_policy on " in entry]
        assert len(updates) == host.ROUNDS, log
        gathers = [entry for entry in log if ": gather_on_each_host on " in entry]
        assert len(gathers) == host.ROUNDS - lag, "one for each version that samples a round"
        assert {entry.partition(":")[0] for entry in log} == {"MainThread"}


def test_a_stop_asked_of_one_process_stops_all_after_the_same_round(slices):
    assert slices["stopped/rounds"] == 2
    assert "stopped/loss/1" in slices
    assert "stopped/loss/2" not in slices


def test_a_reward_that_is_asked_once_is_asked_by_the_first_process(slices):
    """The others are told; each would have had another answer."""
    check_answers(slices)


def check_answers(found):
    np.testing.assert_array_equal(found["answers"], [0.25, 0.25, 0.25])
    assert found["answers"].dtype == np.float32


def test_what_cannot_cross_hosts_is_refused(slices):
    said = {name: str(text) for name, text in slices.items() if name.startswith("refused/")}
    assert "process 1 has another config than process 0" in said["refused/same"]
    assert "accepted: 512 or fewer" in said["refused/long"]
    assert "the same number of indices along each axis, all of `tensor`" in said["refused/mesh"]
    assert "the thread sampler dispatches 'whole', which spans processes" in said["refused/thread"]


@pytest.fixture(scope="module", params=["one_copy", "copies"])
def folder(request, tmp_path_factory) -> Path:
    """Of pipelines whose processes share one copy of the params, or have a copy each."""
    return tmp_path_factory.mktemp(request.param)


@pytest.fixture(scope="module")
def killed(folder):
    """A pipeline of two processes whose second is killed in RLHF: the statuses, what they said, and
    the seconds it took. A pipeline of one process is begun beside it.
    """
    whole = start(folder / "one", 1)
    processes = start(folder / "two", 2)
    kill.wait_for(processes.all[0], folder / "two", LINES_BEFORE)
    processes.all[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    statuses = processes.wait(LIMIT_SECONDS)
    seconds = time.monotonic() - began
    return statuses, processes.said(), seconds, whole


def start(directory: Path, count: int) -> Processes:
    """A pipeline in a directory of the fixture `folder`."""
    hosts = -1 if directory.parent.name.startswith("one_copy") else 1
    keys = [f"--config.mesh.fsdp_hosts={hosts}", f"--config.directory={directory}"]
    return Processes(directory, [*PIPELINE, *keys], count, 1)


def test_killing_one_process_ends_all_with_a_message_within_a_minute(killed):
    statuses, said, seconds, _ = killed
    assert statuses[1] == -signal.SIGKILL
    assert statuses[0] == 1, said
    # A collective says it, or, where the other process waits elsewhere, the lack of signs of life.
    assert any(text in said for text in kill_hosts.ENDED), said
    assert "the same command goes on from the last checkpoint" in said
    assert seconds < 60


def test_started_again_the_pipeline_ends_as_one_process_does(folder, killed):
    whole = killed[3]
    assert whole.wait(LIMIT_SECONDS) == [0], whole.said()
    again = start(folder / "two", 2)
    assert again.wait(LIMIT_SECONDS) == [0, 0], again.said()
    assert "report: " in again.logs[0].read_text()
    assert "report: " not in again.logs[1].read_text()
    check_runs(folder / "one", folder / "two")


def check_runs(one_run: Path, other_run: Path):
    """Params and figures within tolerance, and the same tokens."""
    for stage in kill.STAGES:
        (step, arrays), (other_step, others) = (
            kill.state(one_run, stage),
            kill.state(other_run, stage),
        )
        assert step == other_step
        for one, other in zip(arrays, others, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=stage)
    both = one_run, other_run
    check_figures(*(kill.untimed(run / "metrics.jsonl") for run in both))
    tokens = [
        [(row["ordinal"], row["text"]) for row in jsonl.read(run / "ledger.jsonl")] for run in both
    ]
    assert tokens[0] == tokens[1]


IN_FLIGHT = (
    "rlhf.engine=slots",
    "rlhf.weights=inflight",
    "rlhf.num_slots=15",
    "rlhf.segment_steps=1",
    "rlhf.tau=1",
    "mesh.data=1",
)


def start_in_flight(directory: Path, count: int, slices: int) -> Processes:
    """A pipeline in flight on two slices, which one or two processes have."""
    keys = (*IN_FLIGHT, f"rlhf.sampler_slices={slices}", f"directory={directory}")
    command = [*PIPELINE, *(f"--config.{key}" for key in keys)]
    return Processes(directory, command, count, 1 + slices)


def test_a_pipeline_in_flight_of_two_processes_is_killed_and_ends_as_one(tmp_path):
    """A slice of each of two processes, of which one is killed. Started again it ends as two slices
    of one process do: the same tokens and the same schedule, of which each process has its lines.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    whole = start_in_flight(one, 1, 2)
    assert whole.wait(LIMIT_SECONDS) == [0], whole.said()
    processes = start_in_flight(two, 2, 1)
    kill.wait_for(processes.all[0], two, LINES_BEFORE)
    processes.all[1].send_signal(signal.SIGKILL)
    assert processes.wait(LIMIT_SECONDS) == [1, -signal.SIGKILL], processes.said()
    again = start_in_flight(two, 2, 1)
    assert again.wait(LIMIT_SECONDS) == [0, 0], again.said()
    assert "going on from" not in again.said(), "a checkpoint was passed over"
    check_runs(one, two)
    rows = list(jsonl.read(one / "ledger.jsonl"))
    assert len([row for row in rows if "versions" in row]) >= 0.3 * len(rows)
    of_slices = [list(jsonl.read(two / name)) for name in ("schedule.jsonl", "schedule.1.jsonl")]
    assert [{line["slice"] for line in lines} for lines in of_slices] == [{0}, {1}]
    merged = sorted(chain(*of_slices), key=lambda line: (line["boundary"], line["slice"]))
    assert merged == list(jsonl.read(one / "schedule.jsonl"))
    clock = Clock(6, num_minibatches=2, lag=1, inflight=True)
    found, expected = (schedules.boundaries(run / schedules.FILE, clock) for run in (two, one))
    assert found == expected


def check_figures(ones, others):
    """Figures within tolerance; "accuracy" counts pairs whose margin may be 0 but for rounding."""
    assert [line.keys() for line in ones] == [line.keys() for line in others]
    for one, other in zip(ones, others, strict=True):
        for name, value in one.items():
            if isinstance(value, float) and name != "accuracy":
                assert other[name] == pytest.approx(value, rel=1e-3, abs=1e-4), (one["stage"], name)


def test_environments_say_who_is_who():
    """Slurm, Open MPI and Cloud TPU are left to jax.distributed; the others need an address."""
    explicit = {
        "JAX_NUM_PROCESSES": "3",
        "JAX_PROCESS_ID": "2",
        "JAX_COORDINATOR_ADDRESS": "node7:99",
    }
    told = {"coordinator_address": "node7:99", "num_processes": 3, "process_id": 2}
    told |= {"cluster_detection_method": "deactivate"}
    assert distributed.arguments(explicit) == told
    mpi = {"PMI_SIZE": "3", "PMI_RANK": "2", "JAX_COORDINATOR_ADDRESS": "node7:99"}
    assert distributed.arguments(mpi) == told
    five = {
        "OMPI_COMM_WORLD_SIZE": "3",
        "OMPI_COMM_WORLD_RANK": "2",
        "JAX_COORDINATOR_ADDRESS": "node7:99",
    }
    assert distributed.arguments(five) == told
    for found_out in (
        {"JAX_NUM_PROCESSES": "auto"},
        {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1;tcp://10.0.0.1:3"},
        {"TPU_WORKER_HOSTNAMES": "a,b"},
    ):
        assert distributed.arguments(found_out) == {}
    for alone in (
        {},
        {"JAX_NUM_PROCESSES": "1"},
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
    ):
        assert distributed.arguments(alone) is None
    assert distributed.initialize({}) is False


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"JAX_COORDINATOR_ADDRESS": ""}, "JAX_COORDINATOR_ADDRESS is ''; accepted: HOST:PORT"),
        (
            {"JAX_PROCESS_ID": "3"},
            "JAX_PROCESS_ID is 3 beside JAX_NUM_PROCESSES=3; accepted: 0 to 2",
        ),
        ({"JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID is ''; accepted: a number"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'; accepted: a number"),
        ({"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES is '0'"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(changed, message):
    explicit = {
        "JAX_NUM_PROCESSES": "3",
        "JAX_PROCESS_ID": "2",
        "JAX_COORDINATOR_ADDRESS": "node7:99",
    }
    with pytest.raises(ValueError, match=message):
        distributed.arguments(explicit | changed)


def test_a_coordinator_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_INITIALIZATION_SECONDS", "2")
    processes = Processes(tmp_path, [*PIPELINE, f"--config.directory={tmp_path / 'run'}"], 2, 1)
    processes.all[0].kill()
    assert processes.wait(LIMIT_SECONDS)[1] == 2
    said = processes.logs[1].read_text()
    assert "Traceback" not in said
    assert "error: process 1 of 2 did not meet the others at localhost:" in said
    assert "within 2 s; accepted: as many processes as are said" in said
    assert not (tmp_path / "run").exists()


OUTLIVES = """
import os, signal, sys, time
from rlhf_jax.devices import distributed
from rlhf_jax.devices.processes import ending
distributed.initialize()
distributed.barrier()
if distributed.is_first():
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(2)
try:
    distributed.barrier()
except Exception as error:
    ending.leave(error, 2)
"""


def is_open(port: int) -> bool:
    """True where somebody listens on a port of this machine."""
    with socket.socket() as client:
        return client.connect_ex(("localhost", port)) == 0


def test_the_first_process_is_killed_and_the_others_say_why_they_end(tmp_path):
    """jax alone would abort them with a stack trace while they sleep."""
    processes = Processes(tmp_path, ["-c", OUTLIVES], 2, 1)
    assert processes.wait(60) == [-signal.SIGKILL, 1], processes.said()
    ended, said = time.monotonic(), processes.logs[1].read_text()
    while is_open(processes.port):
        assert time.monotonic() - ended < 5, "the port is not free for the same command"
        time.sleep(0.1)
    assert said.count("as it does when another of them has ended") == 1
    assert "Check failure" not in said


def test_tensor_over_hosts_is_one_line(tmp_path):
    """The mesh of two processes of two devices, before anything is written."""
    keys = ("mesh.tensor=4", f"directory={tmp_path / 'run'}")
    command = [*PIPELINE, *(f"--config.{key}" for key in keys)]
    processes = Processes(tmp_path, command, 2, 2)
    assert processes.wait(LIMIT_SECONDS) == [2, 2], processes.said()
    for index, log in enumerate(processes.logs):
        (line,) = [line for line in log.read_text().splitlines() if "tensor" in line]
        assert line == (
            f"process {index} of 2: error: mesh.tensor is 4, and each of the 2 hosts has 2 device(s): tensor is inside a "
            "host, because it sums activations in every layer; accepted: mesh.tensor=2 or fewer; "
            "mesh.fsdp_hosts=2 shares one copy of the params over the hosts"
        )
        assert "Traceback" not in log.read_text()
        assert "the run stops" not in log.read_text()
    assert not (tmp_path / "run").exists()


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    jsonl.append(path, {"stage": "sft", "update": 0})
    before = path.read_bytes()
    monkeypatch.setattr(distributed, "_writes", False)
    jsonl.append(path, {"stage": "sft", "update": 1})
    jsonl.cut_back(path, "sft", 0)
    jsonl.replace(path, b"")
    assert path.read_bytes() == before
    assert json.loads(before) == {"stage": "sft", "update": 0}
