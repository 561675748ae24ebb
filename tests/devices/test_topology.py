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
from rlhf_jax.devices.transfer import per_host
from rlhf_jax.refusal import Refusal


def test_names_of_topologies():
    assert topology.parse("v5e:2x4") == topology.Topology("v5e:2x4", "v5e", 8)
    assert topology.parse("v5p:2x2x1").num_devices == 4
    assert topology.parse("cpu:8").num_devices == 8
    assert not topology.parse("cpu:8").is_tpu
    assert topology.parse("here").environment == {}


@pytest.mark.parametrize("name", ["v5e", "v5e:8", "v5e:0x4", "h100:8", "cpu:2x2x2", "cpu:", ""])
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


def test_cpu_devices_of_two_hosts():
    devices = topology.devices_by_host(topology.parse("cpu:2x4"))
    assert devices.tolist() == [jax.devices()[:4], jax.devices()[4:]]
    assert topology.devices_by_host(topology.parse("cpu:8")).shape == (1, 8)
    with distributed.standing_in(devices):
        assert (distributed.num_hosts(), distributed.host_index()) == (2, 0)
        assert list(distributed.local_devices()) == jax.devices()[:4]
        made = make_mesh(Config(fsdp=-1, fsdp_hosts=-1))
        assert dict(made.shape) == {"data": 1, "fsdp": 8, "tensor": 1}
        assert list(per_host.local_mesh(made).devices.flat) == jax.devices()[:4]
        assert dict(make_mesh(Config(fsdp=-1)).shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert per_host.local_mesh(made) == made, "nothing is kept of the hosts"


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
@pytest.mark.parametrize(
    ("name", "hosts"),
    [("v5e:2x4", 1), ("v5e:4x4", 4), ("v6e:4x4", 4), ("v5p:2x2x1", 1), ("v5p:2x2x2", 2)],
)
def test_hosts_of_a_slice(name, hosts):
    """libtpu reports two hosts of v5e:2x4, which one machine has."""
    code = (
        "import os\n"
        "from rlhf_jax.devices import topology\n"
        f"wanted = topology.parse({name!r})\n"
        "os.environ.update(wanted.environment)\n"
        "from rlhf_jax.devices import distributed, mesh\n"
        "from rlhf_jax.devices.transfer.per_host import local_mesh\n"
        "devices = topology.devices_by_host(wanted)\n"
        "with distributed.standing_in(devices):\n"
        "    made = mesh.make_mesh(mesh.Config(fsdp=-1, fsdp_hosts=-1))\n"
        "    print(*devices.shape, *made.devices.shape, *local_mesh(made).devices.shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    count = topology.parse(name).num_devices
    expected = [hosts, count // hosts, 1, count, 1, 1, count // hosts, 1]
    assert done.stdout.split() == [str(size) for size in expected], done.stderr
