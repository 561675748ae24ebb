"""Slices and meshes by hand and by their properties; what is dropped could never have been needed."""

from math import prod

import pytest

from rlhf_jax.planner.options import Option, mesh_shapes, options, pareto, slices

from .tables import PPO, Given, Table, place


def test_slices_of_a_host():
    found = slices(8, 8)
    assert [len(devices) for devices in found] == [1] * 8 + [2] * 4 + [4] * 2 + [8]
    assert (4, 5, 6, 7) in found
    assert (2, 3, 4, 5) not in found


def test_slices_of_hosts_are_every_run_up_to_16_devices_and_aligned_ones_above():
    runs = [devices for devices in slices(16, 4) if len(devices) >= 4]
    assert sorted((devices[0] // 4, len(devices) // 4) for devices in runs) == sorted(
        (begin, length) for length in (1, 2, 3, 4) for begin in range(5 - length)
    )
    hosts = [(devices[0] // 8, len(devices) // 8) for devices in slices(48, 8) if len(devices) > 8]
    assert hosts == [(0, 2), (2, 2), (4, 2), (0, 4), (0, 6)]


@pytest.mark.parametrize(("num_devices", "host"), [(1, 8), (6, 8), (8, 8), (24, 8), (128, 8)])
def test_slices_are_consecutive_and_differ(num_devices, host):
    found = slices(num_devices, host)
    assert len(set(found)) == len(found)
    assert found[-1] == tuple(range(num_devices))
    for devices in found:
        assert devices == tuple(range(devices[0], devices[0] + len(devices)))
        whole_hosts = devices[0] % host == 0 and len(devices) % host == 0
        assert whole_hosts or devices[0] // host == devices[-1] // host


def test_devices_that_are_no_whole_hosts_are_refused():
    with pytest.raises(ValueError, match="12 devices do not make whole hosts of 8"):
        slices(12, 8)


def test_mesh_shapes():
    assert set(mesh_shapes(4, 8)) == {
        (4, 1, 1),
        (2, 2, 1),
        (1, 4, 1),
        (2, 1, 2),
        (1, 2, 2),
        (1, 1, 4),
    }
    assert all(prod(shape) == 32 and shape[2] <= 8 for shape in mesh_shapes(32, 8))
    assert max(shape[2] for shape in mesh_shapes(32, 8)) == 8
    assert {shape[2] for shape in mesh_shapes(12, 6)} == {
        1,
        2,
        3,
        6,
    }  # of a host of 6, 4 would cross into the next


def test_pareto_keeps_what_is_best_for_some_memory():
    def made(seconds, working):
        return Option(place(0), seconds, working, 0.0)

    fast, slow, equal, bad = made(1.0, 9.0), made(2.0, 3.0), made(1.0, 9.0), made(2.5, 4.0)
    assert pareto([bad, slow, fast, equal]) == [fast, slow]


@pytest.mark.parametrize("call", PPO, ids=lambda call: call.name)
def test_what_is_dropped_is_refused_too_large_or_beaten_by_what_is_kept(call):
    costs = Table(3, symmetric=False, device_bytes=30e9)
    kept = options(call, costs, 8, 8)
    by_place = {}
    for of in kept:
        assert costs.refusal(call, of.placement) is None
        assert of.working_bytes + of.resident_bytes <= costs.device_bytes
        by_place.setdefault((of.placement.devices, of.placement.mesh_shape), []).append(of)
    num_dropped = 0
    for devices in slices(8, 8):
        for shape in mesh_shapes(len(devices), 8):
            for remat in (False, True) if call.kind == "train" else (None,):
                for count in (1, 2, 4, 8):
                    tried = place(*devices, num_micro_batches=count, remat=remat)
                    tried = type(tried)(devices, shape, count, remat)
                    if any(of.placement == tried for of in kept):
                        continue
                    num_dropped += 1
                    seconds, working = costs.seconds(call, tried), costs.working_bytes(call, tried)
                    resident = (costs.state_bytes if call.kind == "train" else costs.params_bytes)(
                        call.role, tried
                    )
                    assert (
                        costs.refusal(call, tried)
                        or working + resident > costs.device_bytes
                        or any(
                            of.seconds <= seconds and of.working_bytes <= working
                            for of in by_place.get((devices, shape), [])
                        )
                    )
    assert num_dropped > 20


def test_remat_is_of_training_alone():
    costs = Given({call.name: 1.0 for call in PPO})
    for call in PPO:
        remats = {of.placement.remat for of in options(call, costs, 2, 2)}
        assert remats <= ({False, True} if call.kind == "train" else {None})
