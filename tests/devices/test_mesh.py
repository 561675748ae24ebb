"""Meshes over several hosts, on invented devices: who shares params, and rings that follow the wires."""

from dataclasses import dataclass

import numpy as np
import pytest

from rlhf_jax.devices import distributed, mesh
from rlhf_jax.devices.transfer import per_host
from rlhf_jax.refusal import Refusal


@dataclass(frozen=True, order=True)
class Device:
    """A TPU that is not here."""

    id: int
    process_index: int
    coords: tuple[int, int, int] = (0, 0, 0)
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0
    slice_index: int = 0


def v5e(width=4, height=4):
    """A slice by host, in JAX's order; hosts have 2 x 2 chips."""
    chips = [(x, y) for y in range(height) for x in range(width)]
    hosts = {}
    for index, (x, y) in enumerate(chips):
        host = y // 2 * (width // 2) + x // 2
        hosts.setdefault(host, []).append(Device(index, host, (x, y, 0)))
    return np.asarray([hosts[host] for host in sorted(hosts)])


def blocks(num_hosts, each):
    """Hosts whose devices have no wires that JAX knows."""
    return np.asarray(
        [
            [Device(host * each + index, host, platform="gpu") for index in range(each)]
            for host in range(num_hosts)
        ]
    )


@pytest.mark.parametrize(
    ("fsdp_hosts", "shape", "expected"),
    [
        (1, (2, 2, 1), (8, 2, 1)),
        (2, (1, 4, 1), (2, 8, 1)),
        (4, (1, 2, 2), (1, 8, 2)),
        (4, (4, 1, 1), (16, 1, 1)),  # all params on each host, as a call of a plan may have them
    ],
)
def test_hosts_multiply_data_or_fsdp(fsdp_hosts, shape, expected):
    made = mesh.over_hosts(blocks(4, 4), shape, fsdp_hosts)
    assert made.devices.shape == expected
    processes = distributed.hosts_of(made.devices)
    for host in range(4):
        data, fsdp, tensor = per_host.box_of(processes, host)
        assert (len(data), len(fsdp), len(tensor)) == shape
        shards = sorted(row * expected[1] + column for row in data for column in fsdp)
        first = host * shape[0] * shape[1]
        assert shards == list(range(first, first + shape[0] * shape[1])), "rows are contiguous"


@pytest.mark.parametrize("shape", [(1, 4, 1), (4, 1, 1)])
def test_a_ring_over_hosts_follows_the_wires(shape):
    made = mesh.over_hosts(v5e(), shape, 4).devices
    ring = [device.coords for device in made.flat]
    hops = [
        sum(abs(a - b) for a, b in zip(x, y, strict=True))
        for x, y in zip(ring, ring[1:] + ring[:1], strict=True)
    ]
    assert hops == [1] * 16
    processes = distributed.hosts_of(made)
    assert processes.reshape(-1).tolist() == [0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0]
    own = [per_host.box_of(processes, host) for host in range(4)]
    assert [tuple(map(len, box)) for box in own] == [shape] * 4
    axis = int(np.argmax(shape))
    assert own[0][axis].tolist() == [0, 1, 6, 15]


def test_an_order_that_gives_hosts_other_shares_is_not_taken():
    """By the wires, a mesh of 4 x 4 has a host in two rows of two; each host is asked to be a row."""
    made = mesh.over_hosts(v5e(), (1, 4, 1), 1).devices
    assert distributed.hosts_of(made)[:, :, 0].tolist() == [[host] * 4 for host in range(4)]


def test_a_host_without_a_box_has_none():
    assert per_host.box_of(np.array([[0, 1], [1, 0]]), 0) is None
    data, fsdp = per_host.box_of(np.array([[1, 0, 1, 0], [1, 0, 1, 0]]), 0)
    assert (data.tolist(), fsdp.tolist()) == ([0, 1], [1, 3])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            mesh.Config(fsdp_hosts=3),
            r"fsdp_hosts is 3, and this run has 4 host\(s\).*-1 \(all\), 1, 2, 4",
        ),
        (mesh.Config(fsdp_hosts=8), "fsdp_hosts is 8, and this run has 4"),
        (
            mesh.Config(data=2, fsdp_hosts=2),
            "mesh.data is 2 on each host beside mesh.fsdp_hosts=2.*accepted: mesh.data=1 and mesh.fsdp=2",
        ),
        (
            mesh.Config(tensor=8),
            r"mesh.tensor is 8, and each of the 4 hosts has 4 device\(s\).*accepted: mesh.tensor=4",
        ),
    ],
)
def test_meshes_that_hosts_cannot_have_are_refused(monkeypatch, config, message):
    monkeypatch.setattr(distributed, "devices_by_host", lambda: blocks(4, 4))
    with pytest.raises(Refusal, match=message):
        mesh.make_mesh(config)


def test_all_hosts_share_a_copy(monkeypatch):
    monkeypatch.setattr(distributed, "devices_by_host", lambda: blocks(4, 4))
    assert mesh.make_mesh(mesh.Config(fsdp=-1, fsdp_hosts=-1)).devices.shape == (1, 16, 1)


def test_one_host_alone_shares_with_nobody():
    with pytest.raises(Refusal, match=r"fsdp_hosts is 2, and this run has 1 host\(s\)"):
        mesh.make_mesh(mesh.Config(fsdp_hosts=2))
