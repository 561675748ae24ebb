"""The gather of params that are sharded over hosts, on each of them: eight devices of one process stand
for several hosts.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax.devices import distributed
from rlhf_jax.devices.mesh import AXES
from rlhf_jax.devices.transfer import per_host
from rlhf_jax.planner.compiled.collectives import collectives

ORDERS = [
    list(range(8)),
    [0, 1, 4, 5, 7, 6, 3, 2],
    [0, 2, 4, 6, 1, 3, 5, 7],
    [7, 3, 1, 5, 0, 4, 6, 2],
]
"""Of the devices in the mesh: by host, along wires, and with the hosts in turn."""


def by_host(num_hosts):
    return np.asarray(jax.devices()).reshape(num_hosts, -1)


def arrays_on(mesh):
    """Arrays `[16, 8]`, sharded over both dimensions, and `[8]`, sharded over hosts."""
    whole = np.arange(128, dtype=np.float32).reshape(16, 8), np.arange(8, dtype=np.float32)
    specs = P("fsdp", "tensor"), P("fsdp")
    placed = [
        jax.device_put(array, NamedSharding(mesh, spec))
        for array, spec in zip(whole, specs, strict=True)
    ]
    return whole, placed


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "".join(map(str, order)))
@pytest.mark.parametrize(
    ("shape", "num_hosts"), [((1, 8, 1), 2), ((1, 8, 1), 4), ((1, 8, 1), 8), ((2, 4, 1), 4)]
)
def test_each_host_has_whole_arrays(shape, num_hosts, order):
    mesh = Mesh(np.asarray(jax.devices())[order].reshape(shape), AXES)
    whole, placed = arrays_on(mesh)
    with distributed.standing_in(by_host(num_hosts)):
        if not is_box_of_each_host(mesh):
            pytest.skip("no mesh of a run: hosts have other shares of it")
        program, (given,) = per_host.gather_call(placed, "bfloat16") or (None, (None,))
        assert program is not None
        gathered = program(given)
        for host in range(num_hosts):
            for array, found in zip(whole, gathered, strict=True):
                check_host(mesh, host, array, found)


def is_box_of_each_host(mesh):
    process_of = distributed.hosts_of(mesh.devices)
    boxes = [per_host.box_of(process_of, host) for host in np.unique(process_of)]
    shapes = {box and tuple(map(len, box)) for box in boxes}
    along = {process_of.shape[1] // shape[1] for shape in shapes if shape}
    return None not in shapes and len(shapes) == 1 and along != {1}


def check_host(mesh, host, array, gathered):
    """The shards of a host's devices are those of the whole array, in the order of its box."""
    box = per_host.box_of(distributed.hosts_of(mesh.devices), host)
    assert box is not None
    local = Mesh(mesh.devices[np.ix_(*box)], AXES)
    wanted = NamedSharding(local, gathered.sharding.spec).devices_indices_map(array.shape)
    shard_on = {shard.device: shard.data for shard in gathered.addressable_shards}
    for device, index in wanted.items():
        assert shard_on[device].dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(shard_on[device], np.float32), array[index])


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_a_gather_sends_no_more_than_a_host_lacks(num_hosts):
    """With k = 8 shards of W bytes in all on n hosts, a device sends W/k and (n − 1)/k · W."""
    mesh = Mesh(np.asarray(jax.devices()).reshape(1, 8, 1), AXES)
    array = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
    with distributed.standing_in(by_host(num_hosts)):
        program, given = per_host.gather_call([array], "bfloat16") or (None, ())
        assert program is not None
        compiled = program.lower(*given).compile()
    found = {each.kind: each.link_bytes for each in collectives(compiled.as_text() or "", 8)}
    whole = 16 * 8 * 2
    assert found == {"collective-permute": whole / 8, "all-gather": (num_hosts - 1) / 8 * whole}


def test_arrays_that_each_host_has_are_not_gathered():
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 4, 1), AXES)
    array = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
    with distributed.standing_in(by_host(2)):
        assert per_host.gather_call([array], None) is None
        (found,) = per_host.shapes_on_each_host([array], "bfloat16")
        assert found.dtype == jnp.float32
        assert found.sharding.device_set == set(jax.devices()[:4])
    assert distributed.num_hosts() == 1
