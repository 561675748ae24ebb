"""The table of hardware, devices that share cores, and rings between devices."""

import pytest

from rlhf_jax.planner.costs.collectives import Ring, rings, tensor_crosses_hosts
from rlhf_jax.planner.costs.hardware import TABLE, find


def test_a_wrong_name_lists_the_names():
    with pytest.raises(
        ValueError,
        match=r"no hardware 'h300'; there are: a100-40gb, a100-80gb, cpu, h100, h200, l40s, t4, tpu-v5e",
    ):
        find("h300")


def test_names_are_those_of_the_entries_and_figures_are_in_one_unit():
    for name, hardware in TABLE.items():
        assert hardware.name == name
        assert hardware.float32_flops <= hardware.bfloat16_flops
        assert hardware.network_bandwidth < hardware.link_bandwidth < hardware.memory_bandwidth
        assert hardware.shared_throughput == (name == "cpu")


def test_products_reach_a_share_of_the_dtypes_peak():
    h100 = find("h100")
    assert h100.product_flops(2) == pytest.approx(0.6 * 989.4e12)
    assert h100.product_flops(4) == pytest.approx(0.6 * 494.7e12)


def test_virtual_devices_share_the_cores_of_a_host():
    cpu = find("cpu")  # two cores
    assert cpu.share_of_host(8).float32_flops == pytest.approx(cpu.float32_flops / 4)
    assert cpu.share_of_host(1).memory_bandwidth == pytest.approx(
        2 * cpu.memory_bandwidth
    )  # alone, a call has both cores
    assert find("h100").share_of_host(8) == find("h100")


def test_a_ring_moves_what_the_formula_says():
    ring = Ring(size=4, bandwidth=10.0, latency=1.0)
    assert ring.all_reduce(80.0) == pytest.approx(2 * 3 / 4 * 8 + 1)
    assert ring.all_gather(80.0) == pytest.approx(3 / 4 * 8 + 1)
    assert Ring(1, 10.0, 1.0).all_reduce(80.0) == 0.0


def test_an_axis_that_leaves_a_host_has_the_network():
    h100 = find("h100")  # eight devices a host
    across = rings(h100, tuple(range(16)), (2, 1, 8))
    assert across.tensor.bandwidth == pytest.approx(0.8 * 450e9)
    assert across.data.bandwidth == pytest.approx(0.8 * 50e9)  # a device of each host
    assert across.rows.bandwidth == across.data.bandwidth
    assert rings(h100, tuple(range(16)), (1, 16, 1)).fsdp.bandwidth == pytest.approx(
        0.8 * 400e9
    )  # all eight NICs
    within = rings(h100, tuple(range(8, 16)), (2, 2, 2))
    assert {within.data.bandwidth, within.fsdp.bandwidth, within.rows.bandwidth} == {0.8 * 450e9}
    assert within.rows.size == 4


def test_tensor_groups_of_two_hosts_are_seen():
    h100 = find("h100")
    assert not tensor_crosses_hosts(h100, tuple(range(16)), (2, 1, 8))
    assert tensor_crosses_hosts(h100, tuple(range(16)), (1, 1, 16))
    assert tensor_crosses_hosts(h100, (6, 7, 8, 9), (1, 1, 4))
