"""Topologies to compile for: their names, what libtpu must find in the environment, and devices that
stand in for those at hand.
"""

import importlib.util
import subprocess
import sys

import jax
import pytest

from rlhf_jax.devices import distributed, topology
from rlhf_jax.devices.mesh import Config, make_mesh, sampler_slices
from rlhf_jax.refusal import Refusal


def test_names_of_topologies():
    assert topology.parse("v5e:2x4") == topology.Topology("v5e:2x4", "v5e", 8)
    assert topology.parse("v5p:2x2x1").num_devices == 4
    assert topology.parse("cpu:8").num_devices == 8
    assert not topology.parse("cpu:8").is_tpu
    assert topology.parse("here").environment == {}


@pytest.mark.parametrize("name", ["v5e", "v5e:8", "v5e:0x4", "h100:8", "cpu:2x4", "cpu:", ""])
def test_another_name_is_refused_with_examples(name):
    with pytest.raises(Refusal, match="accepted: v5e:2x4"):
        topology.parse(name)


def test_the_accelerator_that_libtpu_is_told():
    assert topology.parse("v5e:2x4").environment["TPU_ACCELERATOR_TYPE"] == "v5litepod-8"
    assert topology.parse("v5p:2x2x1").environment["TPU_ACCELERATOR_TYPE"] == "v5p-8"
    assert topology.parse("v6e:4x4").environment["JAX_PLATFORMS"] == "cpu"


def test_more_cpu_devices_than_there_are():
    assert topology.devices(topology.parse("cpu:4")) == jax.devices()[:4]
    with pytest.raises(Refusal, match=r"cpu:9, but this process has 8 CPU device\(s\)"):
        topology.devices(topology.parse("cpu:9"))


def test_devices_that_stand_in_are_all_there_are():
    with distributed.standing_in(jax.devices()[4:]):
        assert list(make_mesh(Config(data=-1)).devices.flat) == jax.devices()[4:]
        (slice_mesh,) = sampler_slices(make_mesh(Config(data=2)), 1, 2)
        assert list(slice_mesh.devices.flat) == jax.devices()[6:]
    assert make_mesh(Config(data=-1)).size == 8


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed here"
)
def test_without_libtpu_the_extra_is_named():
    with pytest.raises(
        Refusal, match=r"v5e:2x4 needs libtpu: pip install 'rlhf_jax\[tpu-compile\]'"
    ):
        topology.devices(topology.parse("v5e:2x4"))


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs rlhf_jax[tpu-compile]"
)
def test_a_slice_of_two_hosts_is_compiled_for_as_one():
    code = (
        "import os\n"
        "from rlhf_jax.devices import topology\n"
        "wanted = topology.parse('v5e:2x4')\n"
        "os.environ.update(wanted.environment)\n"
        "from rlhf_jax.devices import distributed, mesh\n"
        "with distributed.standing_in(topology.devices(wanted)):\n"
        "    print(mesh.make_mesh(mesh.Config(fsdp=-1)).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "('fsdp', 8)" in done.stdout, done.stderr
