"""The page of slices of several hosts is written from the compiler's committed figures."""

import subprocess
import sys

from experiments.bench import slices
from experiments.bench.slices_page import PAGE
from rlhf_jax.building.from_shapes import shaped
from rlhf_jax.devices import topology

AGAIN = "run python -m experiments.bench.slices_page"


def test_the_page_is_written_from_the_committed_files():
    """In a process of its own, which has as many devices as the largest slice."""
    code = "from experiments.bench.slices_page import page; print(page(), end='')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=PAGE.parents[2],
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == PAGE.read_text(), AGAIN


def test_a_host_samples_by_the_program_of_a_slice_of_one_host():
    """Which is what libtpu compiles, with the host's share of the prompts."""
    case, texts = slices.CASES["7b-v5p"], []
    assert case.num_hosts == 2
    devices = topology.devices_by_host(topology.parse("cpu:2x4"))
    for hosts, of_host in ((devices, False), (devices[:1], True)):
        found = shaped(slices.config_of(case, of_host), hosts, num_layers=1)
        with found.standing_in():
            texts.append(found.program.lowered("generate").as_text())
    assert texts[0] == texts[1]
    assert "dot_general" in texts[0]
