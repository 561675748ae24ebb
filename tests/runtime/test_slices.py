"""Sampler slices: devices of their own draw what the trainer's mesh would, and the threads on them
change no bit.
"""

import dataclasses
from functools import lru_cache

import jax
import numpy as np
import pytest

from rlhf_jax.clock import Clock
from rlhf_jax.devices.mesh import Config, make_mesh, sampler_slices
from rlhf_jax.runtime import asynchronous, synchronous
from rlhf_jax.runtime.program import Program

from . import rounds
from .rounds import host, same


@lru_cache
def program_with(num_slices: int, devices_per_slice: int) -> Program:
    shared = rounds.make_program()
    slices = sampler_slices(shared.spec.mesh, num_slices, devices_per_slice)
    spec = dataclasses.replace(shared.spec, sampler_slices=slices, clock=Clock(3, lag=1))
    return Program(spec, shared.reference_params)


@pytest.mark.parametrize(("num_slices", "devices_per_slice"), [(1, 2), (2, 1), (2, 2)])
def test_slices_draw_what_one_mesh_does(num_slices, devices_per_slice):
    alone, program = rounds.make_program(), program_with(num_slices, devices_per_slice)
    params = program.publish(program.init(program.reference_params))
    samples = program.generate(params, 0, 5)
    expected = alone.generate(alone.publish(alone.init(alone.reference_params)), 0, 5)
    assert samples.tokens_BC.sharding == expected.tokens_BC.sharding, (
        "samples end on the trainer's mesh"
    )
    np.testing.assert_array_equal(samples.tokens_BC, expected.tokens_BC)
    np.testing.assert_allclose(samples.behavior_logprob_BC, expected.behavior_logprob_BC, atol=1e-5)
    for name in ("ordinal_B", "sample_index_B", "mask_BC", "prompt_tokens_BQ", "version_BC"):
        np.testing.assert_array_equal(getattr(samples, name), getattr(expected, name))


def test_published_params_lie_on_the_slices_and_are_their_own():
    program = program_with(2, 2)
    states = program.init(program.reference_params)
    params = program.publish(states)
    devices = [
        {device.id for leaf in jax.tree.leaves(tree) for device in leaf.devices()}
        for tree in params
    ]
    assert devices == [{1, 2}, {3, 4}]
    before = host(params)
    samples = program.generate(params, 0, 0)
    _, batch = program.score(states, samples)
    program.update(states, batch)  # donates what was published
    assert same(before, host(params))


def test_threads_on_slices_give_the_synchronous_numbers():
    program = program_with(2, 2)
    ends = []
    for loop in (synchronous, asynchronous):
        events = list(loop.run(program, program.init(program.reference_params), 0, {}))
        figures = [
            host(event.metrics) for event in events if isinstance(event, synchronous.Updated)
        ]
        ends.append((figures, host(events[-1].states["policy"].params)))
    assert same(*ends)


def test_compiling_ahead_finds_the_calls_of_every_slice():
    program = program_with(2, 1)
    program.compile()
    assert [len(call[1]) for call in program.sampler.calls(program.reference_params)] == [4, 4]


def test_too_few_devices_are_named():
    with pytest.raises(
        ValueError, match="need 8 devices beside the trainer's 1, but 7 are left of 8"
    ):
        sampler_slices(make_mesh(Config()), 4, 2)
    with pytest.raises(ValueError, match=r"rlhf\.sampler_slices is -1"):
        sampler_slices(make_mesh(Config()), -1, 1)
    assert sampler_slices(make_mesh(Config()), 0, 1) == ()
