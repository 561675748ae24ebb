"""What a lag may keep alive is counted by device, and refused with what would fit where a device
says how much it has.
"""

import jax
import pytest

from rlhf_jax.clock import Clock
from rlhf_jax.devices import memory, sharding
from tests import tiny
from tests.runtime import rounds

GB = 10**9


def test_bytes_are_those_of_the_shards():
    """A 16 x 8 float32 kernel over fsdp 2 and tensor 2 is 128 bytes on each of four devices; a bias
    of 6 whole on all.
    """
    mesh = tiny.make_mesh((1, 2, 2))
    shapes = {
        "kernel": jax.ShapeDtypeStruct((16, 8), "float32"),
        "bias": jax.ShapeDtypeStruct((6,), "bfloat16"),
    }
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp", "tensor"))
    found = memory.bytes_by_device(shapes, {"kernel": split, "bias": sharding.replicated(mesh)})
    assert dict(found) == dict.fromkeys(mesh.devices.flat, 128 + 12)


def test_what_fits_passes_and_what_a_device_does_not_say_is_not_asked():
    memory.check({"a": 4 * GB}, [{"a": GB}], 3, {"a": 7 * GB}.get)
    memory.check({"a": 4 * GB}, [{"a": GB}], 99, lambda device: None)


def test_too_many_versions_are_refused_with_how_many_would_fit():
    with pytest.raises(
        ValueError,
        match=r"a has 7\.00 GB left, but the train states take 4\.00 GB and 4 version\(s\) of the "
        r"policy 1\.00 GB each; 3 "
        r"would fit: lower rlhf\.lag",
    ):
        memory.check({"a": 4 * GB}, [{"a": GB}], 4, {"a": 7 * GB}.get)


def test_states_that_do_not_fit_and_a_sampler_apart():
    with pytest.raises(ValueError, match=r"shard over more devices \(mesh.fsdp\), or sample apart"):
        memory.check({"a": 8 * GB}, [{"a": GB}], 1, {"a": 7 * GB}.get)
    with pytest.raises(ValueError, match=r"b has 3\.00 GB left, .* 0\.00 GB and 4 version"):
        memory.check({"a": 1}, [{"b": GB}], 4, {"a": GB, "b": 3 * GB}.get)


def test_slots_take_their_part_and_are_named():
    states, version = {"a": 4 * GB}, [{"a": GB}]
    memory.check(states, version, 2, {"a": 7 * GB}.get, {"a": GB})
    with pytest.raises(
        ValueError, match=r"each, and the slots 2\.00 GB; 1 would fit: lower rlhf\.lag"
    ):
        memory.check(states, version, 2, {"a": 7 * GB}.get, {"a": 2 * GB})
    with pytest.raises(ValueError, match=r"and the slots 3\.00 GB; lower rlhf\.num_slots"):
        memory.check(states, version, 1, {"a": 7 * GB}.get, {"a": 3 * GB})


def test_sampled_rounds_are_counted_and_named():
    given = {"a": 4 * GB}, [{"a": GB}], 1, {"a": 7 * GB}.get, None
    memory.check(*given, (4, {"a": GB // 2}))
    with pytest.raises(
        ValueError,
        match=r"and 5 sampled round\(s\) 0\.50 GB each; 4 round\(s\) would fit: lower "
        r"rlhf\.buffer_rounds",
    ):
        memory.check(*given, (5, {"a": GB // 2}))


def test_the_rounds_of_a_buffer_are_counted_before_a_run(monkeypatch):
    """A program counts what its clock holds, in the shapes that are sampled."""
    told = []
    monkeypatch.setattr(memory, "check", lambda *arguments: told.append(arguments[-1]))
    program = rounds.program_of(Clock(rounds.NUM_ROUNDS, buffer_rounds=3))
    program.check_memory(asynchronous=False)
    ((held, bytes_of),) = told
    shapes = jax.tree.leaves(program.sampler.shapes)
    assert held == 3
    assert list(bytes_of.values()) == [sum(x.size * x.dtype.itemsize for x in shapes)]


def test_a_cpu_does_not_say():
    assert memory.free_bytes(jax.devices()[0]) is None
